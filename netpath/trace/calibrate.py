"""What a probe's events cost besides what they say themselves, found on the very path by leaving kinds of them away in turn. Pure.

An event is timed from inside its program. What the kernel does before and after (its way in and out, the search for the mark, what
the program displaces from the caches) is not in that time. A calibration in a loop of its own finds hot caches that no path has;
so the same packets are sent over the same path with and without a kind, and what that changes between the sender's LOCAL_OUT and
the receiver's LOCAL_IN (or socket), which are watched in every arrangement, is that kind's.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from netpath.model.event import Event, Stamp
from netpath.trace.account import kind
from netpath.trace.correlate import DELIVERY_HOOKS, encapsulated
from netpath.trace.stats import quantile

ARRANGEMENTS: Mapping[str, tuple[str, ...]] = {
    "all": (),
    "devices": ("stamp",),
    "receptions": ("stamp", "tx"),
    "sends": ("stamp", "rx"),
}
"""Name -> the kinds that are left away (`Tracer.without`)."""
_PAIRS = (("stamp", "all", "devices"), ("tx", "devices", "receptions"), ("rx", "devices", "sends"))
"""(kind, arrangement with it, arrangement without it)"""
ALIKE = ("socket", "local_in", "local_out", "tun_read")
"""Kinds that can't be left away. Their programs do what those of tx and rx do, and are taken to cost as much."""
RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class Sample:
    """One probe's way from a LOCAL_OUT to where it is received: ns without what the events say of themselves, and how many of each kind."""

    net: float
    counts: Mapping[str, int]
    spent: float = 0.0
    """What the events say of themselves; `net` is without it."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """ns that an event of each kind costs besides its own account, and half the width of its 95 % interval."""

    ns: Mapping[str, float]
    uncertainty: Mapping[str, float]


def samples(events: Iterable[Event], stamps: Iterable[Stamp]) -> tuple[Sample, ...]:
    """One for each probe whose sending and first arrival were both seen; in whatever arrangement, hops may be missing.

    Through a tunnel of processes: of the way between these two.
    """
    by_sequence: dict[int, list[Event | Stamp]] = defaultdict(list)
    everything: list[Event | Stamp] = [*events, *stamps]
    for sighting in everything:
        by_sequence[sighting.sequence].append(sighting)
    found: list[Sample] = []
    for _, seen in sorted(by_sequence.items()):
        seen.sort(key=lambda sighting: sighting.time_ns)
        stretch = _stretch(seen)
        if stretch is None:
            continue
        start, end = stretch
        counts: dict[str, int] = defaultdict(int)
        for each in seen[start + 1 : end]:
            counts[kind(each)] += 1
        spent = sum(each.cost_ns for each in seen[start:end])
        found.append(Sample(seen[end].time_ns - seen[start].time_ns - spent, dict(counts), spent))
    return tuple(found)


def _stretch(seen: Sequence[Event | Stamp]) -> tuple[int, int] | None:
    """The first and the last sighting of a sample: from the sender to the receiver, or between the two processes of a tunnel that
    processes make. When a process wakes up is chance, and larger than what is looked for."""
    events = [(number, each) for number, each in enumerate(seen) if isinstance(each, Event)]
    taken = next((number for number, each in events if each.hook == "socket" and encapsulated(each.headers)), None)
    starts = [number for number, each in events if each.hook == "local_out" and (taken is None or number < taken)]
    if not starts:
        return None
    if taken is None:
        start = starts[0]
        end = next((number for number, each in events if _delivers(each)), None)
    else:
        start = starts[-1]
        end = next((number for number, each in events if number > start and each.hook in DELIVERY_HOOKS), None)
    return (start, end) if end is not None and end > start else None


def _delivers(event: Event) -> bool:
    return event.hook in DELIVERY_HOOKS and not encapsulated(event.headers)


def estimate(rounds: Sequence[Mapping[str, Sequence[Sample]]]) -> Unseen:
    """What each kind costs unseen, from rounds that hold every arrangement once (by name): the median of the rounds' answers.

    A kind that no round says anything about costs nothing that is known, with an uncertainty of infinity.
    """
    answers: dict[str, list[float]] = defaultdict(list)
    for each in rounds:
        for name, whole, less in _PAIRS:
            with_it, without = each.get(whole, ()), each.get(less, ())
            number = statistics.median(sample.counts.get(name, 0) for sample in with_it) if with_it else 0
            if number and without:
                difference = statistics.median(item.net for item in with_it) - statistics.median(item.net for item in without)
                answers[name].append(difference / number)
    ns = {name: statistics.median(values) for name, values in answers.items()}
    uncertainty = {name: _half_width(values) for name, values in answers.items()}
    devices = [name for name in ("tx", "rx") if name in ns]
    for name in ALIKE:
        ns[name] = statistics.fmean(ns[each] for each in devices) if devices else 0.0
        uncertainty[name] = max((uncertainty[each] for each in devices), default=float("inf"))
    for name, _, _ in _PAIRS:
        ns.setdefault(name, 0.0)
        uncertainty.setdefault(name, float("inf"))
    return Unseen(ns, uncertainty)


def _half_width(values: Sequence[float]) -> float:
    """Half the 95 % percentile bootstrap interval of the median; infinity of a single value."""
    if len(values) < 3:
        return float("inf")
    generator = random.Random(len(values))
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return (quantile(medians, 0.975) - quantile(medians, 0.025)) / 2
