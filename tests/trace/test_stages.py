"""Where marks go, and how the time between them is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from netpath.model.event import LOCAL_IN_PRIORITY, LOCAL_OUT_PRIORITY, QUEUED, Boundary, Event, Stamp
from netpath.model.index import SnapshotIndex
from netpath.model.path import Prediction
from netpath.model.snapshot import Netfilter, Xtables
from netpath.netfilter.evaluate import RulesetEvaluator
from netpath.trace.account import SEEN_ALONE, Account, Unseen
from netpath.trace.assemble import Scene, forward_paths
from netpath.trace.correlate import Journey, Leg, correlate
from netpath.trace.session import round_trips
from netpath.trace.stages import Registered, between, plan, split
from tests.trace import scene

N = scene.NODE1
NOTHING = Prediction("uncertain", (), None)
FULL = Registered(
    {
        (N, 4, "prerouting"): ((-200, "conntrack"), (-150, "filter"), (-100, "nat")),
        (N, 4, "input"): ((0, "filter"), (100, "nat")),
        (N, 4, "forward"): ((-150, "filter"), (0, "filter")),
        (N, 4, "output"): ((-200, "conntrack"), (-100, "nat"), (0, "filter")),
        (N, 4, "postrouting"): ((100, "nat"),),
        (scene.POD1, 4, "prerouting"): (),
        (scene.POD1, 4, "forward"): (),
        (scene.POD1, 4, "output"): (),
    }
)


def places(registered: Registered, netns: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for boundary in registered.boundaries(netns):
        found.setdefault(boundary.hook, []).append(boundary.priority)
    return found


def test_marks_go_around_what_is_registered_and_nowhere_else() -> None:
    assert places(FULL, N) == {
        "prerouting": [-201, -199, -149, -99],
        "input": [-1, 1],  # the delivery hook follows
        "forward": [-151, 1],  # two tables of one kind are one stage
        "output": [-199, -99, 1],  # the sending hook is before them
        "postrouting": [99, 101],
    }
    assert places(FULL, scene.POD1) == {"prerouting": [0], "forward": [0]}


def test_a_mark_may_move_where_another_run_has_its_own_but_not_past_what_it_is_to_separate() -> None:
    for boundary in FULL.boundaries(N):
        entries = [priority for priority, _ in FULL.at[N, 4, boundary.hook]]

        def before(place: int, entries: list[int] = entries) -> list[int]:
            return [entry for entry in entries if entry < place]

        # A program goes before what has its own priority.
        assert before(boundary.priority) == before(boundary.limit)
        assert boundary.limit != boundary.priority


def stamp(time: int, hook: str, priority: int, **more: int) -> Stamp:
    return Stamp(time, N, 4, hook, priority, 1, **more)


def names(points: Sequence[object], base: str, registered: Registered = FULL) -> list[str]:
    assert isinstance(points[0], Event) and isinstance(points[-1], Event)
    parts = split(
        between(points[0], points[-1], [p for p in points if isinstance(p, Event)], [p for p in points if isinstance(p, Stamp)]),
        base,
        registered,
    )
    assert [(part.before, part.after) for part in parts] == list(pairwise(points))
    return [part.stage for part in parts]


def device(time: int, hook: str, ifindex: int) -> Event:
    return scene.event(time, hook, N, ifindex, scene.inner())


def local(time: int, hook: str) -> Event:
    return scene.event(time, hook, N, 2, scene.inner())


FORWARDED = [
    device(0, "rx", 4),
    stamp(1, "prerouting", -201),
    stamp(2, "prerouting", -199),
    stamp(3, "prerouting", -149),
    stamp(4, "prerouting", -99),
    stamp(5, "forward", -151),
    stamp(6, "forward", 1),
    stamp(7, "postrouting", 99),
    stamp(8, "postrouting", 101),
    device(9, "tx", 3),
]


QUEUE = stamp(5, QUEUED, 0)


def test_a_forwarded_packet() -> None:
    expected = ["other", "conntrack", "filter", "nat", "route", "filter", "route", "nat", "other"]
    assert names(FORWARDED, "other") == expected


@pytest.mark.parametrize("missing", range(1, 9))
def test_without_a_mark_what_it_separated_is_other(missing: int) -> None:
    kept = FORWARDED[:missing] + FORWARDED[missing + 1 :]
    whole, less = names(FORWARDED, "other"), names(kept, "other")
    merged = {whole[missing - 1], whole[missing]}
    assert less == [*whole[: missing - 1], "other" if len(merged) > 1 else merged.pop(), *whole[missing + 1 :]]


def test_bridged_packets_are_not_routed_between_the_hooks() -> None:
    marks: list[Event | Stamp] = [stamp(1, "prerouting", -99), stamp(2, "forward", -151), stamp(3, "forward", 1)]
    assert names([device(0, "rx", 5), *marks, device(4, "tx", 6)], "bridge") == ["other", "bridge", "filter", "bridge"]


def test_a_tunnel_is_what_lies_between_its_device_and_the_local_hooks() -> None:
    out = [device(0, "tx", 3), local(1, "local_out"), stamp(2, "output", -199), stamp(3, "output", -99), stamp(4, "output", 1)]
    out += [stamp(5, "postrouting", 99), stamp(6, "postrouting", 101), device(7, "tx", 2)]
    assert names(out, "encap") == ["encap", "conntrack", "nat", "filter", "route", "nat", "other"]
    back = [device(0, "rx", 2), stamp(1, "prerouting", -99), stamp(2, "input", -1), stamp(3, "input", 1), local(4, "local_in")]
    assert names([*back, device(5, "rx", 3)], "decap") == ["other", "route", "filter", "nat", "decap"]


@pytest.mark.parametrize(
    ("points", "base", "expected"),
    [
        ([device(0, "rx", 4), QUEUE, device(9, "tx", 3)], "bridge", ["bridge", "qdisc"]),
        (
            [device(0, "rx", 4), *FORWARDED[7:9], stamp(8, QUEUED, 0), device(9, "tx", 3)],
            "other",
            ["other", "nat", "other", "qdisc"],
        ),
        ([device(0, "rx", 4), QUEUE, local(9, "socket")], "other", ["other", "other"]),
    ],
    ids=["bridged", "forwarded", "never sent"],
)
def test_a_queue(points: list[Event | Stamp], base: str, expected: list[str]) -> None:
    """From where a queueing discipline takes a packet to where the device sends it."""
    assert names(points, base) == expected


def test_up_to_the_socket() -> None:
    end = local(5, "socket")
    assert names([device(0, "rx", 2), stamp(1, "prerouting", -99), stamp(2, "input", -1), local(4, "local_in"), end], "other") == [
        "other",
        "route",
        "other",  # filter and nat, which no mark separates
        "socket",
    ]


def test_a_mark_of_another_packet_is_not_on_the_way() -> None:
    events = scene.forward()
    one, two = next((a, b) for a, b in pairwise(events) if a.netns == b.netns == N)
    middle = (one.time_ns + two.time_ns) // 2
    mine = Stamp(middle, N, 4, "forward", 1, one.sequence, skb=one.skb)
    others = [replace(mine, skb=one.skb + 1), replace(mine, netns=scene.POD2), replace(mine, sequence=one.sequence + 1)]
    (journey,) = correlate(events, SnapshotIndex(scene.snapshot()), [one.sequence], stamps=[mine, *others])
    assert journey.forward.stamps == (mine,)


def with_marks(count: int = 4, spread: int = 0) -> tuple[list[Event], list[Stamp], dict[int, int]]:
    """Probes over the scene's overlay, each with marks where the first node routes it."""
    events, stamps, sent = [], [], {}
    for number in range(1, count + 1):
        for event in scene.forward():
            events.append(replace(event, sequence=number, time_ns=event.time_ns + number * 10**9, cost_ns=10 + number))
        mine = [event for event in events if event.sequence == number]
        bridge = next(event for event in mine if event.netns == N and event.hook == "rx" and event.ifindex == 4)
        for step, (hook, priority) in enumerate((("prerouting", -99), ("forward", -151), ("forward", 1), ("postrouting", 99))):
            at = bridge.time_ns + 10 * (step + 1) + spread * number
            stamps.append(Stamp(at, N, 4, hook, priority, number, skb=bridge.skb, cost_ns=3))
        sent[number] = mine[0].time_ns - 500
    return events, stamps, sent


def test_the_stages_of_a_segment_add_up_to_it() -> None:
    events, stamps, sent = with_marks()
    index = SnapshotIndex(scene.snapshot())
    journeys = correlate(events, index, range(1, 5), stamps=stamps, sent_ns=sent)
    unseen = Unseen({"tx": 7.0, "rx": 5.0, "stamp": 3.0, "local_in": 2.0, "socket": 2.0})
    (path,) = forward_paths(journeys, NOTHING, Scene(index, registered=FULL, unseen=unseen))
    inside = [stage for stage in path.stages if stage.from_hop == 3]
    assert [stage.stage for stage in inside] == ["other", "route", "filter", "route", "other"]
    for hop in path.hops[1:]:
        stages = [stage.ns for stage in path.stages if stage.to_hop == hop.index == stage.from_hop + 1]
        assert hop.segment_ns is not None and stages
        assert sum(ns.mean for ns in stages if ns) == pytest.approx(hop.segment_ns.mean)
        assert sum(ns.uncorrected_mean for ns in stages if ns) == pytest.approx(hop.segment_ns.uncorrected_mean)
    assert path.overhead is not None
    whole = sum(stage.ns.mean for stage in path.stages if stage.from_hop and stage.ns)
    assert whole == pytest.approx(path.overhead["one_way_ns"].mean)
    call = next(stage for stage in path.stages if stage.from_hop == 0)
    assert call.ns is not None and call.ns.uncorrected_mean == 500
    assert path.overhead["nat"]["ns"] is None and path.overhead["nat"]["share"] == 0.0


def test_where_marks_go_in_turns_a_stretch_is_split_by_the_probes_that_met_some_there() -> None:
    events, stamps, sent = with_marks(6, spread=1)
    index = SnapshotIndex(scene.snapshot())
    whole = Scene(index, registered=FULL)

    def legs(numbers: Sequence[int], marked: frozenset[int] | None, *, stamped: bool) -> list[Journey]:
        mine = [item for item in stamps if stamped and item.sequence in numbers]
        return list(correlate(events, index, numbers, stamps=mine, sent_ns=sent, marked=marked))

    here, elsewhere = frozenset({N}), frozenset({scene.NODE2})
    (one,) = forward_paths(legs((1, 3), None, stamped=True), NOTHING, whole)
    # Four probes without marks there are more than two with them, and yet say nothing of what lies within.
    mixed = legs((1, 3), here, stamped=True) + legs((2, 4, 5, 6), elsewhere, stamped=False)
    (path,) = forward_paths(mixed, NOTHING, whole)
    assert [stage for stage in path.stages if stage.from_hop == 3] == [stage for stage in one.stages if stage.from_hop == 3]
    assert path.probes == 6 and [hop.segment_ns.count for hop in path.hops if hop.segment_ns] == [6] * (len(path.hops) - 1)
    # From one namespace to another there are no marks: all know of it. In the other node's only those of its turn.
    counts = {stage.from_hop: stage.ns.count for stage in path.stages if stage.ns}
    across = [number for number, (a, b) in enumerate(pairwise(path.hops), start=1) if a.netns != b.netns]
    assert across and all(counts[number] == 6 for number in across)
    there = [number for number, (a, b) in enumerate(pairwise(path.hops), start=1) if a.netns == b.netns == path.hops[-2].netns]
    assert there and all(counts[number] == 4 for number in there)
    # Where nobody had a turn there is the whole of it, once.
    (none,) = forward_paths(legs((1, 2), elsewhere, stamped=False), NOTHING, whole)
    assert [(stage.stage, stage.ns.count) for stage in none.stages if stage.from_hop == 3 and stage.ns] == [("other", 2)]


def test_what_is_not_seen_from_inside_is_taken_out_half_before_and_half_after() -> None:
    one = scene.event(1000, "tx", N, 3, scene.inner())
    two = Stamp(2000, N, 4, "output", 1, 1, cost_ns=40)
    three = scene.event(3000, "tx", N, 2, scene.inner())
    leg = Leg("delivered", (one, three), (replace(one, cost_ns=100), three), None, 0, stamps=(two,), sent_ns=400)
    account = Account(leg, Unseen({"tx": 20.0, "stamp": 8.0}))
    first = leg.marks[0]
    assert account.between(first, two).cost == 10 + 100 + 4
    assert account.between(two, three).cost == 4 + 40 + 10
    assert account.between(first, three).cost == account.between(first, two).cost + account.between(two, three).cost
    assert (account.since_call(first).raw, account.since_call(first).cost) == (600, 10)
    # Twice as slow by what the events say of themselves, twice as dear where they say nothing.
    slow = Account(leg, Unseen({"tx": 20.0, "stamp": 8.0}, calm={"tx": 50.0, "stamp": 20.0}))
    assert slow.between(first, two).cost == 20 + 100 + 8 and slow.since_call(first).cost == 20


def test_a_round_trip_is_corrected_on_both_ways() -> None:
    def leg(start: int, *costs: int) -> Leg:
        marks = [replace(scene.event(start + 1000 * i, "tx", N, 3, scene.inner()), cost_ns=cost) for i, cost in enumerate(costs)]
        return Leg("delivered", tuple(marks[:-1]), tuple(marks), marks[-1], 0)

    there, back = leg(1000, 100, 30, 5), leg(9000, 40, 7)
    timing = Account(there, Unseen({"tx": 20.0})).round_trip(Account(back, Unseen({"tx": 20.0})))
    # Whole events but for half of the first's way in, and all of the last but half of its way in.
    assert (timing.raw, timing.cost) == (9000, 10 + 100 + 50 + 25 + 60 + 10)
    with pytest.raises(ValueError, match="end"):
        Account(there, SEEN_ALONE).round_trip(Account(replace(back, end=None), SEEN_ALONE))
    journeys = [Journey(1, there, back), Journey(2, there, None), Journey(3, there, replace(back, outcome="lost"))]
    stats = round_trips(journeys, Unseen({"tx": 20.0}))
    assert stats is not None and (stats.count, stats.mean, stats.uncorrected_mean) == (1, 9000 - 255, 9000)


RULES = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -s 10.0.0.0/8 -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE
COMMIT
"""
NFT = '{"nftables": [{"chain": {"family": "inet", "table": "t", "name": "c", "hook": "prerouting", "prio": -160, "type": "filter", "policy": "accept"}}]}'


def test_what_is_registered_is_read_from_the_rulesets() -> None:
    node = scene.snapshot().namespaces[1]
    rules = RulesetEvaluator(replace(node, netfilter=Netfilter(xtables=(Xtables(4, "nft", RULES),), nft=NFT)))
    # The kernel asks its nat hooks everywhere as soon as there is a nat chain, and knows no chain that iptables only pretends.
    assert {hook: rules.registered(hook, 4) for hook in ("prerouting", "input", "forward", "output", "postrouting")} == {
        "prerouting": ((-200, "conntrack"), (-160, "filter"), (-100, "nat")),
        "input": ((100, "nat"),),
        "forward": ((0, "filter"),),
        "output": ((-200, "conntrack"), (-100, "nat")),
        "postrouting": ((100, "nat"),),
    }
    assert rules.registered("prerouting", 6) == ((-160, "filter"),) and rules.registered("forward", 6) == ()


def test_only_the_families_and_the_namespaces_of_the_predicted_path_are_marked() -> None:
    snapshot = scene.snapshot()
    index = SnapshotIndex(snapshot)
    events = scene.forward()
    (path,) = forward_paths(correlate(events, index, [events[0].sequence]), NOTHING, Scene(index))
    found = plan(Prediction("delivered", (replace(path, hops=path.hops[:2]),), None), index)
    spaces = {hop.netns.inode for hop in path.hops[:2]}
    assert {key[:2] for key in found.at} <= {(inode, 4) for inode in spaces}
    assert all(isinstance(boundary, Boundary) for inode in spaces for boundary in found.boundaries(inode))
    assert scene.FABRIC not in {inode for inode, _, _ in plan(Prediction("delivered", (path,), None), index).at}


def test_the_local_hooks_keep_out_of_the_way_of_tables() -> None:
    assert LOCAL_OUT_PRIORITY < -300 and LOCAL_IN_PRIORITY > 225
