"""What happened between two hops, read from the headers: encapsulation with its bytes, translations, stages. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from netpath.model.event import Event
from netpath.model.packet import Headers, Icmp, Ipv4, Ipv6, Opaque, Tcp, Udp, VxlanHeader
from netpath.model.path import AddressPair, Translation
from netpath.trace.correlate import FlowKey, innermost

Binding = tuple[FlowKey, FlowKey]
"""A conntrack entry: the tuple of the connection's own direction, and that of its answers."""


def encapsulation(headers: Headers) -> str | None:
    """The outermost tunnel around a packet: vxlan, ipip, udp (IP in UDP) or opaque; None when it travels plain."""
    seen_ip = False
    for position, header in enumerate(headers):
        if isinstance(header, Ipv4 | Ipv6):
            if seen_ip:
                return "ipip"
            seen_ip = True
        elif isinstance(header, VxlanHeader):
            return "vxlan"
        elif isinstance(header, Opaque):
            return header.name
        elif isinstance(header, Udp):
            following = headers[position + 1] if position + 1 < len(headers) else None
            if isinstance(following, Ipv4 | Ipv6):
                return "udp"
        elif isinstance(header, Tcp | Icmp):
            return None
    return None


def depth(headers: Headers) -> int:
    """How many IP packets are nested in it (an ICMP error's quotation is not counted)."""
    count = 0
    for header in headers:
        if isinstance(header, Icmp):
            break
        count += isinstance(header, Ipv4 | Ipv6)
    return count


def vni(headers: Headers) -> int | None:
    """The VNI of the outermost VXLAN header."""
    return next((header.vni for header in headers if isinstance(header, VxlanHeader)), None)


@dataclass(frozen=True, slots=True)
class Place:
    """What a hop's device is: its kind, and the bridge (an ifindex of the same namespace) that it is a port of."""

    kind: str
    bridge: int | None = None
    tap: bool = False
    """A process captures there what a bridge sends to it, and injects."""


@dataclass(frozen=True, slots=True)
class Step:
    """What was done to a packet between hop `from_hop` and hop `to_hop` (both count from 1; 0 is the sender's call)."""

    stage: str
    from_hop: int
    to_hop: int
    bytes: int
    detail: dict[str, object]


def steps(hops: Sequence[Event], places: Sequence[Place], copied: Collection[int] = ()) -> tuple[Step, ...]:
    """Name the stage of every segment between adjacent hops; `places` are the hops' devices, `copied` the hops
    (from 1) whose packet a process sent after it had received the one before.

    With hooks on devices alone a segment is named after the one thing that the devices at its ends prove; a segment in which
    several things happen that can't be told apart (routing, conntrack, rules) is `other`.
    """
    found: list[Step] = []
    for number in range(1, len(hops)):
        before, after = hops[number - 1], hops[number]
        change = depth(after.headers) - depth(before.headers)
        added = after.ip_length - before.ip_length
        stage = _segment(before, after, places[number - 1], places[number], change)
        if number + 1 in copied:
            stage = "userspace"
        detail: dict[str, object] = {}
        if change > 0:
            detail = {"kind": encapsulation(after.headers), **_vni_of(after.headers)}
        elif change < 0:
            detail = {"kind": encapsulation(before.headers), **_vni_of(before.headers)}
        found.append(Step(stage, number, number + 1, added if change else 0, detail))
    return tuple(found)


def _vni_of(headers: Headers) -> dict[str, object]:
    number = vni(headers)
    return {} if number is None else {"vni": number}


def _segment(before: Event, after: Event, there: Place, here: Place, change: int) -> str:
    if before.netns == after.netns and change and ("tun" in (there.kind, here.kind) or there.tap or here.tap):
        return "userspace"
    if change:
        return "encap" if change > 0 else "decap"
    if before.netns != after.netns:
        return "veth" if there.kind == here.kind == "veth" else "wire"
    if before.hook == "tx" and after.hook == "rx":
        return "veth" if here.kind == "veth" else "other"
    ports = there.bridge is not None and there.bridge == here.bridge
    to_bridge = before.hook == after.hook == "rx" and there.bridge == after.ifindex
    from_bridge = before.hook == after.hook == "tx" and here.bridge == before.ifindex
    # Beyond the bridge device the packet is routed, filtered and translated; up to it, and from port to port, only bridged.
    return "bridge" if ports or to_bridge or from_bridge else "other"


def translations(
    hops: Sequence[Event],
    predicted: Sequence[Translation],
    *,
    reverse: bool,
    confirmed: Collection[Binding] = (),
    copied: Collection[int] = (),
    sent: FlowKey | None = None,
    received: FlowKey | None = None,
) -> tuple[Translation, ...]:
    """Changes of the innermost addresses or ports between adjacent hops, each with the rule that prediction holds responsible.

    `confirmed` are the kernel's conntrack entries for this flow. `copied` are the hops (from 1) that a user-space process sent
    anew: a change there is its doing. `sent` and `received` are the packet as its sender's socket gave it away and as its
    receiver got it: what a node's own rules rewrite before the first device and after the last shows only in them.
    """
    keys: list[tuple[int, FlowKey | None]] = [(number, innermost(hop.headers)) for number, hop in enumerate(hops, start=1)]
    if keys and sent is not None:
        keys.insert(0, (1, sent))
    if keys and received is not None:
        keys.append((len(hops), received))
    found: list[Translation] = []
    for (_, before), (number, after) in pairwise(keys):
        if before is None or after is None or before == after:
            continue
        if number in copied:
            found.append(_proxied(number, before, after, predicted, reverse))
            continue
        middle = FlowKey(before.src, after.dst, before.sport, after.dport)
        if middle != before:
            found.append(_translation("dnat", number, before, middle, predicted, reverse, confirmed))
        if middle != after:
            found.append(_translation("snat", number, middle, after, predicted, reverse, confirmed))
    return tuple(found)


def _proxied(hop: int, before: FlowKey, after: FlowKey, predicted: Sequence[Translation], reverse: bool) -> Translation:
    candidates = [item for item in predicted if item.kind == "proxy"]
    rule = next((item.rule for item in candidates if _same_endpoint(item.after.dst, pair(after).dst)), None)
    return Translation(hop, "proxy", reverse, pair(before), pair(after), rule, hook="output")


def _translation(
    side: str,
    hop: int,
    before: FlowKey,
    after: FlowKey,
    predicted: Sequence[Translation],
    reverse: bool,
    entries: Collection[Binding],
) -> Translation:
    source_side = side == "snat"
    kind, rule, hook, backwards = side, None, None, reverse
    for candidate in predicted:
        changed_source = candidate.before.src != candidate.after.src
        if candidate.kind == "proxy" or changed_source != source_side:
            continue
        target = candidate.after.src if source_side else candidate.after.dst
        if _same_endpoint(target, pair(after).src if source_side else pair(after).dst):
            kind, rule, hook, backwards = candidate.kind, candidate.rule, candidate.hook, candidate.reverse
            break
    # No entry is no denial: a later connection of the same ports may have taken its place.
    known = any(_explains(entry, before, after, source_side) for entry in entries) or None
    return Translation(hop, kind, backwards, pair(before), pair(after), rule, hook=hook, conntrack=known)


def _explains(entry: Binding, before: FlowKey, after: FlowKey, source_side: bool) -> bool:
    """This entry makes just this change, in the connection's direction or in that of its answers."""
    original, reply = entry
    for come, gone in ((original, reply.swapped()), (reply, original.swapped())):
        if source_side:
            changed = (come.src, come.sport, gone.src, gone.sport) == (before.src, before.sport, after.src, after.sport)
            if changed and (after.dst, after.dport) in ((come.dst, come.dport), (gone.dst, gone.dport)):
                return True
        else:
            changed = (come.dst, come.dport, gone.dst, gone.dport) == (before.dst, before.dport, after.dst, after.dport)
            if changed and (before.src, before.sport) in ((come.src, come.sport), (gone.src, gone.sport)):
                return True
    return False


def pair(key: FlowKey) -> AddressPair:
    return AddressPair(endpoint(key.src, key.sport), endpoint(key.dst, key.dport))


def endpoint(address: str, port: int | None) -> str:
    """``10.0.0.1:80``, ``[fd00::1]:80``, or the bare address where there is no port."""
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _same_endpoint(predicted: str, observed: str) -> bool:
    """Equal, or equal but for a port that prediction could not know (``*``)."""
    return predicted == observed or (predicted.endswith(":*") and predicted[:-2] == observed.rpartition(":")[0])
