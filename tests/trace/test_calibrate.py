"""The unseen cost of events, from made-up ways whose true cost is known."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

import pytest

from netpath.model.event import Event, Stamp
from netpath.trace.account import Unseen
from netpath.trace.calibrate import ARRANGEMENTS, Sample, estimate, samples
from tests.trace import scene

TRUE = {"tx": 180.0, "rx": 210.0, "stamp": 150.0}
COUNTS = {"tx": 6, "rx": 6, "stamp": 23}


def rounds(number: int, noise: float, drift: float = 0.0) -> list[dict[str, list[Sample]]]:
    generator = random.Random(7)
    found = []
    for turn in range(number):
        base = 20000 + drift * turn
        each: dict[str, list[Sample]] = {}
        for name, left in ARRANGEMENTS.items():
            counts = {kind: count for kind, count in COUNTS.items() if kind not in left}
            whole = base + sum(TRUE[kind] * count for kind, count in counts.items())
            each[name] = [Sample(whole + abs(generator.gauss(0, noise)), counts) for _ in range(30)]
        found.append(each)
    return found


def test_what_leaving_a_kind_away_changes_is_its_cost() -> None:
    found = estimate(rounds(5, 0))
    assert {kind: found.ns[kind] for kind in TRUE} == pytest.approx(TRUE)
    assert found.ns["socket"] == found.ns["local_in"] == pytest.approx(195)


def test_a_machine_that_gets_slower_does_not_look_like_cost() -> None:
    found = estimate(rounds(20, 200, drift=500))
    for kind, value in TRUE.items():
        assert found.ns[kind] == pytest.approx(value, abs=25)
        assert abs(found.ns[kind] - value) <= 3 * found.uncertainty[kind]


def test_slow_spells_of_the_machine_do_not_look_like_cost() -> None:
    """Two blocks in three are from a spell in which everything takes half as long again, events included."""
    generator = random.Random(3)
    calm = rounds(36, 50)
    spells = [
        {
            name: [replace(sample, net=sample.net * slow, own=[(kind, 60.0 * slow) for kind in sample.counts]) for sample in taken]
            for name, taken in each.items()
            for slow in [generator.choice((1.0, 1.5, 1.6))]
        }
        for each in calm
    ]
    found = estimate(spells)
    for kind, value in TRUE.items():
        assert found.ns[kind] == pytest.approx(value, abs=10)
        assert found.calm[kind] == pytest.approx(60)
    # Corrected, ways with all events and with few take as long, in calm blocks and in slow ones.
    for slow in (1.0, 1.5, 1.6):
        many, few = (
            [sample.corrected(found) for each in spells for sample in each[name] if sample.own[0][1] == 60 * slow]
            for name in ("all", "receptions")
        )
        assert statistics.median(many) == pytest.approx(20000 * slow, rel=0.015)
        assert statistics.median(few) == pytest.approx(20000 * slow, rel=0.015)


def test_a_kind_that_is_hardly_known_is_taken_to_cost_about_what_others_do() -> None:
    """Without a single calm block of one arrangement a difference says little, and costs below nothing are none."""
    generator = random.Random(5)
    found = rounds(24, 20)
    for each in found:
        slow = generator.uniform(1.1, 1.6)
        each["receptions"] = [replace(sample, net=sample.net * slow) for sample in each["receptions"]]
    fastest = sorted(statistics.median(sample.net for sample in each["receptions"]) for each in found)[2]
    alone = (20000 + 6 * TRUE["tx"] + 6 * TRUE["rx"] - fastest) / 6
    known = estimate(found)
    assert alone < -100 < 0 < known.ns["tx"] < 2 * TRUE["tx"]
    # The others are as well known as ever.
    assert known.ns["stamp"] == pytest.approx(TRUE["stamp"], abs=5) and known.ns["rx"] == pytest.approx(TRUE["rx"], abs=15)


def test_slowness_is_that_of_most_events_and_bounded() -> None:
    known = Unseen({"tx": 100.0}, {"tx": 5.0}, {"tx": 50.0, "stamp": 40.0})
    assert known.slowness([]) == Unseen().slowness([("tx", 500.0)]) == 1.0
    assert known.slowness([("tx", 60.0), ("stamp", 60.0), ("socket", 900.0), ("tx", 9000.0)]) == 1.5
    assert (known.slowness([("tx", 9000.0)]), known.slowness([("tx", 1.0)])) == (4.0, 0.5)
    assert known.doubt({"tx": 6, "stamp": 2}) == 30


def test_what_was_not_measured_is_not_made_up() -> None:
    found = estimate([])
    assert set(found.ns.values()) == {0.0} and set(found.uncertainty.values()) == {float("inf")}
    alone = estimate(rounds(1, 0))
    assert alone.uncertainty["tx"] == float("inf")


def test_a_sample_reaches_from_the_senders_hook_to_the_first_delivery() -> None:
    events: list[Event] = [replace(scene.event(500, "local_out", scene.POD1, 2, scene.inner()), cost_ns=5)]
    events += [replace(event, cost_ns=10) for event in scene.forward()]
    answer = [replace(event, time_ns=event.time_ns + 5000) for event in events]
    stamps = [Stamp(1250, scene.NODE1, 4, "forward", 1, 1, cost_ns=3), Stamp(9999, scene.NODE1, 4, "forward", 1, 1, cost_ns=3)]
    (sample,) = samples([*events, *answer], stamps)
    end = next(event.time_ns for event in events if event.hook == "local_in" and event.netns == scene.POD2)
    # 13 events after the sender's hook and before delivery (one of them the tunnel's own), and one mark.
    assert sample.counts == {"tx": 6, "rx": 6, "local_in": 1, "stamp": 1}
    assert sorted(sample.own) == sorted(
        [("local_out", 5.0), *[("tx", 10.0)] * 6, *[("rx", 10.0)] * 6, ("local_in", 10.0), ("stamp", 3.0)]
    )
    assert (sample.net, sample.spent) == (end - 500 - 5 - 13 * 10 - 3, 5 + 13 * 10 + 3)


def test_a_probe_of_which_an_end_is_missing_is_no_sample() -> None:
    events = scene.forward()
    assert samples(events, []) == ()
    assert samples([scene.event(500, "local_out", scene.POD1, 2, scene.inner()), *events[:5]], []) == ()


def test_through_processes_a_sample_is_the_way_between_them() -> None:
    """Wake-ups on both sides are left out: they vary by more than all events cost."""
    outer = scene.wrapped(scene.inner())
    events = [
        replace(each, cost_ns=7)
        for each in (
            scene.event(100, "local_out", scene.POD1, 2, scene.inner()),
            scene.event(200, "tx", scene.POD1, 2, scene.inner()),
            scene.event(90_000, "local_out", scene.NODE1, 2, outer),
            scene.event(90_100, "tx", scene.NODE1, 2, outer),
            scene.event(90_200, "rx", scene.NODE2, 2, outer),
            scene.event(90_300, "local_in", scene.NODE2, 2, outer),
            scene.event(90_400, "socket", scene.NODE2, 0, outer),
            scene.event(500_000, "rx", scene.NODE2, 3, scene.inner()),
            scene.event(500_100, "local_in", scene.POD2, 2, scene.inner()),
        )
    ]
    (sample,) = samples(events, [])
    assert sample.counts == {"tx": 1, "rx": 1} and sample.net == 300 - 3 * 7
    # Of one that ended in the second process's queue nothing is known that can be compared.
    assert samples(events[:5], []) == ()
