"""Distributions of nanoseconds."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter

from netpath.model.path import Stats

BOOTSTRAP_ROUNDS = 400
MANY = 100


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile of an ascending, non-empty sequence, linearly interpolated (type 7 of Hyndman and Fan, 1996)."""
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@lru_cache(maxsize=8)
def _resamples(count: int) -> tuple[Callable[[Sequence[float]], tuple[float, ...]], ...]:
    """What takes each of the bootstrap's resamples from a sequence of so many values: a run asks for the same ones hundreds of times."""
    generator = random.Random(count)
    return tuple(itemgetter(*generator.choices(range(count), k=count)) for _ in range(BOOTSTRAP_ROUNDS))


def summarise(values: Sequence[float], uncorrected: Sequence[float] | None = None) -> Stats | None:
    """Stats of `values` (ns); None of nothing. `uncorrected` are the same before the probes' own cost was taken out.

    `ci95` is the percentile bootstrap interval of the mean, with a fixed seed so that a result can be recomputed; None below
    three values, which say nothing about spread. From `MANY` values on it is the normal law's, which the bootstrap's comes to.
    """
    if not values:
        return None
    ordered = sorted(values)
    interval = None
    if len(ordered) >= MANY:
        half = statistics.NormalDist().inv_cdf(0.975) * statistics.stdev(ordered) / len(ordered) ** 0.5
        interval = (statistics.fmean(ordered) - half, statistics.fmean(ordered) + half)
    elif len(ordered) >= 3:
        means = sorted(statistics.fmean(drawn(ordered)) for drawn in _resamples(len(ordered)))
        interval = (quantile(means, 0.025), quantile(means, 0.975))
    return Stats(
        count=len(ordered),
        mean=statistics.fmean(ordered),
        min=ordered[0],
        p50=quantile(ordered, 0.5),
        p90=quantile(ordered, 0.9),
        p99=quantile(ordered, 0.99),
        max=ordered[-1],
        ci95=interval,
        uncorrected_mean=statistics.fmean(uncorrected if uncorrected is not None else ordered),
    )
