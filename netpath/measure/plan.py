"""What is measured, and in which order. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from netpath.errors import UsageError
from netpath.model import nonce as layout

PATH, UNDERLAY = "path", "underlay"
NEW, ESTABLISHED = "new", "established"
FLOWS = (ESTABLISHED, NEW)

EVENTS_PER_PROBE = 40
"""A guess for a way of many devices, all hooks on; what it leaves of the buffer is what a longer way needs."""
RECORD_BYTES = 320
MOST_IN_BURST = 40
LEAD, BATCH = 1, 4
"""Probes of a batch: uncounted, and counted."""
TURNS = 4
"""Groups of namespaces that have their marks in turns, burst by burst: a probe then meets a quarter of the marks."""
REPEATS = 5
"""Bursts of a run that are sent again when an event of theirs was lost; after that the result is PARTIAL."""
SEED = 20
LEAST_CALIBRATIONS, MOST_CALIBRATIONS = 24, 48
"""How often the hooks are rearranged to find what the events cost: the former, and on until that is known well enough."""
KNOWN_ENOUGH = 0.05
"""What the correction of a one-way time may be uncertain by, as a part of that time."""


@dataclass(frozen=True, slots=True)
class MeasureRequest:
    """The arguments of a measurement, as the user wrote them. Sizes in bytes, times in seconds."""

    source: str
    destination: str
    protocol: str | None = None
    """udp, tcp or icmp; None: icmp without a port, tcp with one."""
    sport: int | None = None
    sizes: tuple[int, ...] | None = None
    """Bytes after the transport header; None: 64, and for a SYN, which carries none, 0."""
    flow: str | None = None
    """new, established or both; None: both, but of TCP, where every SYN opens a connection, new."""
    count: int = 200
    """Probes of each series."""
    rate: float = 200.0
    """Probes a second on average, all series together."""
    precision: float | None = None
    """Stop when every median is known this well (0.05: to 5 %)."""
    round_trip: bool = False
    baseline: bool = True
    df: bool = False
    ttl: int = 64
    timeout: float = 1.0
    ring_bytes: int = 1 << 20
    calibrations: int = MOST_CALIBRATIONS
    """How often the hooks may be rearranged to find what the events cost."""
    hooks: tuple[str, ...] = ()
    """Providers of hooks that may be used, by name; of a family of which none is named any may (`netpath.ebpf.providers`)."""
    namespaces: frozenset[int] | None = None
    """Read the state of these only (inodes), where no other can be on the way; None: of all on the machine."""
    load_seconds: float | None = None
    """Afterwards, with nothing armed, run streams for this long on each way and by each protocol; None: don't."""


@dataclass(frozen=True, slots=True)
class Series:
    """Probes of one kind: where they go, what flow they are of, and their payload's size in bytes."""

    number: int
    way: str
    """`PATH`, from source to destination; `UNDERLAY`, between their nodes' own sockets."""
    flow: str
    """`NEW`: each probe is the first packet of a flow; `ESTABLISHED`: all are of one."""
    size: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Probes of one series, one right after the other: `lead` that wake the core and its caches, then those that count."""

    series: Series
    lead: int
    counted: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that is sent, in order: one probe of every series to warm up, uncounted, then the bursts."""

    series: tuple[Series, ...]
    together: bool
    """Probes of a batch follow one another at once (`bursts`)."""
    bursts: tuple[tuple[Batch, ...], ...]
    turns: tuple[frozenset[int], ...] = ()
    """The namespaces that have marks, one group for each burst in turns (of several sizes: for each burst of every size); none: all
    have them all the time."""

    def probes(self, flow: str | None = None) -> int:
        """How many are sent, of this kind of flow or (None) of all."""
        sent = [(each, 1) for each in self.series]
        sent += [(batch.series, batch.lead + batch.counted) for burst in self.bursts for batch in burst]
        return sum(count for each, count in sent if flow in (None, each.flow))

    def most(self) -> int:
        """Probes of the largest burst."""
        return max(sum(batch.lead + batch.counted for batch in burst) for burst in self.bursts)

    def sizes(self) -> int:
        return len({each.size for each in self.series})

    def marked(self, burst: int) -> frozenset[int] | None:
        """The namespaces that have marks during a burst (from 0); None: all."""
        return self.turns[burst // self.sizes() % len(self.turns)] if self.turns else None


def schedule(planned: Sequence[Series], request: MeasureRequest, *, together: bool) -> Schedule:
    """`request.count` probes of every series; `together` as in `bursts`."""
    made = bursts(planned, request.count, ring_bytes=request.ring_bytes, round_trip=request.round_trip, together=together)
    return Schedule(tuple(planned), together, tuple(made))


def sizes(request: MeasureRequest, protocol: str) -> tuple[int, ...]:
    """The payload sizes to measure. Raises UsageError for one that can't be sent."""
    if protocol == "tcp":
        if request.sizes not in (None, (0,)):
            raise UsageError("a TCP probe is a SYN and carries no payload: leave --size out, or measure by --udp or --icmp")
        return (0,)
    chosen = tuple(dict.fromkeys(request.sizes or (64,)))
    for size in chosen:
        if size < layout.MINIMUM_PAYLOAD:
            raise UsageError(f"--size must be at least {layout.MINIMUM_PAYLOAD} bytes, to hold the probe's mark, not {size}")
    return chosen


def flows(request: MeasureRequest, protocol: str) -> tuple[str, ...]:
    """The kinds of flow to measure. Raises UsageError for established flows of TCP."""
    if protocol == "tcp":
        if request.flow not in (None, NEW):
            raise UsageError("a TCP probe is a SYN, and every SYN opens a connection: with --tcp only --flow new can be measured")
        return (NEW,)
    return FLOWS if request.flow in (None, "both") else (request.flow,)


def series(request: MeasureRequest, protocol: str, *, baseline: bool) -> tuple[Series, ...]:
    """All series of a measurement: those of the path first, then with a `baseline` the same on the underlay."""
    ways = (PATH, UNDERLAY) if baseline else (PATH,)
    kinds = [(way, flow, size) for way in ways for flow in flows(request, protocol) for size in sizes(request, protocol)]
    return tuple(Series(number, *kind) for number, kind in enumerate(kinds))


def bursts(
    planned: Sequence[Series], count: int, *, ring_bytes: int, round_trip: bool, together: bool
) -> Iterator[tuple[Batch, ...]]:
    """`count` probes of every series in bursts, each of one size, the sizes in turns; the order within is drawn anew for each.

    `together`: probes of a batch follow one another at once, as packets of a busy application do, the first of them uncounted.
    Otherwise each comes alone, and a burst is led in by one of every series: where a process carries the packets, or something else
    that holds them, they would wait for one another.
    """
    step = burst_rounds(planned, ring_bytes=ring_bytes, round_trip=round_trip, together=together)
    generators = [(group, random.Random(SEED + number)) for number, group in enumerate(_by_size(planned))]
    for start in range(0, count, step):
        for group, generator in generators:
            yield _burst(group, min(step, count - start), generator, together=together)


def _burst(group: Sequence[Series], number: int, generator: random.Random, *, together: bool) -> tuple[Batch, ...]:
    if together:
        made = [Batch(each, LEAD, min(BATCH, number - at)) for each in group for at in range(0, number, BATCH)]
        return tuple(generator.sample(made, len(made)))
    rounds = [Batch(each, 0, 1) for _ in range(number) for each in generator.sample(group, len(group))]
    return (*(Batch(each, LEAD, 0) for each in group), *rounds)


def burst_rounds(planned: Sequence[Series], *, ring_bytes: int, round_trip: bool, together: bool) -> int:
    """How many counted probes of each series are sent before the buffer is emptied, half of which is left free. At least one."""
    events = EVENTS_PER_PROBE * (2 if round_trip else 1)
    fitting = min(MOST_IN_BURST, ring_bytes // 2 // (RECORD_BYTES * events)) // max(len(group) for group in _by_size(planned))
    batches = fitting // (LEAD + BATCH) if together else 0
    return batches * BATCH or max(1, fitting - LEAD)


def turns(marks: Mapping[int, int], bursts: int) -> tuple[frozenset[int], ...]:
    """The namespaces in groups of about as many marks each, by the number of marks in each namespace; none if there is but one group,
    or too few `bursts` for each to have its turn."""
    number = min(TURNS, sum(count > 0 for count in marks.values()))
    if not 1 < number <= bursts:
        return ()
    groups: list[list[int]] = [[] for _ in range(number)]
    for netns in sorted((netns for netns, count in marks.items() if count), key=lambda netns: (-marks[netns], netns)):
        min(groups, key=lambda group: sum(marks[each] for each in group)).append(netns)
    return tuple(frozenset(group) for group in groups)


def _by_size(planned: Sequence[Series]) -> list[list[Series]]:
    return [[each for each in planned if each.size == size] for size in dict.fromkeys(each.size for each in planned)]
