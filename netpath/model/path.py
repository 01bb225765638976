"""Paths, predicted and observed, and the documents that carry them. Times are nanoseconds, lengths bytes.

Field names are the JSON's (docs/reference/json.md). A field that is None says "not known" and becomes ``null``; a field
marked with `absent` does not apply when it is None and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from netpath.model.packet import Headers

ABSENT: Mapping[str, bool] = {"absent_if_none": True}


@dataclass(frozen=True, slots=True)
class Stats:
    """A distribution of times in ns, corrected for the probes' own cost but for `uncorrected_mean`."""

    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p99: float
    max: float
    ci95: tuple[float, float] | None
    uncorrected_mean: float


@dataclass(frozen=True, slots=True)
class NetnsRef:
    inode: int
    name: str


@dataclass(frozen=True, slots=True)
class DeviceRef:
    name: str
    ifindex: int
    kind: str


@dataclass(frozen=True, slots=True)
class Hop:
    """One crossing of one device in one direction.

    `length` is the whole frame, with its Ethernet header where the device has one; `ip_length` the outermost IP packet.
    `note` says in a few words what makes a step uncertain or unprobed.
    """

    index: int
    status: str
    """predicted, uncertain (a Path); observed, missing, unexpected, unprobed (a Trace)."""
    node: str | None
    netns: NetnsRef
    workload: str | None
    device: DeviceRef
    direction: str
    """tx or rx."""
    length: int
    ip_length: int
    mtu: int | None
    headers: Headers
    note: str | None = field(default=None, metadata=ABSENT)
    since_start_ns: Stats | None = field(default=None, metadata=ABSENT)
    segment_ns: Stats | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True, slots=True)
class Stage:
    """What the time between two hops was spent on; `to_hop` of the last one is the hop itself when delivery follows."""

    stage: str
    from_hop: int
    to_hop: int
    ns: Stats | None = field(default=None, metadata=ABSENT)
    bytes: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RuleRef:
    """The rule that did something. `text` is the rule as its own tool prints it."""

    text: str
    table: str | None
    chain: str | None
    comment: str | None = None
    basis: str = "evaluated"
    """evaluated (from the ruleset) or observed (from headers alone)."""
    service: str | None = field(default=None, metadata=ABSENT)
    """NAMESPACE/NAME:PORT where the comment carries a Kubernetes service."""


@dataclass(frozen=True, slots=True)
class AddressPair:
    """``ADDRESS:PORT`` of both ends (``[v6]:PORT``; the port is left out where the protocol has none, ``*`` where unknown)."""

    src: str
    dst: str


@dataclass(frozen=True, slots=True)
class Translation:
    """A change of address or port, first visible at hop number `hop`."""

    hop: int
    kind: str
    """dnat, snat, masquerade, redirect, ipvs or proxy."""
    reverse: bool
    before: AddressPair
    after: AddressPair
    rule: RuleRef | None
    hook: str | None = field(default=None, metadata=ABSENT)
    conntrack: bool | None = field(default=None, metadata=ABSENT)
    """True: the kernel's conntrack entry of the flow confirms it."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Where and why a packet ended. `hop` is the last hop it was at (0: before the first)."""

    hop: int
    reason: str
    """The kernel's drop reason (enum skb_drop_reason) where it gives one, else netpath's own word in capitals."""
    cause: str
    remedy: str | None = None
    device: DeviceRef | None = field(default=None, metadata=ABSENT)
    netns: NetnsRef | None = field(default=None, metadata=ABSENT)
    rule: RuleRef | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Who received the packet, and how that is known."""

    netns: NetnsRef
    to: str
    """``socket``, ``responder`` (the kernel answers ICMP echo itself), ``proxy``, ``local``, or ``wire`` (it left this machine)."""
    process: str | None = None
    hook: str | None = field(default=None, metadata=ABSENT)
    """The hook that saw it (a Trace)."""
    since_start_ns: Stats | None = field(default=None, metadata=ABSENT)
    segment_ns: Stats | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True, slots=True)
class Path:
    """One way that the packet may take, or that probes took."""

    direction: str
    """forward or return."""
    share: float
    outcome: str
    hops: tuple[Hop, ...]
    probes: int | None = field(default=None, metadata=ABSENT)
    stages: tuple[Stage, ...] = ()
    translations: tuple[Translation, ...] = ()
    drop: Drop | None = None
    delivery: Delivery | None = None
    overhead: Mapping[str, Any] | None = field(default=None, metadata=ABSENT)
    uncertain: tuple[str, ...] = ()
    """Why prediction is not sure, one line each."""


@dataclass(frozen=True, slots=True)
class PathMtu:
    """The largest IP packet (`ip`) and payload that cross the path whole; `limited_by_hop` is an index into its hops."""

    ip: int
    payload: int
    limited_by_hop: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """All that a Snapshot says about a Flow: the paths it may take, most likely first."""

    outcome: str
    """delivered, rejected, dropped, uncertain, or mixed when paths differ."""
    paths: tuple[Path, ...]
    path_mtu: PathMtu | None


@dataclass(frozen=True, slots=True)
class Completeness:
    """Whether every hook was armed and no event lost."""

    verdict: str
    """COMPLETE or PARTIAL."""
    lost_events: int = 0
    missing_hooks: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeCost:
    """What one event costs the packet, in ns, and how well that is known. None: not measured on this run."""

    ns_per_event: float | None
    uncertainty_ns: float | None


@dataclass(frozen=True, slots=True)
class Trace:
    """What probes really did, aligned with what was predicted for them."""

    outcome: str
    """delivered, rejected, dropped, lost, or mixed."""
    paths: tuple[Path, ...]
    """One per distinct way that probes took, most frequent first; with the way back as `return` paths after the forward ones."""
    prediction: Prediction
    completeness: Completeness
    path_mtu: PathMtu | None
    probe_cost: ProbeCost
    round_trip_ns: Stats | None = field(default=None, metadata=ABSENT)
    sent: int = 0
    notes: tuple[str, ...] = ()
    """What a reader should know about this run, one line each (copies of flooded frames, a send that failed, ...)."""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    """Where this run's own time went: imports, discovery, btf, compile, attach, probe (milliseconds)."""

    @property
    def diverged(self) -> bool:
        """Some forward hop was missing or unexpected, or a way ended as none of the predicted ones does."""
        forward = [path for path in self.paths if path.direction == "forward"]
        if any(hop.status in ("missing", "unexpected") for path in forward for hop in path.hops):
            return True
        foreseen = {path.outcome for path in self.prediction.paths} | {self.prediction.outcome}
        return "uncertain" not in foreseen and not {path.outcome for path in forward} <= foreseen
