"""Journeys into paths: group probes that went the same way, align each way with the prediction, attach times. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from netpath.model.event import QUEUED, Event
from netpath.model.index import SnapshotIndex
from netpath.model.path import Delivery, Drop, Hop, Path, Prediction, ProbeCost, Stage, Stats
from netpath.model.snapshot import DeviceId
from netpath.trace import align as aligning
from netpath.trace import stages as staging
from netpath.trace import userspace
from netpath.trace.account import SEEN_ALONE, Account, Sighting, Timing, Unseen, kind
from netpath.trace.attribute import Binding, Place, Step, steps, translations
from netpath.trace.causes import explain, refused_send
from netpath.trace.correlate import DELIVERY_HOOKS, HOP_HOOKS, FlowKey, Journey, Leg, encapsulated, innermost
from netpath.trace.stages import Part, Registered
from netpath.trace.stats import summarise

HOOK_NAMES = {"socket": "socket readable", "local_in": "LOCAL_IN"}


@dataclass(frozen=True, slots=True)
class Scene:
    """What assembling needs to know besides the journeys."""

    index: SnapshotIndex
    watched: tuple[str, ...] = ("tx", "rx")
    """Directions whose hook was armed."""
    conntrack: Collection[Binding] = ()
    """The kernel's conntrack entries for this flow, as they were after the probes."""
    sent: FlowKey | None = None
    """Addresses and ports as the sender's socket has them."""
    registered: Registered = field(default_factory=Registered)
    """What the kernel runs at the netfilter hooks on the path, where it is to be told apart."""
    unseen: Unseen = SEEN_ALONE
    """See `netpath.trace.account.Account`."""


ReplyOf = Callable[[Path], Prediction | None]
"""The prediction of the answer to a packet that took this (predicted) path."""


def forward_paths(journeys: Sequence[Journey], prediction: Prediction, scene: Scene) -> tuple[Path, ...]:
    """The distinct ways that probes took to the destination, most frequent first."""
    return _paths([(journey.forward, prediction) for journey in journeys], scene, "forward")


def return_paths(journeys: Sequence[Journey], prediction: Prediction, reply_of: ReplyOf, scene: Scene) -> tuple[Path, ...]:
    """The distinct ways that answers took back; shares are of the probes that were answered.

    Each answer is compared with the one predicted for the way that its own probe took: a service has many.
    """
    replies: dict[int, Prediction | None] = {}
    legs: list[tuple[Leg, Prediction | None]] = []
    for journey in journeys:
        if journey.back is None:
            continue
        there = aligning.closest(prediction.paths, _keys(journey.forward), journey.forward.outcome)
        if id(there) not in replies:
            replies[id(there)] = reply_of(there) if there is not None and there.outcome == "delivered" else None
        legs.append((journey.back, replies[id(there)]))
    return _paths(legs, scene, "return")


def _paths(legs: Sequence[tuple[Leg, Prediction | None]], scene: Scene, direction: str) -> tuple[Path, ...]:
    groups: dict[tuple[Any, ...], list[tuple[Leg, Prediction | None]]] = defaultdict(list)
    for leg, prediction in legs:
        reason = leg.end.reason if leg.end is not None and leg.end.hook == "drop" else None
        groups[(tuple(_keys(leg)), leg.outcome, reason, id(prediction))].append((leg, prediction))
    ordered = sorted(groups.values(), key=len, reverse=True)
    return tuple(_path([leg for leg, _ in group], len(group) / len(legs), group[0][1], scene, direction) for group in ordered)


def _copied(leg: Leg) -> tuple[int, ...]:
    """The hops, from 1, before which a process received the packet: it is a copy that the process sent."""
    found: list[int] = []
    hop, received = 0, False
    for event in leg.marks:
        if event.hook in HOP_HOOKS:
            hop += 1
            if received:
                found.append(hop)
            received = False
        elif event.hook in DELIVERY_HOOKS and hop and not encapsulated(event.headers):
            received = True
    return tuple(found)


def _keys(leg: Leg) -> list[aligning.HopKey]:
    return [(DeviceId(event.netns, event.ifindex), event.hook) for event in leg.hops]


def _path(group: Sequence[Leg], share: float, prediction: Prediction | None, scene: Scene, direction: str) -> Path:
    leg = group[0]
    accounts = [Account(each, scene.unseen) for each in group]
    expected = aligning.closest(prediction.paths if prediction else (), _keys(leg), leg.outcome)
    lines = aligning.align(expected.hops if expected else (), _keys(leg), watched=scene.watched)
    if prediction is None or not prediction.paths:
        # Nothing was predicted for this direction: what was seen is simply what was seen.
        lines = tuple(replace(line, status="observed") for line in lines)
    hops: list[Hop] = []
    number_of: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        if line.observed is None:
            assert expected is not None and line.predicted is not None
            hops.append(replace(expected.hops[line.predicted], index=number, status=line.status))
            continue
        number_of[line.observed] = number
        hops.append(_observed_hop(number, line, accounts, expected, scene))
    copied = _copied(leg)
    spent = userspace.named(steps(leg.hops, [_place(scene.index, event) for event in leg.hops], copied), expected)
    parted = _parted(accounts, spent, scene)
    stages = tuple(_stages(parted, spent, number_of))
    predicted = expected.translations if expected else ()
    delivered = leg.end is not None and leg.end.hook in DELIVERY_HOOKS
    found = translations(
        leg.hops,
        predicted,
        reverse=direction == "return",
        confirmed=scene.conntrack,
        copied=copied,
        sent=scene.sent if direction == "forward" else None,
        received=innermost(leg.end.headers) if leg.end is not None and delivered else None,
    )
    last = number_of.get(len(leg.hops) - 1, 0)
    overhead = _overhead(accounts, parted, spent, len(found))
    path = Path(
        direction=direction,
        share=share,
        probes=len(group),
        outcome=leg.outcome,
        hops=tuple(hops),
        stages=stages,
        translations=tuple(replace(item, hop=number_of[item.hop - 1]) for item in found),
        drop=_drop(leg, last, expected, scene) if leg.outcome != "delivered" else None,
        delivery=_delivery(accounts, expected, scene),
        overhead=overhead,
        uncertain=expected.uncertain if expected else (),
    )
    if leg.hops:
        spaces = [scene.index.netns_ref(event.netns).name for event in leg.hops]
        overhead["userspace"]["boundary"] = userspace.boundary(path, spent, spaces, leg.hops[0].headers)
    return path


def _observed_hop(number: int, line: aligning.Aligned, accounts: Sequence[Account], expected: Path | None, scene: Scene) -> Hop:
    assert line.observed is not None
    position = line.observed
    event = accounts[0].leg.hops[position]
    device = DeviceId(event.netns, event.ifindex)
    link = scene.index.link(device)
    return Hop(
        index=number,
        status=line.status,
        node=scene.index.node_of(event.netns),
        netns=scene.index.netns_ref(event.netns),
        workload=scene.index.workload_of(event.netns),
        device=scene.index.device_ref(device),
        direction=event.hook,
        length=event.length,
        ip_length=event.ip_length,
        mtu=link.mtu if link else None,
        headers=event.headers,
        note=expected.hops[line.predicted].note if expected and line.predicted is not None else None,
        since_start_ns=_stats(each.between(each.leg.hops[0], each.leg.hops[position]) for each in accounts),
        segment_ns=_stats(each.between(each.leg.hops[position - 1], each.leg.hops[position]) for each in accounts)
        if position
        else None,
    )


def _place(index: SnapshotIndex, event: Event) -> Place:
    device = DeviceId(event.netns, event.ifindex)
    link = index.link(device)
    return Place(link.kind, link.master if link.port is not None else None, index.is_tap(device)) if link else Place("unknown")


def _stats(timings: Iterable[Timing]) -> Stats | None:
    taken = list(timings)
    return summarise([item.raw - item.cost for item in taken], [item.raw for item in taken])


def probe_cost(journeys: Sequence[Journey], unseen: Unseen | None = None) -> ProbeCost:
    """What an event cost the probes of this very run, and half of its 95 % interval.

    Without `unseen` it is what was measured inside the events, and the uncertainty that of its mean; what the kernel takes to
    enter and leave a probe's program can't be seen from inside it and is in neither.
    """
    known = unseen if unseen is not None else SEEN_ALONE
    costs: list[float] = []
    doubts: list[float] = []
    for journey in journeys:
        account = Account(journey.forward, known)
        for sighting in account.sightings:
            if sighting.cost_ns:
                costs.append(sighting.cost_ns + known.ns.get(kind(sighting), 0.0) * account.slowness)
                doubts.append(known.uncertainty.get(kind(sighting), 0.0) * account.slowness)
    stats = summarise(costs)
    if stats is None:
        return ProbeCost(None, None)
    low, high = stats.ci95 or (stats.min, stats.max)
    whole = (high - low) / 2 + sum(doubts) / len(doubts)
    return ProbeCost(stats.mean, whole if whole != float("inf") else None)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A stretch of the way between two hops (0: the sender's call; twice the same: from the last hop to delivery), in its parts."""

    from_hop: int
    to_hop: int
    parts: tuple[Part, ...]
    netns: int | None
    """The namespace that all of it lies in; None: it leads from one to another."""
    from_call: bool = False
    """A further part lies before the first one: from the sender's call to the first sighting."""

    def key(self) -> tuple[Any, ...]:
        return (self.from_hop, self.to_hop, self.from_call, *(_part_key(part) for part in self.parts))


_Column = Sequence[tuple[Account, _Stretch]]
"""One stretch of the way, of all legs that say in which parts it falls."""


def _part_key(part: Part) -> tuple[Any, ...]:
    return part.stage, _sighting_key(part.before), _sighting_key(part.after)


def _sighting_key(sighting: Sighting) -> tuple[Any, ...]:
    return (sighting.netns, sighting.hook, getattr(sighting, "priority", None))


def _parted(accounts: Sequence[Account], spent: Sequence[Step], scene: Scene) -> tuple[_Column, ...]:
    """Every stretch of the way in its parts; of the legs only those that were seen at the same places as most.

    Legs whose marks were in other namespaces say nothing about a stretch's parts.
    """
    kinds: dict[frozenset[int] | None, dict[tuple[Any, ...], list[_Column]]] = defaultdict(lambda: defaultdict(list))
    for each in accounts:
        stretches = _stretches(each, spent, scene)
        key = tuple(stretch.key() for stretch in stretches)
        kinds[each.leg.marked][key].append([(each, stretch) for stretch in stretches])
    usual = {marked: max(groups.values(), key=len) for marked, groups in kinds.items()}
    columns: dict[tuple[int, int], list[tuple[Account, _Stretch]]] = defaultdict(list)
    for told in (True, False):
        # Where no leg had marks there is still the whole.
        left = set(columns)
        for marked, legs in usual.items():
            for account, stretch in (cell for leg in legs for cell in leg):
                place = (stretch.from_hop, stretch.to_hop)
                if place not in left and told == (marked is None or stretch.netns is None or stretch.netns in marked):
                    columns[place].append((account, stretch))
    return tuple(_alike(columns[place]) for place in sorted(columns))


def _alike(column: _Column) -> _Column:
    """The cells that fall in the same parts as most."""
    groups: dict[tuple[Any, ...], list[tuple[Account, _Stretch]]] = defaultdict(list)
    for account, stretch in column:
        groups[stretch.key()].append((account, stretch))
    return max(groups.values(), key=len)


def _stretches(account: Account, spent: Sequence[Step], scene: Scene) -> tuple[_Stretch, ...]:
    leg = account.leg
    if not leg.hops:
        return ()

    def parts(before: Event | None, after: Event, base: str) -> tuple[Part, ...]:
        points = staging.between(before, after, leg.marks, leg.stamps)
        return staging.split(points, base, scene.registered)

    first, called = account.sightings[0], leg.sent_ns is not None

    def within(before: Event, after: Event) -> int | None:
        return before.netns if before.netns == after.netns else None

    start, last, end = leg.hops[0], leg.hops[-1], leg.end
    found = [_Stretch(0, 1, parts(None, start, "other"), start.netns, called)] if called or first is not start else []
    for step in spent:
        before, after = leg.hops[step.from_hop - 1], leg.hops[step.to_hop - 1]
        found.append(_Stretch(step.from_hop, step.to_hop, parts(before, after, step.stage), within(before, after)))
    if end is not None and end.hook in DELIVERY_HOOKS:
        found.append(_Stretch(len(leg.hops), len(leg.hops), parts(last, end, "other"), within(last, end)))
    return tuple(found)


def _stages(parted: Sequence[_Column], spent: Sequence[Step], number_of: Mapping[int, int]) -> Iterator[Stage]:
    """The stages in order, each with its distribution; those of one stretch add up to the time from hop to hop."""
    steps_by_hop = {step.to_hop: step for step in spent}
    for column in parted:
        account, stretch = column[0]
        start, end = (number_of[hop - 1] if hop else 0 for hop in (stretch.from_hop, stretch.to_hop))
        if stretch.from_call:
            stage = "socket" if _starts_at_hook(account) else "other"
            yield Stage(stage, start, end, ns=_stats(each.since_call(each.sightings[0]) for each, _ in column))
        step = steps_by_hop[stretch.to_hop] if 0 < stretch.from_hop < stretch.to_hop else None
        for number, part in enumerate(stretch.parts):
            owner = step is not None and part is next((item for item in stretch.parts if item.stage == step.stage), None)
            parts = ((each, same.parts[number]) for each, same in column)
            yield Stage(
                part.stage,
                start,
                end,
                ns=_stats(each.between(same.before, same.after) for each, same in parts),
                bytes=step.bytes if step is not None and owner else 0,
                detail={**(step.detail if step is not None and owner else {}), **part.detail},
            )


def _starts_at_hook(account: Account) -> bool:
    """The first thing that was seen of the packet is its leaving the socket, before any device."""
    return kind(account.sightings[0]) in ("local_out", "stamp")


def _delivery(accounts: Sequence[Account], expected: Path | None, scene: Scene) -> Delivery | None:
    end = accounts[0].leg.end
    if end is None or end.hook == "drop" or accounts[0].leg.outcome != "delivered":
        return None
    foreseen = expected.delivery if expected and expected.delivery and expected.delivery.netns.inode == end.netns else None
    return Delivery(
        netns=scene.index.netns_ref(end.netns),
        to=foreseen.to if foreseen else ("socket" if end.hook == "socket" else "local"),
        process=foreseen.process if foreseen else None,
        hook=HOOK_NAMES.get(end.hook, end.hook),
        since_start_ns=_stats(each.between(each.leg.hops[0], each.leg.end) for each in accounts if each.leg.end and each.leg.hops),
        segment_ns=_stats(each.between(each.leg.hops[-1], each.leg.end) for each in accounts if each.leg.end and each.leg.hops),
    )


def _drop(leg: Leg, last: int, expected: Path | None, scene: Scene) -> Drop:
    """Where the packet ended, with the prediction's explanation where it foresaw the same end."""
    end = leg.end if leg.end is not None and leg.end.hook == "drop" else None
    foreseen = expected.drop if expected else None
    if foreseen is not None and not _same_end(foreseen, end, leg, last, expected):
        foreseen = None
    refused = refused_send(leg.send_error) if leg.send_error and end is None else None
    reason = end.reason if end and end.reason else (foreseen.reason if foreseen else "UNKNOWN")
    if refused is not None and foreseen is None:
        reason, cause, remedy = refused
        return Drop(hop=last, reason=reason, cause=cause, remedy=remedy)
    if reason in ("NOT_SPECIFIED", "UNKNOWN") and foreseen is not None:
        reason = foreseen.reason
    netns = end.netns if end else (leg.hops[-1].netns if leg.hops else None)
    device = None
    if end is not None and end.ifindex:
        device = scene.index.device_ref(DeviceId(end.netns, end.ifindex))
    cause, remedy = explain(reason, end.symbol if end else None, leg)
    return Drop(
        hop=last,
        reason=reason,
        cause=foreseen.cause if foreseen else cause,
        remedy=foreseen.remedy if foreseen else remedy,
        device=device or (foreseen.device if foreseen else None),
        netns=scene.index.netns_ref(netns) if netns is not None else (foreseen.netns if foreseen else None),
        rule=foreseen.rule if foreseen else None,
    )


def _same_end(foreseen: Drop, end: Event | None, leg: Leg, last: int, expected: Path | None) -> bool:
    """The prediction ended here too: the same reason, or (where the kernel gave none) in the same namespace after the same hop."""
    if end is not None and end.reason not in (None, "NOT_SPECIFIED"):
        return foreseen.reason == end.reason
    if expected is None:
        return False
    observed = _keys(leg)
    return [aligning.key_of(hop) for hop in expected.hops[: foreseen.hop]] == observed


def _overhead(accounts: Sequence[Account], parted: Sequence[_Column], spent: Sequence[Step], translated: int) -> dict[str, Any]:
    total = _stats(
        each.between(each.leg.hops[0], each.leg.end or each.leg.hops[-1])
        for each in accounts
        if each.leg.hops and each.leg.outcome == "delivered"
    )
    split = any(stamp.hook != QUEUED for column in parted for each, _ in column for stamp in each.leg.stamps)

    def of(*names: str, known: bool = True) -> tuple[Stats | None, float | None]:
        """(ns, share of the way) of the stages of these names, from the first device on; `known`: they can't hide in others."""
        concerned = [
            column for column in parted if column[0][1].from_hop and any(part.stage in names for part in column[0][1].parts)
        ]
        if not concerned:
            return None, 0.0 if total and known else None
        # A leg has all of it, or, where marks were in some of the namespaces only, is added to the next one of the others.
        sums = [
            [each.between(part.before, part.after) for each, stretch in row for part in stretch.parts if part.stage in names]
            for row in zip(*concerned, strict=False)
        ]
        stats = _stats(Timing(sum(item.raw for item in items), sum(item.cost for item in items)) for items in sums)
        return stats, (stats.mean / total.mean if stats and total and total.mean else None)

    encap, encap_share = of("encap", "decap")
    user, user_share = of("userspace")
    # Without marks at the netfilter hooks both happen inside one segment, beside routing and filtering.
    nat, nat_share = of("nat", known=split)
    conntrack, conntrack_share = of("conntrack", known=split)
    return {
        "encap": {"bytes": sum(step.bytes for step in spent if step.bytes > 0), "ns": encap, "share": encap_share},
        "nat": {"translations": translated, "ns": nat, "share": nat_share},
        "conntrack": {"ns": conntrack, "share": conntrack_share},
        "userspace": {
            "crossings": sum(step.stage == "userspace" for step in spent),
            "ns": user,
            "share": user_share,
            "boundary": [],
        },
        "one_way_ns": total,
    }
