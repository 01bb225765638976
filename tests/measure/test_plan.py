"""Which probes are sent, in which order, and how many at once."""

from __future__ import annotations

from collections import Counter

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


def test_rounds_hold_every_series_once_in_changing_order() -> None:
    made = plan.series(asked(), "udp", baseline=True)
    turns = list(plan.rounds(made, 100))
    assert len(turns) == 100 and all(Counter(turn) == Counter(made) for turn in turns)
    first = Counter(turn[0].number for turn in turns)
    assert len(first) == 4 and min(first.values()) > 10
    assert turns == list(plan.rounds(made, 100))


@given(st.integers(1, 12), st.integers(12, 22), st.booleans())
def test_a_burst_fits_into_half_of_the_buffer(series: int, power: int, round_trip: bool) -> None:
    planned = [plan.Series(number, "path", "new", 64) for number in range(series)]
    rounds = plan.burst_rounds(planned, ring_bytes=1 << power, round_trip=round_trip)
    assert rounds >= 1
    if rounds > 1:
        probes = (rounds + 1) * series
        assert probes <= plan.MOST_IN_BURST
        assert probes * plan.EVENTS_PER_PROBE * (1 + round_trip) * plan.RECORD_BYTES <= (1 << power) / 2
    leads = plan.lead_ins(planned, 25, ring_bytes=1 << power, round_trip=round_trip)
    assert (leads - 1) * rounds < 25 <= leads * rounds


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 60))
def test_bursts_hold_every_probe_once_and_one_size_each(sizes: int, flows: int, count: int) -> None:
    planned = [plan.Series(number, "path", "new", 64 * (number % sizes + 1)) for number in range(sizes * flows)]
    made = list(plan.bursts(planned, count, ring_bytes=1 << 18, round_trip=False))
    assert Counter(each for burst in made for each in burst) == dict.fromkeys(planned, count)
    assert all(len({each.size for each in burst}) == 1 for burst in made)
    assert [burst[0].size for burst in made[:sizes]] == [64 * (number + 1) for number in range(sizes)]
    assert len(made) == sizes * plan.lead_ins(planned, count, ring_bytes=1 << 18, round_trip=False)


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
