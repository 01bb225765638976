"""Which probes are sent, in which order, and how many at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpath.errors import InconclusiveError, UsageError
from netpath.measure import headroom, plan
from netpath.measure.headroom import Table
from netpath.measure.plan import MeasureRequest


def asked(**more: object) -> MeasureRequest:
    return MeasureRequest("a", "b", **more)  # type: ignore[arg-type]


def test_every_size_and_flow_is_a_series_and_the_underlay_has_the_same() -> None:
    made = plan.series(asked(sizes=(64, 1400)), "udp", baseline=True)
    assert [each.number for each in made] == list(range(8))
    assert {each.way for each in made[:4]} == {"path"} and {each.way for each in made[4:]} == {"underlay"}
    assert [(each.flow, each.size) for each in made[:4]] == [(each.flow, each.size) for each in made[4:]]
    assert {(each.flow, each.size) for each in made} == {(flow, size) for flow in ("new", "established") for size in (64, 1400)}
    assert len(plan.series(asked(flow="new"), "icmp", baseline=False)) == 1


def test_a_syn_has_no_size_and_opens_a_flow() -> None:
    (only,) = plan.series(asked(), "tcp", baseline=False)
    assert (only.flow, only.size) == ("new", 0)
    for wrong in (asked(sizes=(64,)), asked(flow="established"), asked(flow="both")):
        with pytest.raises(UsageError, match="SYN"):
            plan.series(wrong, "tcp", baseline=False)


def test_a_size_must_hold_the_mark() -> None:
    with pytest.raises(UsageError, match="12 bytes"):
        plan.sizes(asked(sizes=(64, 11)), "udp")
    assert plan.sizes(asked(sizes=(64, 12, 64)), "udp") == (64, 12)


def bursts(
    planned: Sequence[plan.Series], count: int, *, power: int = 18, round_trip: bool = False, together: bool = True
) -> list[tuple[plan.Batch, ...]]:
    return list(plan.bursts(planned, count, ring_bytes=1 << power, round_trip=round_trip, together=together))


def test_the_order_within_a_burst_changes_and_is_the_same_in_every_run() -> None:
    made = plan.series(asked(), "udp", baseline=True)
    for together in (True, False):
        turns = bursts(made, 1000, power=20, together=together)
        first = Counter(next(batch.series.number for batch in turn if batch.counted) for turn in turns)
        assert len(first) == 4 and min(first.values()) > 10
        assert turns == bursts(made, 1000, power=20, together=together)


def test_probes_of_a_batch_are_led_in_where_they_may_follow_one_another_and_come_alone_elsewhere() -> None:
    made = plan.series(asked(), "udp", baseline=True)
    for burst in bursts(made, 100, power=20):
        assert all(batch.lead == plan.LEAD and 1 <= batch.counted <= plan.BATCH for batch in burst)
    for burst in bursts(made, 100, power=20, together=False):
        leads, rest = burst[: len(made)], burst[len(made) :]
        assert [(batch.series, batch.lead, batch.counted) for batch in leads] == [(each, plan.LEAD, 0) for each in made]
        assert all((batch.lead, batch.counted) == (0, 1) for batch in rest)
        # Round by round: each series once before any comes again.
        for start in range(0, len(rest), len(made)):
            assert {batch.series for batch in rest[start : start + len(made)]} == set(made)


@given(st.integers(1, 12), st.integers(12, 22), st.booleans(), st.booleans(), st.integers(1, 60))
def test_a_burst_fits_into_half_of_the_buffer(series: int, power: int, round_trip: bool, together: bool, count: int) -> None:
    planned = [plan.Series(number, "path", "new", 64) for number in range(series)]
    rounds = plan.burst_rounds(planned, ring_bytes=1 << power, round_trip=round_trip, together=together)
    assert rounds >= 1
    made = bursts(planned, count, power=power, round_trip=round_trip, together=together)
    assert len(made) == -(-count // rounds)
    for burst in made if rounds > 1 else ():
        probes = sum(batch.lead + batch.counted for batch in burst)
        assert probes <= plan.MOST_IN_BURST
        assert probes * plan.EVENTS_PER_PROBE * (1 + round_trip) * plan.RECORD_BYTES <= (1 << power) / 2


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 60), st.booleans())
def test_bursts_hold_every_probe_once_and_one_size_each(sizes: int, flows: int, count: int, together: bool) -> None:
    planned = [plan.Series(number, "path", "new", 64 * (number % sizes + 1)) for number in range(sizes * flows)]
    made = bursts(planned, count, together=together)
    sent: Counter[plan.Series] = Counter()
    for burst in made:
        for batch in burst:
            sent[batch.series] += batch.counted
    assert sent == dict.fromkeys(planned, count)
    assert all(len({batch.series.size for batch in burst}) == 1 for burst in made)
    assert [burst[0].series.size for burst in made[:sizes]] == [64 * (number + 1) for number in range(sizes)]


def test_marks_go_in_turns_of_about_as_many() -> None:
    assert plan.turns({1: 3, 2: 11, 3: 11, 4: 3}, 25) == (frozenset({2}), frozenset({3}), frozenset({1}), frozenset({4}))
    assert plan.turns({1: 3, 2: 11, 3: 11, 4: 3, 5: 4}, 25)[2:] == (frozenset({5}), frozenset({1, 4}))
    assert plan.turns({7: 4, 8: 9}, 3) == (frozenset({8}), frozenset({7}))
    # Each must have its turn, and one alone has none.
    assert plan.turns({1: 3, 2: 11, 3: 11, 4: 3}, 3) == plan.turns({1: 5, 2: 0}, 25) == plan.turns({}, 25) == ()


def test_a_schedule_knows_what_it_sends_and_whose_turn_it_is() -> None:
    request = asked(sizes=(64, 512), count=21, ring_bytes=1 << 20)
    made = plan.schedule(plan.series(request, "udp", baseline=False), request, together=True)
    sent = [batch.lead + batch.counted for burst in made.bursts for batch in burst]
    assert made.probes() == 4 + sum(sent) == made.probes("new") + made.probes("established")
    assert made.most() <= plan.MOST_IN_BURST and made.marked(0) is None
    # A turn lasts until both sizes had theirs.
    groups = frozenset({1}), frozenset({2})
    turning = replace(made, turns=groups)
    assert [turning.marked(number) for number in range(5)] == [groups[0], groups[0], groups[1], groups[1], groups[0]]


def test_new_flows_that_fit_go_as_fast_as_asked() -> None:
    tables = [Table("node1", 100, 262144), Table("pod", 5, 0)]
    assert headroom.allowed_rate(tables, 1000, 500.0, "udp") == (500.0, None)


def test_new_flows_go_slower_where_room_is_short() -> None:
    table = Table("node1", 1000, 10_000)
    rate, reason = headroom.allowed_rate([Table("node2", 0, 262144), table], 5000, 500.0, "udp")
    # In the 30 s that an entry stays, three entries for every flow are half of the 9000 that are free.
    assert rate == 9000 / 2 / 3 / 30
    assert reason is not None and "node1" in reason and "50 a second" in reason and "500" in reason
    slower, _ = headroom.allowed_rate([table], 5000, 500.0, "tcp")
    assert slower == rate / 4
    unhurried, nothing = headroom.allowed_rate([table], 5000, 10.0, "udp")
    assert (unhurried, nothing) == (10.0, None)


@pytest.mark.parametrize("table", [Table("node1", 262144, 262144), Table("node1", 240_000, 262_144), Table("node1", 0, 100)])
def test_new_flows_are_refused_where_there_is_no_room(table: Table) -> None:
    with pytest.raises(InconclusiveError, match=r"node1: .* conntrack .* --flow established") as caught:
        headroom.allowed_rate([table], 10_000, 100.0, "udp")
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)


def test_a_table_is_exhausted_when_a_tenth_is_left() -> None:
    assert headroom.exhausted(Table("n", 91, 100)) and not headroom.exhausted(Table("n", 90, 100))
    assert not headroom.exhausted(Table("n", 10**9, 0))
