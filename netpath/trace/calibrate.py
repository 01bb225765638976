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
from netpath.trace.account import Unseen, kind
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
ANY = "any"
QUARTILES = 1.349
"""From one quartile of the normal law to the other, in standard deviations."""
RESAMPLES = 400
LEFT = 0.05
"""What the correction may leave of an event's cost even where it is known exactly, because slow moments slow all of it only about alike;
`tests.bench residual` finds 0.01 of it left."""
CALM = 0.1
"""The quantile of an arrangement's blocks that stands for it (see `estimate`)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One probe's way from a LOCAL_OUT to where it is received: ns without what the events say of themselves, and how many of each kind."""

    net: float
    counts: Mapping[str, int]
    own: Sequence[tuple[str, float]] = ()
    """Of each event its kind and what it says of itself, the first one's included; `net` is without it."""

    @property
    def spent(self) -> float:
        """What the events say of themselves, all together."""
        return sum(cost for _, cost in self.own)

    def corrected(self, unseen: Unseen) -> float:
        """ns without what the events cost unseen either, which grows as the machine gets slower (`Unseen.slowness`)."""
        return self.net - self.unseen(unseen)

    def unseen(self, unseen: Unseen) -> float:
        """ns that the events cost beside what they say."""
        calmly = sum(unseen.ns.get(name, 0.0) * number for name, number in self.counts.items())
        return calmly * unseen.slowness(self.own)


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
        own = [(kind(each), float(each.cost_ns)) for each in seen[start:end]]
        spent = sum(cost for _, cost in own)
        found.append(Sample(seen[end].time_ns - seen[start].time_ns - spent, dict(counts), own))
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
    """What each kind costs unseen, from rounds that hold every arrangement (by name).

    Of each arrangement's blocks the fastest decile is compared: a machine that others use too has calm and slow spells, in which
    everything takes up to twice as long, and they change within a round. Blocks of calm ones are alike, to a few parts in a hundred.
    Where there are too few of these for every kind, the kinds are drawn towards what an event of any kind costs, which is known
    better; how far is told by how well each is known, taken that kinds differ by half of it.
    A kind that no round says anything about costs nothing that is known, with an uncertainty of infinity.
    """
    whole = [each for each in rounds if all(each.get(name) for name in ARRANGEMENTS)]
    blocks = [{name: statistics.median(sample.net for sample in taken) for name, taken in each.items()} for each in whole]
    number = {
        name: statistics.median(sample.counts.get(name, 0) for each in whole for sample in each[fuller]) if whole else 0
        for name, fuller, _ in _PAIRS
    }
    ns, uncertainty, calm = {}, {}, _calm(whole)
    found = [_costs(each, number) for each in _resampled(blocks)]
    costs = _costs(blocks, number) if blocks else {}
    any_kind, doubt = costs.get(ANY, 0.0), _half_width([each[ANY] for each in found if ANY in each])
    for name, _, _ in _PAIRS:
        if name not in costs:
            ns[name], uncertainty[name] = 0.0, float("inf")
            continue
        spread = sorted(each[name] for each in found)
        chance = _half_width(spread)
        error = (quantile(spread, 0.75) - quantile(spread, 0.25)) / QUARTILES if spread else float("inf")
        differing = (any_kind / 2) ** 2
        weight = differing / (differing + error**2) if differing and error < float("inf") else 0.0
        ns[name] = weight * costs[name] + (1 - weight) * any_kind
        chance = weight * chance + (1 - weight) * doubt if weight else doubt
        uncertainty[name] = chance + LEFT * (abs(ns[name]) + calm.get(name, 0.0))
    devices = [name for name in ("tx", "rx") if number[name]]
    for name in ALIKE:
        ns[name] = statistics.fmean(ns[each] for each in devices) if devices else 0.0
        uncertainty[name] = max((uncertainty[each] for each in devices), default=float("inf"))
    return Unseen(ns, uncertainty, calm)


def _costs(blocks: Sequence[Mapping[str, float]], number: Mapping[str, float]) -> dict[str, float]:
    """ns an event of each kind of which there are some, and of `ANY`: what fewer kinds change, over how many events that are."""
    fastest = {name: quantile(sorted(each[name] for each in blocks), CALM) for name in ARRANGEMENTS}
    found = {name: (fastest[fuller] - fastest[less]) / number[name] for name, fuller, less in _PAIRS if number[name]}
    events = number["stamp"] + (number["tx"] + number["rx"]) / 2
    if events:
        found[ANY] = (fastest["all"] - (fastest["receptions"] + fastest["sends"]) / 2) / events
    return found


def _half_width(values: Sequence[float]) -> float:
    """Half of what holds 95 % of a bootstrap's results; infinity of none."""
    ordered = sorted(values)
    return (quantile(ordered, 0.975) - quantile(ordered, 0.025)) / 2 if ordered else float("inf")


def _calm(rounds: Sequence[Mapping[str, Sequence[Sample]]]) -> dict[str, float]:
    """What events of each kind say of themselves in the fastest decile of the blocks that have them all."""
    blocks: dict[str, list[float]] = defaultdict(list)
    for each in rounds:
        costs: dict[str, list[float]] = defaultdict(list)
        for sample in each["all"]:
            for name, cost in sample.own:
                costs[name].append(cost)
        for name, taken in costs.items():
            blocks[name].append(statistics.median(taken))
    return {name: quantile(sorted(taken), CALM) for name, taken in blocks.items()}


def _resampled(blocks: Sequence[Mapping[str, float]]) -> list[Sequence[Mapping[str, float]]]:
    """For the percentile bootstrap: as many rounds drawn anew, with replacement. None of fewer than three."""
    generator = random.Random(len(blocks))
    return [generator.choices(blocks, k=len(blocks)) for _ in range(RESAMPLES if len(blocks) > 2 else 0)]
