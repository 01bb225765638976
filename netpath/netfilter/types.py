"""What the path walker and the ruleset evaluator tell each other.

The walker calls `Evaluator.run` once for every hook a packet crosses; the evaluator applies everything registered there in
order of priority (raw, conntrack, mangle, DNAT, filter, SNAT, ...) and answers with one `HookOutcome` per way it may go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from netpath.model.path import RuleRef
from netpath.model.snapshot import FlowTuple

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as one namespace's conntrack sees it.

    `original` and `reply` are tuples after every translation decided so far; `direction` says which of them the packet
    follows. `new` is False once an entry existed before this packet (then the nat tables are not consulted).
    """

    state: str
    """new, established, related, invalid or untracked."""
    protocol: str
    original: FlowTuple
    reply: FlowTuple
    direction: str = "original"
    mark: int = 0
    source_done: bool = False
    """A source mapping is set up (IPS_SRC_NAT_DONE), be it a null binding."""
    destination_done: bool = False
    source_rule: RuleRef | None = None
    source_kind: str = "snat"
    destination_rule: RuleRef | None = None
    destination_kind: str = "dnat"
    assured: bool | None = False
    """The kernel would not drop it early (IPS_ASSURED); None: this packet may be the one that makes it so."""
    confirmed: bool = False
    """This packet has left postrouting or input in its namespace: over the loopback device it meets rules again (nf_conntrack_confirm)."""
    known: bool = False
    """Taken from the snapshot's conntrack entries rather than made by this walk."""


@dataclass(frozen=True, slots=True)
class PacketState:
    """The packet at a hook: all that rules can match on. Ports are None where unknown or without meaning."""

    family: int
    src: str
    dst: str
    protocol: str
    """udp, tcp, icmp, icmpv6, or an IP protocol number as text (``4``)."""
    sport: int | None = None
    dport: int | None = None
    tcp_flags: str = "S"
    icmp_type: int | None = None
    icmp_code: int | None = None
    icmp_id: int | None = None
    length: int = 0
    """Bytes of the IP packet."""
    ttl: int = 64
    tos: int = 0
    mark: int = 0
    connection: Connection | None = None
    """None before conntrack has seen it in this namespace; the walker resets it when the packet changes namespace."""


@dataclass(frozen=True, slots=True)
class FibQuestion:
    """What a rule asks the routing tables, as a sender in the namespace would."""

    destination: str
    source: str | None
    mark: int
    tos: int
    device: str | None = None
    """IPv6: routes of this device only."""


@dataclass(frozen=True, slots=True)
class FibAnswer:
    """The route that was found."""

    type: str
    """unicast, local, ...; ``none`` where there is no route, or one that refuses."""
    devices: tuple[str, ...] = ()
    """Every device that a next hop of it uses."""
    chosen: tuple[tuple[float, str], ...] = ()
    """(share, device): the next hop that a flow is given, IPv6."""


@dataclass(frozen=True, slots=True)
class HookContext:
    """Where the packet is, and what rules ask of the host around them."""

    hook: str
    in_device: str | None = None
    out_device: str | None = None
    physical_in: str | None = None
    """The bridge port it came in by, when br_netfilter shows it to IP hooks (-m physdev); kept through forwarding."""
    physical_out: str | None = None
    bridged: bool = False
    """It is being bridged, not routed: hooks run because of bridge-nf-call-iptables (physdev --physdev-is-bridged)."""
    address_type: Callable[[str, str | None], str] = lambda address, device: "unicast"
    """(address, device or None) -> local, unicast, broadcast, multicast, blackhole, ... by the namespace's routing tables."""
    masquerade_source: Callable[[str, str], str | None] = lambda device, destination: None
    """(out device, destination) -> the address MASQUERADE takes; None: there is none (the packet is dropped)."""
    redirect_target: Callable[[str | None], str | None] = lambda device: None
    """(in device, None for local output) -> the address that REDIRECT sends to."""
    device_group: Callable[[str], int] = lambda device: 0
    fib: Callable[[FibQuestion], FibAnswer] = lambda question: FibAnswer("none")
    loopback: str | None = "lo"
    """The name of the loopback device."""
    recall: Callable[[PacketState], Connection | None] = lambda packet: None
    """The connection that an earlier packet of the same exchange made here, if this one belongs to it; asked by conntrack, after raw."""
    is_local_socket: Callable[[PacketState], bool | None] = lambda packet: None


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A translation that a hook did: the tuple before and after, the kind and the rule (None: conntrack's memory alone)."""

    kind: str
    """dnat, snat, masquerade or redirect."""
    reverse: bool
    before: FlowTuple
    after: FlowTuple
    """A port that only the kernel knows (masquerade --random-fully, a clash) is None."""
    rule: RuleRef | None


@dataclass(frozen=True, slots=True)
class HookOutcome:
    """One way that a packet may leave a hook."""

    share: float
    verdict: str
    """accept, drop, reject, queue, stolen."""
    packet: PacketState
    rewrites: tuple[Rewrite, ...] = ()
    rule: RuleRef | None = None
    """The rule (or the chain policy, text ``policy DROP``) behind any verdict but accept."""
    reject_with: str | None = None
    """For reject: icmp-port-unreachable, tcp-reset, ..."""
    uncertain: tuple[str, ...] = ()
    """Why this outcome is a guess: the match or target that is not understood, in the rule's own words."""
    visited: tuple[RuleRef, ...] = field(default=())
    """Rules that matched on the way, in order, for people."""


class Evaluator(Protocol):
    """The rulesets of one namespace, ready to be asked."""

    def run(self, packet: PacketState, context: HookContext) -> tuple[HookOutcome, ...]:
        """All outcomes of the hook, shares adding up to 1, likeliest first. Never raises on odd rules: they are uncertain."""
        ...
