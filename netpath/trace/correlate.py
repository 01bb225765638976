"""Which events belong together, in which order, and how each probe ended. Pure: events in, journeys out.

The events of one probe share its sequence number, but not one packet: a flooding bridge copies it, a user-space relay sends
it anew, an answer carries the same payload back. So a journey is found backwards: from where the probe ended (a socket, a drop,
or the last sighting) to its sender, each event's predecessor being the latest earlier one that could have led to it by the
wiring of the devices (a veth's rx comes from its peer's tx, a bridge port's tx from another port's rx, ...).
What is not on that way is a copy, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from netpath.model.event import QUEUED, Event, Stamp
from netpath.model.index import SnapshotIndex
from netpath.model.packet import Headers, Icmp, Ipv4, Ipv6, Tcp, Udp
from netpath.model.snapshot import DeviceId, Link

HOP_HOOKS = ("tx", "rx")
DELIVERY_HOOKS = ("local_in", "socket")

_PASSES_DOWN = frozenset({"veth", "physical", "loopback", "bridge"})
"""Kinds whose tx is the end of the stack: what follows happens elsewhere. A tx on any other kind leads to a tx below it."""

NOT_THE_END = frozenset(
    {"OTHERHOST", "PACKET_SOCK_ERROR", "SKB_CONSUMED", "BRIDGE_INGRESS_STP_STATE", "BRIDGE_NON_FORWARDING_STATE"}
)
"""Reasons with which a bridge's copies end where nobody waits for them; they matter only when nothing else is known."""

_REFUSALS = frozenset({"NO_SOCKET", "NETFILTER_DROP", "NETFILTER_REJECT"})
"""Drops that, with an ICMP error or a reset sent back, mean that the packet was refused."""


@dataclass(frozen=True, slots=True)
class FlowKey:
    """The innermost addresses and ports."""

    src: str
    dst: str
    sport: int | None = None
    dport: int | None = None

    def swapped(self) -> FlowKey:
        return FlowKey(self.dst, self.src, self.dport, self.sport)


@dataclass(frozen=True, slots=True)
class Leg:
    """One probe's way in one direction."""

    outcome: str
    """delivered, rejected, dropped, lost."""
    hops: tuple[Event, ...]
    marks: tuple[Event, ...]
    """All events on the way in order: the hops, and what lies between them (local_in of an outer packet, ...)."""
    end: Event | None
    """The delivery or the drop; None when it was lost."""
    copies: int
    """Sightings of copies that took no part (a flooding bridge)."""
    refusal: Event | None = None
    """The first sighting of the ICMP error or reset that came back."""
    send_error: int = 0
    """The errno with which the sender's kernel refused it, before any device."""
    stamps: tuple[Stamp, ...] = ()
    """Its marks at netfilter hooks, in order."""
    sent_ns: int | None = None
    """When the sender called the kernel, where that is known (CLOCK_MONOTONIC)."""
    marked: frozenset[int] | None = None
    """The namespaces in which marks were attached when it was sent; None: all on the way."""


@dataclass(frozen=True, slots=True)
class Journey:
    """One probe: its way forward, and back if something came back."""

    sequence: int
    forward: Leg
    back: Leg | None


def innermost(headers: Headers) -> FlowKey | None:
    """Addresses and ports of the innermost IP packet (an ICMP error's quotation is not entered)."""
    found: FlowKey | None = None
    for header in headers:
        if isinstance(header, Ipv4 | Ipv6):
            found = FlowKey(header.src, header.dst)
        elif isinstance(header, Udp | Tcp) and found is not None:
            found = FlowKey(found.src, found.dst, header.sport, header.dport)
        elif isinstance(header, Icmp):
            break
    return found


def encapsulated(headers: Headers) -> bool:
    """True when an IP packet carries another one (an ICMP error's quotation does not count)."""
    count = 0
    for header in headers:
        if isinstance(header, Icmp):
            break
        count += isinstance(header, Ipv4 | Ipv6)
    return count > 1


def correlate(
    events: Sequence[Event],
    index: SnapshotIndex,
    sequences: Sequence[int],
    send_errors: Mapping[int, int] | None = None,
    *,
    stamps: Sequence[Stamp] = (),
    sent_ns: Mapping[int, int] | None = None,
    marked: frozenset[int] | None = None,
) -> tuple[Journey, ...]:
    """One journey for each of `sequences`, also for those of which nothing was seen (lost before the first hop).

    `send_errors` are the errno values of sends that the kernel refused, `sent_ns` the times of the calls, by sequence number.
    `marked`: see `Leg`.
    """
    refused = send_errors or {}
    stamped: dict[int, list[Stamp]] = {}
    for stamp in stamps:
        stamped.setdefault(stamp.sequence, []).append(stamp)
    by_sequence: dict[int, list[Event]] = {sequence: [] for sequence in sequences}
    for event in events:
        if event.sequence in by_sequence:
            by_sequence[event.sequence].append(event)
    journeys = [
        _journey(number, sorted(seen, key=lambda e: e.time_ns), index, refused.get(number, 0))
        for number, seen in sorted(by_sequence.items())
    ]
    return tuple(
        _timed(journey, stamped.get(journey.sequence, []), (sent_ns or {}).get(journey.sequence), marked) for journey in journeys
    )


def _timed(journey: Journey, stamps: list[Stamp], sent_ns: int | None, marked: frozenset[int] | None) -> Journey:
    stamps = sorted(stamps, key=lambda stamp: stamp.time_ns)
    forward, back = journey.forward, journey.back
    return replace(
        journey,
        forward=replace(forward, stamps=_on_the_way(forward, stamps), sent_ns=sent_ns, marked=marked),
        back=replace(back, stamps=_on_the_way(back, stamps), marked=marked) if back is not None else None,
    )


def _on_the_way(leg: Leg, stamps: Sequence[Stamp]) -> tuple[Stamp, ...]:
    """The marks of the very packet: between two sightings of it, in the namespace and the buffer of one of them."""
    if not leg.marks or not stamps:
        return ()
    first = leg.marks[0]
    found = [
        stamp
        for stamp in stamps
        if stamp.time_ns < first.time_ns
        and (stamp.netns, stamp.skb) == (first.netns, first.skb)
        and stamp.hook in ("output", "postrouting", QUEUED)
    ]
    for one, two in pairwise(leg.marks):
        found += [
            stamp
            for stamp in stamps
            if one.time_ns < stamp.time_ns < two.time_ns
            and stamp.netns in (one.netns, two.netns)
            and stamp.skb in (one.skb, two.skb)
        ]
    return tuple(found)


def _journey(sequence: int, events: list[Event], index: SnapshotIndex, send_error: int) -> Journey:
    probe = [event for event in events if event.role == "probe"]
    answers = [event for event in events if event.role == "answer"]
    errors = [event for event in events if event.role == "error"]
    if not answers:
        start = _echo_start(probe)
        if start is not None:
            probe, answers = probe[:start], probe[start:]
    refusal = next(iter(errors), None) or next((event for event in answers if _is_reset(event)), None)
    answered = any(not _is_reset(event) for event in answers)
    forward = _leg(probe, index, refusal, answered)
    if send_error and forward.outcome != "delivered":
        forward = replace(forward, outcome="dropped", send_error=send_error)
    back_events = answers or errors
    back = _leg(back_events, index, None) if back_events else None
    return Journey(sequence, forward, back)


def _is_reset(event: Event) -> bool:
    return any(isinstance(header, Tcp) and "R" in header.flags for header in event.headers)


def _echo_start(events: list[Event]) -> int | None:
    """Index of the first event of an echoed UDP payload: it leaves the namespace that received, with its addresses swapped."""
    received: dict[int, FlowKey] = {}
    for position, event in enumerate(events):
        key = innermost(event.headers)
        if key is None or encapsulated(event.headers):
            continue
        if event.hook in DELIVERY_HOOKS:
            received[event.netns] = key
        elif event.hook in ("tx", "local_out") and event.netns in received and key == received[event.netns].swapped():
            return position
    return None


def _leg(events: list[Event], index: SnapshotIndex, refusal: Event | None, answered: bool = False) -> Leg:
    end = _terminal(events, index, answered)
    last = end or next((event for event in reversed(events) if event.hook in HOP_HOOKS), None)
    marks = _chain(last, events, index) if last is not None else ()
    hops = tuple(event for event in marks if event.hook in HOP_HOOKS)
    copies = sum(event.hook in HOP_HOOKS for event in events) - len(hops)
    if end is None:
        outcome = "rejected" if refusal is not None and _refuses(refusal) else "lost"
    elif end.hook == "drop":
        outcome = "rejected" if refusal is not None and (end.reason in _REFUSALS or _is_reset(refusal)) else "dropped"
    else:
        outcome = "rejected" if refusal is not None and (_is_reset(refusal) or _refuses(refusal)) else "delivered"
    return Leg(outcome, hops, marks, end, copies, refusal)


def _refuses(error: Event) -> bool:
    """An ICMP error that says that the destination refused: port or protocol unreachable, or forbidden (RFC 1812, 5.2.7.1)."""
    for header in error.headers:
        if isinstance(header, Icmp):
            if header.proto == "icmpv6":
                return header.type == 1 and header.code in (1, 4, 5, 6)
            return header.type == 3 and header.code in (2, 3, 9, 10, 13)
    return _is_reset(error)


def _terminal(events: list[Event], index: SnapshotIndex, answered: bool) -> Event | None:
    """Where the probe ended: the last delivery, unless its packet was dropped after it; else the drop that is furthest along."""
    delivery: Event | None = None
    for event in events:
        if event.hook in DELIVERY_HOOKS and not encapsulated(event.headers):
            delivery = event
    drops = [event for event in events if event.hook == "drop"]
    if delivery is not None:
        if delivery.hook == "local_in":
            for drop in drops:
                # Before 6.2 the kernel's ICMPv6 responder freed what it had answered as if it dropped it (net/ipv6/icmp.c).
                spent = answered and drop.reason == "NOT_SPECIFIED"
                same = drop.netns == delivery.netns and drop.skb == delivery.skb
                if drop.time_ns >= delivery.time_ns and same and not spent:
                    return drop
        return delivery
    if not drops:
        return None
    end = max(drops, key=lambda drop: (drop.reason not in NOT_THE_END, len(_chain(drop, events, index)), -drop.time_ns))
    if end.reason in NOT_THE_END:
        # What a process captured goes on as a copy, while the frame itself ends where nobody else wanted it.
        last = next((event for event in reversed(events) if event.hook in HOP_HOOKS), end)
        way = _chain(last, events, index)
        if last.time_ns > end.time_ns and any(event is here for event in way for here in _chain(end, events, index)[-2:-1]):
            return None
    return end


def _chain(last: Event, events: list[Event], index: SnapshotIndex) -> tuple[Event, ...]:
    """The events that led to `last`, oldest first, `last` included."""
    position = max(number for number, event in enumerate(events) if event is last)
    chain = [last]
    while position >= 0:
        before = _predecessor(chain[-1], events[:position], index)
        if before is None:
            break
        chain.append(events[before])
        position = before
    return tuple(reversed(chain))


def _predecessor(event: Event, earlier: list[Event], index: SnapshotIndex) -> int | None:
    link = index.link(DeviceId(event.netns, event.ifindex))
    candidates = [number for number in range(len(earlier) - 1, -1, -1) if earlier[number].hook != "drop"]
    if event.hook == "rx":
        if link is None or link.kind == "physical":
            return _foreign_tx(candidates, earlier, event, index)
        if link.kind == "loopback":
            return _first(candidates, earlier, lambda e: e.hook == "tx" and _at(e, event.netns, link.ifindex))
        if link.kind == "veth":
            peer = link.peer
            found = _first(candidates, earlier, lambda e: e.hook == "tx" and peer == DeviceId(e.netns, e.ifindex))
            return found if found is not None else _foreign_tx(candidates, earlier, event, index)
        return _first(candidates, earlier, lambda e: e.netns == event.netns and e.hook != "tx")
    if event.hook == "tx" and link is not None and link.master is not None:
        bridge = link.master
        master = index.link(DeviceId(event.netns, bridge))
        if master is not None and master.kind == "bridge":
            return _first(candidates, earlier, lambda e: _enters_bridge(e, event.netns, bridge, index))
    if event.hook in ("tx", "rx", "local_out"):
        return _first(candidates, earlier, lambda e: e.netns == event.netns and not _left(e, index))
    # A delivery or a drop: the same packet's latest sighting here, else the latest on its device, else the latest here.
    here = [number for number in candidates if earlier[number].netns == event.netns]
    # A buffer that is free is used again at once: a datagram's, say, for the packet that a process took out of it.
    wrapped = encapsulated(event.headers)
    for wanted in (
        lambda e: e.skb == event.skb and e.skb != 0 and encapsulated(e.headers) == wrapped,
        lambda e: e.ifindex == event.ifindex and e.ifindex != 0,
        lambda e: True,
    ):
        found = _first(here, earlier, wanted)
        if found is not None:
            return found
    return None


def _first(candidates: list[int], events: list[Event], wanted: object) -> int | None:
    assert callable(wanted)
    return next((number for number in candidates if wanted(events[number])), None)


def _at(event: Event, netns: int, ifindex: int) -> bool:
    return event.netns == netns and event.ifindex == ifindex


def _foreign_tx(candidates: list[int], events: list[Event], event: Event, index: SnapshotIndex) -> int | None:
    """The wire is not modelled: what arrives comes from the latest tx of another namespace."""
    return _first(candidates, events, lambda e: e.hook == "tx" and e.netns != event.netns and _left(e, index))


def _enters_bridge(event: Event, netns: int, bridge: int, index: SnapshotIndex) -> bool:
    if event.netns != netns:
        return False
    if event.ifindex == bridge:
        return event.hook == "tx"
    link = index.link(DeviceId(netns, event.ifindex))
    return event.hook == "rx" and link is not None and link.master == bridge


def _left(event: Event, index: SnapshotIndex) -> bool:
    """True for a tx after which the packet is no longer in this part of the stack."""
    if event.hook != "tx":
        return False
    link: Link | None = index.link(DeviceId(event.netns, event.ifindex))
    return link is None or link.kind in _PASSES_DOWN
