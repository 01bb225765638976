"""The statistics are what they are said to be, whatever the values."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpath.measure import robust
from netpath.trace.stats import quantile

SAMPLES = st.lists(st.floats(min_value=1.0, max_value=1e7), min_size=1, max_size=60).map(sorted)


@given(SAMPLES)
def test_an_interval_of_the_median_holds_the_median_and_lies_in_the_sample(ordered: list[float]) -> None:
    interval = robust.median_interval(ordered, rounds=200)
    if len(ordered) < 3:
        assert interval is None
        return
    assert interval is not None
    assert ordered[0] <= interval[0] <= interval[1] <= ordered[-1]
    middle = quantile(ordered, 0.5)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    assert interval[0] <= high and interval[1] >= low and low <= middle <= high


@pytest.mark.parametrize("size", [5, 8, 31, 60])
def test_medians_are_distributed_as_those_of_real_resamples(size: int) -> None:
    """The short cut by the Beta distribution against resamples that are drawn."""
    generator = random.Random(3)
    ordered = sorted(generator.lognormvariate(0, 1) for _ in range(size))
    quick = sorted(robust.medians(ordered, random.Random(1), 4000))
    drawn = sorted(statistics.median(generator.choices(ordered, k=size)) for _ in range(4000))
    ranks = [sum(value <= mark for value in sample) / 4000 for mark in ordered for sample in (quick, drawn)]
    # For an even size a drawn median lies between two values; half a rank is the difference that makes.
    slack = 0.05 if size % 2 else 0.05 + 1.3 / math.sqrt(size)
    assert max(abs(one - other) for one, other in zip(ranks[::2], ranks[1::2], strict=True)) < slack


def test_an_interval_holds_the_true_median_as_often_as_it_says() -> None:
    generator = random.Random(7)
    held = 0
    for _ in range(300):
        ordered = sorted(generator.lognormvariate(0, 1) for _ in range(40))
        interval = robust.median_interval(ordered, rounds=300)
        assert interval is not None
        held += interval[0] <= 1.0 <= interval[1]
    assert 0.91 <= held / 300 <= 0.99


def test_a_comparison_finds_what_was_put_in() -> None:
    generator = random.Random(11)
    reference = sorted(generator.gauss(10_000, 500) for _ in range(200))
    subject = sorted(generator.gauss(13_000, 500) for _ in range(200))
    intervals = robust.compared(subject, reference)
    assert intervals is not None
    (low, high), (least, most) = intervals
    found = quantile(subject, 0.5) - quantile(reference, 0.5)
    assert low < found < high and 100 < high - low < 400 and abs(found - 3000) < 200
    assert least < quantile(subject, 0.5) / quantile(reference, 0.5) < most and 0.01 < most - least < 0.05
    same = robust.compared(reference, reference)
    assert same is not None and same[0][0] < 0 < same[0][1] and same[1][0] < 1 < same[1][1]


@pytest.mark.parametrize(("one", "other"), [([], [1.0] * 5), ([1.0, 2.0], [1.0] * 5), ([1.0] * 5, [1.0])])
def test_too_little_is_not_compared(one: list[float], other: list[float]) -> None:
    assert robust.compared(one, other) is None


def test_nothing_is_divided_by_nothing() -> None:
    intervals = robust.compared([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert intervals is not None and all(math.isnan(value) for value in intervals[1])
    assert robust.precision([0.0, 0.0, 0.0]) is None
    assert robust.precision([]) is None


@given(SAMPLES)
def test_the_same_sample_gives_the_same_figures(ordered: list[float]) -> None:
    assert robust.median_interval(ordered, rounds=50) == robust.median_interval(ordered, rounds=50)
    assert robust.compared(ordered, ordered) == robust.compared(ordered, ordered)


def test_more_values_are_more_precise() -> None:
    generator = random.Random(2)
    values = [generator.gauss(100, 10) for _ in range(800)]
    few, many = robust.precision(sorted(values[:20])), robust.precision(sorted(values))
    assert few is not None and many is not None and many < few / 3


@given(SAMPLES)
def test_nothing_near_the_rest_is_an_outlier(ordered: list[float]) -> None:
    fence = robust.fence(ordered)
    if len(ordered) < 5:
        assert fence is None
        return
    assert fence is not None
    assert sum(value <= fence for value in ordered) >= 0.75 * len(ordered)


def test_what_lies_far_above_is_an_outlier() -> None:
    values = sorted([*range(100, 130), 100_000])
    fence = robust.fence([float(value) for value in values])
    assert fence is not None and 130 < fence < 100_000
    equal = robust.fence([100.0] * 20 + [101.0])
    assert equal is not None and equal > 101


@given(SAMPLES, st.integers(min_value=1, max_value=20))
def test_a_histogram_counts_everything_once(ordered: list[float], bins: int) -> None:
    limit = robust.fence(ordered)
    made = robust.histogram(ordered, limit, bins)
    assert made is not None
    assert sum(made.counts) + made.above == len(ordered)
    assert made.above == (0 if limit is None else sum(value > limit for value in ordered))
    assert made.start == ordered[0]


def test_a_histogram_puts_values_where_they_belong() -> None:
    made = robust.histogram([0.0, 1.0, 5.0, 9.0, 10.0, 50.0], limit=10.0, bins=2)
    assert made == robust.Histogram(0.0, 5.0, (2, 3), 1)
    assert robust.histogram([]) is None
    assert robust.histogram([4.0, 4.0]) == robust.Histogram(4.0, 0.0, (2,), 0)
