"""What a recorded flow says prediction must say: the snapshot as it was before the send, the question, and the hops in one form."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from netpath.model.index import SnapshotIndex
from netpath.model.packet import Flow, Icmp, Ipv4, Ipv6, Tcp, Udp
from netpath.model.path import Hop, Path, Translation
from netpath.model.snapshot import ConntrackEntry, FlowTuple, Namespace, Neighbour, Snapshot

PAYLOAD = 32
UNKNOWN = "*"
LASTING = ("PERMANENT", "NOARP")


@dataclass(frozen=True)
class Crossing:
    """One crossing of a device, as `tcpdump -i any` shows it. `outer` and `inner` are ``SRC>DST`` with ports; `*` is a port nobody
    can know beforehand (a VXLAN's hash, a random masquerade, a proxy's own)."""

    netns: str
    device: str
    direction: str
    length: int
    ttl: int | None
    outer: str
    inner: str | None = None
    inner_length: int | None = None
    inner_ttl: int | None = None

    def allows(self, seen: Crossing, known: Collection[str]) -> bool:
        """Whether a recorded crossing is one of those that this predicted one stands for."""
        return (
            replace(self, outer="", inner=None) == replace(seen, outer="", inner=None)
            and _matches(self.outer, seen.outer, known)
            and (self.inner is None) == (seen.inner is None)
            and (self.inner is None or seen.inner is None or _matches(self.inner, seen.inner, known))
        )

    def __str__(self) -> str:
        inner = f" ({self.inner}, {self.inner_length}, ttl {self.inner_ttl})" if self.inner is not None else ""
        return f"{self.netns} {self.device} {self.direction} {self.length} ttl {self.ttl} {self.outer}{inner}"


def _matches(predicted: str, seen: str, known: Collection[str]) -> bool:
    """`known`: ports that prediction has no excuse to call unknown."""
    ours, theirs = predicted.split(">"), seen.split(">")
    if len(ours) != len(theirs):
        return False
    for one, other in zip(ours, theirs, strict=True):
        address, _, port = one.rpartition(":")
        there, _, recorded_port = other.rpartition(":")
        if one != other and not (port == UNKNOWN and there == address and recorded_port not in known):
            return False
    return True


def recorded(hops: Iterable[Mapping[str, Any]]) -> tuple[Crossing, ...]:
    return tuple(
        Crossing(
            hop["netns"], hop["dev"], hop["dir"], hop["len"], hop["ttl"], hop["outer"],
            hop.get("inner"), hop.get("inner_len"), hop.get("inner_ttl"),
        )
        for hop in hops
    )  # fmt: skip


def predicted(path: Path) -> tuple[Crossing, ...]:
    """A path's hops as the taps would have shown them: on lo only what comes in."""
    return tuple(_crossing(hop) for hop in path.hops if not (hop.device.kind == "loopback" and hop.direction == "tx"))


def _crossing(hop: Hop) -> Crossing:
    layers: list[tuple[str, int | None, int | None]] = []
    for number, header in enumerate(hop.headers):
        if isinstance(header, (Ipv4, Ipv6)):
            above = hop.headers[number + 1] if number + 1 < len(hop.headers) else None
            layers.append((_ends(header, above), header.length, header.ttl))
    outer, inner = layers[0], layers[1] if len(layers) > 1 else (None, None, None)
    direction = "out" if hop.direction == "tx" else "in"
    return Crossing(hop.netns.name, hop.device.name, direction, hop.ip_length, outer[2], outer[0], inner[0], inner[1], inner[2])


def _ends(header: Ipv4 | Ipv6, above: object) -> str:
    if isinstance(above, (Udp, Tcp)):
        sport = UNKNOWN if above.sport is None else above.sport
        dport = UNKNOWN if above.dport is None else above.dport
        return f"{header.src}:{sport}>{header.dst}:{dport}"
    assert above is None or isinstance(above, Icmp), above
    return f"{header.src}>{header.dst}"


def known_ports(flow: Mapping[str, Any]) -> frozenset[str]:
    """Ports that the question names, and those that echo servers, docker-proxies and the tunnels of the recordings are bound to."""
    return frozenset(map(str, (flow["sport"], flow["dport"], 7070, 7071, 4789, 6783, 8285, 8472)))


def agrees(path: Path, seen: Sequence[Crossing], known: Collection[str]) -> bool:
    ours = predicted(path)
    return len(ours) == len(seen) and all(one.allows(other, known) for one, other in zip(ours, seen, strict=True))


def unexplained(path: Path) -> list[str]:
    """Changes of the probe's addresses or ports that no translation accounts for, and translations that changed nothing seen.

    A translation carries the number of the first hop that shows it; those behind the last hop (an answer on its way up to the
    socket) carry the last one's, which shows the packet as it was before them.
    """
    problems = []
    by_hop: dict[int, list[Translation]] = {}
    for item in path.translations:
        by_hop.setdefault(item.hop, []).append(item)
    now: str | None = None
    for hop in path.hops:
        crossing = _crossing(hop)
        ends = crossing.inner or crossing.outer
        done = by_hop.pop(hop.index, [])
        if now is None:  # what a node sends itself may be translated before its first hop
            now = f"{done[0].before.src}>{done[0].before.dst}" if done else ends
        states = [now]
        for item in done:
            if f"{item.before.src}>{item.before.dst}" != states[-1]:
                problems.append(f"hop {hop.index}: {states[-1]} when {item.kind} says {item.before.src}>{item.before.dst}")
            states.append(f"{item.after.src}>{item.after.dst}")
        if ends not in (states if hop.index == len(path.hops) else states[-1:]):
            problems.append(f"hop {hop.index}: {ends}, told is {states}")
        now = ends
    problems.extend(f"hop {number}: a translation where there is no hop" for number in by_hop if number > len(path.hops))
    return problems


def difference(paths: Iterable[Path], seen: Sequence[Crossing], known: Collection[str] = ()) -> str:
    """For a person: what was recorded, and every path that was predicted with its first hop that differs marked."""
    lines = ["recorded:", *(f"    {hop}" for hop in seen)]
    for path in paths:
        lines.append(
            f"predicted, share {path.share:.4g}, {path.direction}, {path.outcome}{f': {path.drop.cause}' if path.drop else ''}:"
        )
        for number, hop in enumerate(predicted(path)):
            same = number < len(seen) and hop.allows(seen[number], known)
            lines.append(f"  {' ' if same else '!'} {hop}")
        lines.extend(f"    uncertain: {line}" for line in path.uncertain)
    return "\n".join(lines)


OUTCOMES = {"OK": "delivered", "FAIL ConnectionRefusedError": "rejected", "FAIL TimeoutError": "dropped"}


def outcome(flow: Mapping[str, Any]) -> str:
    """What the client saw, in netpath's words. Nothing that timed out here was on its way back."""
    words = flow["result"].split()
    return OUTCOMES[words[0] if words[0] == "OK" else " ".join(words[:2])]


def question(snapshot: Snapshot, flow: Mapping[str, Any]) -> Flow:
    netns = next(namespace.inode for namespace in snapshot.namespaces if namespace.name == flow["from_netns"])
    return Flow(
        netns=netns,
        dst=flow["dst"],
        protocol=flow["proto"],
        sport=flow["sport"],
        dport=flow["dport"],
        payload=PAYLOAD if flow["proto"] == "udp" else 0,
    )


def before(snapshot: Snapshot, flow: Mapping[str, Any]) -> Snapshot:
    """The recorded state just before the flow's first packet: without what the flow itself left in conntrack, and with the
    nodes' neighbour entries of that moment."""
    own = _own_entries(snapshot, flow)
    index = SnapshotIndex(snapshot)
    neighbours = flow.get("node_neigh_before") or {}
    return replace(
        snapshot,
        namespaces=tuple(
            replace(
                namespace,
                conntrack=namespace.conntrack
                if namespace.conntrack is None
                else tuple(entry for entry in namespace.conntrack if (namespace.inode, entry) not in own),
                neighbours=_neighbours(index, namespace, neighbours[namespace.name])
                if namespace.name in neighbours
                else namespace.neighbours,
            )
            for namespace in snapshot.namespaces
        ),
    )


def _neighbours(index: SnapshotIndex, namespace: Namespace, states: Mapping[str, str]) -> tuple[Neighbour, ...]:
    kept = tuple(entry for entry in namespace.neighbours if entry.state in LASTING or entry.family == 6)
    known = {entry.address: entry for entry in namespace.neighbours}
    made = []
    for address, state in states.items():
        if any(entry.address == address for entry in kept):
            continue
        if address in known:
            made.append(replace(known[address], state=state))
    return (*kept, *made)


def _own_entries(snapshot: Snapshot, flow: Mapping[str, Any]) -> set[tuple[int, ConntrackEntry]]:
    """The flow's entries in every namespace: those of its own tuple, and of every tuple that a translation made of it."""
    tuples: set[tuple[str, str, int | None, int | None]] = set()
    own: set[tuple[int, ConntrackEntry]] = set()
    entries = [
        (namespace.inode, entry)
        for namespace in snapshot.namespaces
        for entry in namespace.conntrack or ()
        if entry.protocol == flow["proto"]
    ]
    for inode, entry in entries:
        if (entry.original.destination, entry.original.sport, entry.original.dport) == (flow["dst"], flow["sport"], flow["dport"]):
            own.add((inode, entry))
            tuples.update((_key(entry.original), _key(_turned(entry.reply))))
    while True:
        more = [item for item in entries if item not in own and _key(item[1].original) in tuples]
        if not more:
            return own
        for item in more:
            own.add(item)
            tuples.add(_key(_turned(item[1].reply)))


def _key(one: FlowTuple) -> tuple[str, str, int | None, int | None]:
    return one.source, one.destination, one.sport, one.dport


def _turned(one: FlowTuple) -> FlowTuple:
    return FlowTuple(one.destination, one.source, one.dport, one.sport)
