"""What is measured, and in which order. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
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
REPEATS = 5
"""Bursts of a run that are sent again when an event of theirs was lost; after that the result is PARTIAL."""
SEED = 20
CALIBRATIONS = 12
"""How often the hooks are rearranged to find what the events cost: with half as many one-way times differed by 18 % from run to run."""


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


def rounds(planned: Sequence[Series], count: int, seed: int = SEED) -> Iterator[tuple[Series, ...]]:
    """`count` rounds of one probe of every series, in an order drawn anew for each: what drifts, drifts for all."""
    generator = random.Random(seed)
    for _ in range(count):
        order = list(planned)
        generator.shuffle(order)
        yield tuple(order)


def burst_rounds(planned: Sequence[Series], *, ring_bytes: int, round_trip: bool) -> int:
    """How many counted rounds of one size are sent before the buffer is emptied, half of which is left free. At least one."""
    events = EVENTS_PER_PROBE * (2 if round_trip else 1)
    fitting = ring_bytes // 2 // (RECORD_BYTES * events)
    return max(1, min(MOST_IN_BURST, fitting) // max(len(group) for group in _by_size(planned)) - 1)


def bursts(planned: Sequence[Series], count: int, *, ring_bytes: int, round_trip: bool) -> Iterator[tuple[Series, ...]]:
    """All rounds in bursts of probes of one size, the sizes in turns."""
    step = burst_rounds(planned, ring_bytes=ring_bytes, round_trip=round_trip)
    turns = [list(rounds(group, count, SEED + number)) for number, group in enumerate(_by_size(planned))]
    for start in range(0, count, step):
        for turn in turns:
            yield tuple(each for one in turn[start : start + step] for each in one)


def lead_ins(planned: Sequence[Series], count: int, *, ring_bytes: int, round_trip: bool) -> int:
    """How many bursts there are of each size; each is led in by one more round, which is not counted."""
    return -(-count // burst_rounds(planned, ring_bytes=ring_bytes, round_trip=round_trip))


def _by_size(planned: Sequence[Series]) -> list[list[Series]]:
    return [[each for each in planned if each.size == size] for size in dict.fromkeys(each.size for each in planned)]
