"""Statistics that a few preempted probes don't move. Pure; every random draw is seeded, so that a result can be recomputed.

Times on a busy machine have a long tail: interrupts and other processes add to them, nothing takes away. So the centre is the
median, an interval is the bootstrap's, and what lies far above is set aside and counted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from netpath.trace.stats import quantile

ROUNDS = 2000
SEED = 20
LEVEL = 0.95
FAR_OUT = 3.0
"""Interquartile ranges above the third quartile (Tukey, Exploratory Data Analysis, 1977: "far out")."""
LEAST_SPREAD = 0.02
"""Of the median: the interquartile range counts as at least this, or equal values would make an outlier of their neighbour."""
BINS = 16

Interval = tuple[float, float]


def medians(ordered: Sequence[float], generator: random.Random, rounds: int = ROUNDS) -> list[float]:
    """Medians of `rounds` bootstrap resamples of an ascending, non-empty sequence.

    No resample is drawn: its median is the value at the median rank, and the middle one of n uniform numbers is distributed as
    Beta((n+1)/2, (n+1)/2) (David and Nagaraja, Order Statistics, 2.1). For an even n that is the rank between the two middle ones.
    """
    n = len(ordered)
    shape = (n + 1) / 2
    return [ordered[min(n - 1, int(n * generator.betavariate(shape, shape)))] for _ in range(rounds)]


def _interval(draws: list[float], level: float = LEVEL) -> Interval:
    draws.sort()
    tail = (1 - level) / 2
    return quantile(draws, tail), quantile(draws, 1 - tail)


def median_interval(ordered: Sequence[float], level: float = LEVEL, rounds: int = ROUNDS) -> Interval | None:
    """The percentile bootstrap interval of the median; None below three values, which say nothing about spread."""
    if len(ordered) < 3:
        return None
    return _interval(medians(ordered, random.Random(SEED), rounds), level)


def compared(subject: Sequence[float], reference: Sequence[float]) -> tuple[Interval, Interval] | None:
    """The intervals of median difference and of median ratio of two ascending samples; None where either has fewer than three.

    The samples are taken as independent, which makes the intervals wider than a pairing would, never narrower.
    """
    if min(len(subject), len(reference)) < 3:
        return None
    generator = random.Random(SEED)
    pairs = list(zip(medians(subject, generator), medians(reference, generator), strict=True))
    differences = _interval([mine - base for mine, base in pairs])
    ratios = _interval([mine / base for mine, base in pairs]) if reference[0] > 0 else (float("nan"), float("nan"))
    return differences, ratios


def precision(ordered: Sequence[float]) -> float | None:
    """Half the median's interval over the median: 0.05 says that it is known to 5 %. None where it can't be said."""
    interval = median_interval(ordered, rounds=400)
    middle = quantile(ordered, 0.5) if ordered else 0.0
    if interval is None or middle <= 0:
        return None
    return (interval[1] - interval[0]) / 2 / middle


def fence(ordered: Sequence[float]) -> float | None:
    """The value above which an ascending sample's values are outliers; None of fewer than five, of which none can be called that."""
    if len(ordered) < 5:
        return None
    third = quantile(ordered, 0.75)
    spread = max(third - quantile(ordered, 0.25), LEAST_SPREAD * abs(quantile(ordered, 0.5)))
    return third + FAR_OUT * spread


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts in bins of equal width, from `start`; what lies above the last bin is in `above`."""

    start: float
    width: float
    counts: tuple[int, ...]
    above: int


def histogram(ordered: Sequence[float], limit: float | None = None, bins: int = BINS) -> Histogram | None:
    """The distribution of an ascending sample up to `limit` (all of it where that is None); None of nothing."""
    if not ordered:
        return None
    inside = [value for value in ordered if limit is None or value <= limit] or list(ordered[:1])
    start = inside[0]
    width = (inside[-1] - start) / bins
    if width <= 0:
        return Histogram(start, 0.0, (len(inside),), len(ordered) - len(inside))
    counts = [0] * bins
    for value in inside:
        counts[min(bins - 1, int((value - start) / width))] += 1
    return Histogram(start, width, tuple(counts), len(ordered) - len(inside))
