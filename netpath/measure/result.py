"""What a measurement found. Field names are the JSON's (docs/reference/json.md); times are ns, lengths bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from netpath.measure.robust import Histogram, Interval
from netpath.model.path import ABSENT, Stats, Trace

if TYPE_CHECKING:
    from netpath.endpoints import Endpoint
    from netpath.measure.load import Load
    from netpath.model.index import SnapshotIndex
    from netpath.model.packet import Flow
    from netpath.model.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class StageShare:
    """A stage of the most frequent path: the mean of all its segments, and what part of the way that is."""

    stage: str
    ns: float
    share: float


@dataclass(frozen=True, slots=True)
class Outliers:
    """Probes that are in no other figure: their one-way time was above `above_ns`. Null bounds: too few probes to tell."""

    count: int
    above_ns: float | None
    max_ns: float | None


@dataclass(frozen=True, slots=True)
class SeriesResult:
    """The probes of one series."""

    way: str
    """path or underlay."""
    flow: str
    size: int
    probes: int
    outcomes: Mapping[str, int]
    one_way_ns: Stats | None
    """Of those that were delivered, outliers left out, as in the series' paths."""
    p50_ci95: Interval | None
    """Of `p50_all`."""
    p50_all: float | None
    p99_all: float | None
    """Percentiles with the outliers."""
    outliers: Outliers
    histogram: Histogram | None
    ip_length: int | None
    """The probe as its sender's first device had it."""
    encap_bytes: int | None
    translations: int | None
    crossings: int | None
    """Times that a user-space process passed it on."""
    stages: tuple[StageShare, ...]
    round_trip_ns: Stats | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The path beside the underlay, for one flow and size: medians of all delivered probes."""

    flow: str
    size: int
    path_ns: float
    underlay_ns: float
    extra_ns: float
    extra_ci95: Interval | None
    ratio: float
    ratio_ci95: Interval | None
    encap_bytes: int | None
    bytes_of_probe: float | None
    """Added bytes over the probe's own IP packet."""
    bytes_of_full: float | None
    """Added bytes over the largest packet that the path takes whole; null where that is not known."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The nodes between which the same probes went, side by side; where `applies` is false `reason` says why."""

    applies: bool
    reason: str | None
    source: str | None = None
    destination: str | None = None
    source_address: str | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True)
class TableUse:
    """A conntrack table on the way: entries before and after, and the limit (0: none)."""

    netns: str
    before: int
    after: int
    limit: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """A finished measurement, with what it was made from."""

    trace: Trace
    """As `netpath trace` has it; its paths are those from source to destination."""
    path_series: tuple[int, ...]
    """For each of the trace's paths the series (by index) whose probes took it."""
    underlay: Trace | None
    underlay_series: tuple[int, ...]
    series: tuple[SeriesResult, ...]
    comparisons: tuple[Comparison, ...]
    baseline: Baseline
    conntrack: tuple[TableUse, ...]
    stopped: str
    """count: all probes were sent; precision: the medians are known as well as was asked; conntrack: no room for more flows."""
    rate: float
    times: tuple[tuple[float, ...], ...]
    """For each series the one-way times of all that were delivered, ascending. Not in the JSON."""
    load: tuple[Load, ...] | None
    """None: not asked for."""
    snapshot: Snapshot
    index: SnapshotIndex
    flow: Flow
    source: Endpoint
    destination: Endpoint
