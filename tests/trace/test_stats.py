from __future__ import annotations

import pytest

from netpath.trace.stats import MANY, quantile, summarise


def test_nothing_has_no_statistics() -> None:
    assert summarise([]) is None


def test_a_known_distribution() -> None:
    stats = summarise([float(value) for value in range(1, 101)])
    assert stats is not None
    assert (stats.count, stats.mean, stats.min, stats.max) == (100, 50.5, 1.0, 100.0)
    assert stats.p50 == 50.5
    assert stats.p90 == pytest.approx(90.1)
    assert stats.p99 == pytest.approx(99.01)
    assert stats.ci95 is not None
    low, high = stats.ci95
    assert 42 < low < 50.5 < high < 59


def test_of_many_values_the_interval_is_the_same_by_a_shorter_way() -> None:
    values = [float(value % 37) ** 2 for value in range(MANY)]
    drawn, computed = summarise(values[:-1]), summarise(values)
    assert drawn is not None and computed is not None and drawn.ci95 is not None and computed.ci95 is not None
    assert computed.ci95 == pytest.approx(drawn.ci95, rel=0.06)


def test_the_uncorrected_mean_stands_beside_corrected_figures() -> None:
    stats = summarise([90.0, 100.0, 110.0], [100.0, 110.0, 120.0])
    assert stats is not None
    assert (stats.mean, stats.min, stats.max, stats.uncorrected_mean) == (100.0, 90.0, 110.0, 110.0)


def test_two_values_say_nothing_about_spread() -> None:
    stats = summarise([1.0, 2.0])
    assert stats is not None and stats.ci95 is None


def test_quantile_interpolates() -> None:
    assert quantile([1.0, 2.0], 0.25) == 1.25
