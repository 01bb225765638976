"""Builds a lab, sends every flow it has, and holds prediction, observation and tcpdump against each other."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path as File

from netpath import lab
from netpath.cni import recognise
from netpath.ebpf.headers import parse
from netpath.lab import Lab
from netpath.lab.modes import MODES
from netpath.lab.modes.kubenet import OUTSIDE
from netpath.lab.options import Options
from netpath.model.packet import Headers, Tcp
from netpath.model.path import Path
from netpath.trace.session import TraceRun, tunnel_ports
from tests.datapaths.cases import CASES, HAIRPIN, Case, Flow, flows
from tests.netns import Netns
from tests.topology import echo
from tests.trace.capture import FIRST, Captures, Sighting, captured, claimed
from tests.trace.nat import as_predicted, trace

HAIRPIN_ATTEMPTS = 20


@dataclass
class Coverage:
    """What a live run showed of one mode."""

    mode: str
    known: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    protocols: set[str] = field(default_factory=set)
    added: set[int] = field(default_factory=set)
    translations: set[str] = field(default_factory=set)

    def row(self) -> tuple[str, ...]:
        """As the table has it."""
        order = ("udp", "tcp", "icmp")
        mode = next(mode for mode in MODES if mode.name == self.mode)
        return (
            f"`{self.mode}`",
            ", ".join(self.known),
            ", ".join(self.kinds),
            ", ".join(name.upper() for name in order if name in self.protocols),
            ", ".join(f"+{size}" for size in sorted(self.added)) or "none",
            ", ".join(sorted(self.translations)) or "none",
            mode.real_parts,
        )


@dataclass(frozen=True)
class _Sent:
    """One traced flow, with the time in which it was (wall clock, ns) and what the trace says was seen."""

    flow: Flow
    run: TraceRun
    began: int
    ended: int
    claims: list[Sighting]


def cover(mode: str) -> Coverage:
    """Raises AssertionError where anything differs from anything."""
    case, found = CASES[mode], Coverage(mode)
    with tempfile.TemporaryDirectory() as folder, lab.running(mode, f"npt{os.urandom(3).hex()}", **case.options) as made:
        spaces = {File(path).stat().st_ino: path for path in [f"/run/netns/{name}" for name in made.namespaces]}
        spaces |= {member.inode: member.path for member in (*made.nodes, *made.pods)}
        with _outside(made), captured(spaces, File(folder)) as captures:
            sent = [_send(made, flow) for flow in flows(made, case)]
    _recognised(made, case, sent[0].run, found)
    for each in sent:
        _agree(each, captures)
        found.kinds += [each.flow.kind] if each.flow.kind not in found.kinds else []
        found.protocols.add(each.flow.protocol)
        for path in each.run.trace.paths:
            found.translations |= {item.kind for item in path.translations}
            found.added |= {change for change in _changes(path) if change > 0}
    return found


@contextmanager
def _outside(made: Lab) -> Iterator[None]:
    """A gateway for the nodes, with an address of the world behind it, and an echo server there."""
    fabric = Netns(f"{made.name}-fabric")
    if not made.mode.startswith(("kubenet", "gke")):
        if not made.mode.endswith(("crosssubnet", "directrouting")):  # there the fabric is the gateway
            fabric.ip("address", "add", f"{Options().gateway}/24", "dev", "br0")
        fabric.ip("address", "add", f"{OUTSIDE}/32", "dev", "lo")
    with echo([(fabric, str(OUTSIDE))]):
        yield


def _send(made: Lab, flow: Flow) -> _Sent:
    for _ in range(HAIRPIN_ATTEMPTS):
        began = time.time_ns()
        run = trace(flow.source, flow.destination, flow.protocol, count=1)
        ended = time.time_ns()
        forward, back = as_predicted(run)
        # Which endpoint of a service gets a flow is the kernel's choice.
        if flow.kind != HAIRPIN or forward[0].hops[-1].netns == forward[0].hops[0].netns:
            return _Sent(flow, run, began, ended, claimed(*forward, *back))
    raise AssertionError(f"no flow of {HAIRPIN_ATTEMPTS} was balanced to the pod itself")


def _recognised(made: Lab, case: Case, run: TraceRun, found: Coverage) -> None:
    known = recognise(run.snapshot, run.index)
    datapaths = known[made.node("node1").netns]
    assert {(each.cni, each.mode) for each in datapaths} == case.known, datapaths
    for each in datapaths:
        assert each.confidence >= 0.6 and len(each.evidence) >= 2, each
    found.known = [f"{each.cni} {each.mode}" for each in datapaths]


def _changes(path: Path) -> list[int]:
    sizes = [hop.ip_length for hop in path.hops]
    return [after - before for before, after in pairwise(sizes) if after != before]


def _agree(sent: _Sent, captures: Captures) -> None:
    """Prediction, trace and capture say the same of a flow's devices, their order, and lengths."""
    where = f"{sent.flow.kind}, {sent.flow.protocol}: {sent.flow.source} to {sent.flow.destination}"
    forward = next(path for path in sent.run.trace.paths if path.direction == "forward")
    assert all(not path.uncertain for path in sent.run.trace.prediction.paths), where
    assert sent.run.trace.prediction.outcome == "delivered", where
    tunnelled = [sent.flow.added, -sent.flow.added] if sent.flow.added else []
    assert _changes(forward) == tunnelled or (sent.flow.balanced and not _changes(forward)), (where, _changes(forward))
    seen = _captured(sent, captures, forward)
    assert seen == sent.claims, f"{where}\ntcpdump: {seen}\ntrace:   {sent.claims}"


def _captured(sent: _Sent, captures: Captures, forward: Path) -> list[Sighting]:
    entries = sorted((entry for entry in captures.seen if sent.began <= entry[0] <= sent.ended), key=lambda entry: entry[0])
    if sent.flow.protocol != "tcp":
        return [where for _, where, packet in entries if FIRST in packet]
    first = _tcp(forward.hops[0].headers)
    assert first is not None and first.seq is not None
    ports = tunnel_ports(sent.run.snapshot, sent.run.index)
    return [where for _, where, packet in entries if _handshake(_tcp(_parsed(packet, ports)), first.seq)]


def _parsed(packet: bytes, ports: dict[int, str]) -> Headers:
    return parse(packet, 0, 0x86DD if packet[0] >> 4 == 6 else 0x0800, ports)[0]


def _tcp(headers: Sequence[object]) -> Tcp | None:
    return next((header for header in reversed(headers) if isinstance(header, Tcp)), None)


def _handshake(tcp: Tcp | None, number: int) -> bool:
    """The probe's SYN, or the answer to it; not the reset that ends it all."""
    if tcp is None or "S" not in tcp.flags:
        return False
    return tcp.seq == number if "A" not in tcp.flags else tcp.ack == (number + 1) & 0xFFFFFFFF
