"""Measurements as text: what it costs first, then the figures it comes from."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from tabulate import tabulate

from netpath.measure.load import Load
from netpath.measure.plan import PATH
from netpath.measure.result import Comparison, Measurement, SeriesResult, StageShare
from netpath.measure.robust import Histogram, Interval
from netpath.model.path import Path
from netpath.render.hops import ending, packet, translation_lines
from netpath.render.text import Screen, clean, duration, fold

_BARS = "▁▂▃▄▅▆▇█"
_OUTCOMES = {"delivered": "good", "rejected": "warn", "dropped": "bad", "lost": "bad", "mixed": "warn"}


class Bar:
    """How far a run is, on stderr, on a terminal only; gone when the block ends."""

    WIDTH = 30
    PAUSE = 0.1

    def __init__(self) -> None:
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._shown = 0.0

    def __enter__(self) -> Bar:
        return self

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._terminal or (now - self._shown < self.PAUSE and done < total):
            return
        self._shown = now
        filled = self.WIDTH * done // max(total, 1)
        self._write(f"\r{'█' * filled}{'░' * (self.WIDTH - filled)} {done} of {total} probes ")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._terminal and self._shown:
            self._write("\r\x1b[K")

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError, UnicodeEncodeError):
            sys.stderr.write(text)
            sys.stderr.flush()


def bars(histogram: Histogram | None) -> str:
    """A distribution in as many characters as it has bins; a bin that holds anything shows."""
    if histogram is None:
        return ""
    most = max(histogram.counts)
    last = len(_BARS) - 1
    return "".join(" " if count == 0 else _BARS[round(last * count / most)] for count in histogram.counts)


def _span(interval: Interval | None, *, plain: bool = False) -> str:
    if interval is None:
        return ""
    low, high = (f"{value:.2f}" if plain else duration(value) for value in interval)
    return f" [{low}, {high}]"


def headline(comparison: Comparison, measurement: Measurement) -> str:
    """``established flow, 64 bytes: +5.62 µs one way, 1.30x underlay; +50 bytes = 3.4 % of a 1,450-byte packet``."""
    extra = ("+" if comparison.extra_ns >= 0 else "-") + duration(abs(comparison.extra_ns))
    text = (
        f"{_flow(comparison.flow)}, {comparison.size} bytes: {extra} one way{_span(comparison.extra_ci95)}, "
        f"{comparison.ratio:.2f}x underlay{_span(comparison.ratio_ci95, plain=True)}"
    )
    added = comparison.encap_bytes
    if added:
        kind = encapsulation(measurement)
        text += f"; {kind + ' ' if kind else ''}+{added} bytes"
        mtu = measurement.trace.path_mtu
        if comparison.bytes_of_full is not None and mtu is not None:
            text += f" = {comparison.bytes_of_full:.1%} of a {mtu.ip:,}-byte packet"
        if comparison.bytes_of_probe is not None:
            text += f", {comparison.bytes_of_probe:.0%} of this one"
    elif added == 0:
        text += "; no bytes added"
    return text


def encapsulation(measurement: Measurement) -> str:
    """What wraps the packets, as the stages say: ``vxlan``."""
    kinds = [
        str(stage.detail["kind"])
        for path in measurement.trace.paths
        for stage in path.stages
        if stage.stage == "encap" and "kind" in stage.detail
    ]
    return clean(kinds[0]) if kinds else ""


def bits(value: float) -> str:
    """``3.95 Gbit/s``"""
    for limit, factor, unit in ((999.5e3, 1e3, "kbit/s"), (999.5e6, 1e6, "Mbit/s")):
        if value < limit:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e9:.3g} Gbit/s"


def load_line(load: Load) -> str:
    """``load, TCP: 3.95 Gbit/s, 0.66x underlay [0.61, 0.70]; CPU 3.20 µs a kilobyte, 1.54x underlay``"""
    text = f"load, {load.protocol.upper()}"
    text += f" {load.size} bytes: " if load.size is not None else ": "
    text += bits(load.path_bits_per_second)
    if load.ratio is not None:
        text += f", {load.ratio:.2f}x underlay{_span(load.ratio_ci95, plain=True)}"
    if load.path_lost:
        text += f", {load.path_lost:.0%} lost"
    if load.path_cpu_ns is not None:
        text += f"; CPU {duration(load.path_cpu_ns)} a {load.cpu_unit}"
        text += f", {load.cpu_ratio:.2f}x underlay" if load.cpu_ratio is not None else ""
        text += f" ({load.cpu_source.partition(':')[0]})"
    return text


def _flow(flow: str) -> str:
    return {"new": "new flows", "established": "established flow"}.get(flow, flow)


LEAST_NS = 100.0
"""A stage's time below this is shown as less than it: what its two events cost is not known that well, and may exceed it."""


def spent(ns: float) -> str:
    """``1.90 µs``; ``<100 ns`` for what can't be told from nothing."""
    return duration(ns) if ns >= LEAST_NS else f"<{LEAST_NS:.0f} ns"


def stage_line(stages: Sequence[StageShare]) -> str:
    """``bridge 4.10 µs (41 %), encap 1.90 µs (19 %)``, longest first."""
    return ", ".join(f"{clean(each.stage)} {spent(each.ns)} ({max(0.0, each.share):.0%})" for each in stages)


def series_table(series: Sequence[SeriesResult], *, wide: bool) -> str:
    columns = ["FLOW", "SIZE", "WAY", "ARRIVED", "P50", "95 %", "MEAN", "P99", "OUTLIERS"]
    if any(each.round_trip_ns for each in series):
        columns.append("ROUND TRIP P50")
    if wide:
        columns += ["MIN", "P90", "MAX", "DISTRIBUTION"]
    rows = []
    for each in series:
        stats, histogram = each.one_way_ns, each.histogram
        top = histogram.start + histogram.width * len(histogram.counts) if histogram else 0.0
        shown = f"{duration(histogram.start)} {bars(histogram)} {duration(top)}" if histogram else ""
        cells = {
            "FLOW": each.flow,
            "SIZE": str(each.size),
            "WAY": each.way,
            "ARRIVED": f"{each.outcomes.get('delivered', 0)}/{each.probes}",
            "P50": duration(each.p50_all) if each.p50_all is not None else "",
            "95 %": _span(each.p50_ci95).strip(),
            "MEAN": duration(stats.mean) if stats else "",
            "P99": duration(each.p99_all) if each.p99_all is not None else "",
            "OUTLIERS": str(each.outliers.count),
            "ROUND TRIP P50": duration(each.round_trip_ns.p50) if each.round_trip_ns else "",
            "MIN": duration(stats.min) if stats else "",
            "P90": duration(stats.p90) if stats else "",
            "MAX": duration(each.outliers.max_ns or stats.max) if stats else "",
            "DISTRIBUTION": shown,
        }
        rows.append([cells[column] for column in columns])
    right = ("SIZE", "ARRIVED", "P50", "MEAN", "P99", "OUTLIERS", "ROUND TRIP P50", "MIN", "P90", "MAX")
    aligned = ["right" if column in right else "left" for column in columns]
    return tabulate(rows, headers=columns, tablefmt="plain", colalign=aligned, disable_numparse=True)


def measurement_text(measurement: Measurement, screen: Screen, *, wide: bool = False) -> str:
    """What `netpath measure` shows."""
    trace, baseline = measurement.trace, measurement.baseline
    lines: list[str] = []
    shown = next((packet(path.hops[0].headers) for path in trace.paths if path.direction == "forward" and path.hops), "")
    lines.append(screen.style(f"measured: {shown}" if shown else "measured: nothing left the source", "head"))
    if baseline.applies:
        ends = f"{clean(baseline.source or '')} {baseline.source_address} > {clean(baseline.destination or '')} {baseline.address}"
        lines += fold(f"underlay: {ends}, the nodes' own sockets, interleaved", screen.width, rest="  ")
    else:
        lines += fold(f"no baseline: {clean(baseline.reason or '')}", screen.width, rest="  ")
    lines.append("")
    for comparison in measurement.comparisons:
        lines += fold(headline(comparison, measurement), screen.width, rest="  ")
    if measurement.comparisons:
        lines.append("")
    lines += [line for load in measurement.load or () for line in fold(load_line(load), screen.width, rest="  ")]
    if measurement.load:
        lines.append("")
    lines += [series_table(measurement.series, wide=wide), ""]
    lines += _stages(measurement, screen)
    lines += _failures(measurement, screen)
    first = next((path for path in trace.paths if path.direction == "forward"), None)
    if first is not None and first.translations:
        lines += ["translations:", *translation_lines(first.translations, screen.width)]
    if any(each.outliers.count for each in measurement.series):
        text = "outliers lie more than 3 interquartile ranges above the third quartile; they count in P50 and P99, and not in MEAN and stages"
        lines += [screen.style(line, "dim") for line in fold(text, screen.width, rest="  ")]
    if trace.probe_cost.ns_per_event is not None:
        lines.append(f"probe cost: {duration(trace.probe_cost.ns_per_event)} an event, taken out of the times above")
    for note in trace.notes:
        lines += fold(f"note: {clean(note)}", screen.width, rest="  ")
    if wide:
        for table in measurement.conntrack:
            lines.append(f"conntrack in {clean(table.netns)}: {table.before} entries before, {table.after} after, of {table.limit}")
    if trace.completeness.verdict != "COMPLETE":
        text = f"PARTIAL: {'; '.join(clean(reason) for reason in trace.completeness.reasons)}"
        lines += [screen.style(line, "warn") for line in fold(text, screen.width, rest="  ")]
    return "\n".join([*lines, _verdict(measurement, screen)]) + "\n"


def _stages(measurement: Measurement, screen: Screen) -> list[str]:
    lines: list[str] = []
    ways = _forward(measurement)
    for each in measurement.series:
        if each.stages:
            mine = [path for series, path in ways if series is each]
            title = _label(each)
            if len(mine) > 1:
                title += f", the way of {mine[0].probes} of {each.probes}"
            lines += fold(f"{title}: {stage_line(each.stages)}", screen.width, rest="  ")
    return [screen.style("where the mean goes", "head"), *lines, ""] if lines else []


def _forward(measurement: Measurement) -> list[tuple[SeriesResult, Path]]:
    """All ways from source to destination, of the path and of the underlay, each with its series."""
    pairs = list(zip(measurement.path_series, measurement.trace.paths, strict=True))
    if measurement.underlay is not None:
        pairs += zip(measurement.underlay_series, measurement.underlay.paths, strict=True)
    return [(measurement.series[number], path) for number, path in pairs if path.direction == "forward"]


def _label(series: SeriesResult) -> str:
    return f"{_flow(series.flow)}, {series.size} bytes, {series.way}"


def _failures(measurement: Measurement, screen: Screen) -> list[str]:
    """Where the probes ended that did not arrive, why, and what mends it; and where those that arrived went another way."""
    failed: dict[tuple[str, ...], list[str]] = {}
    strayed: dict[str, int] = {}
    for series, path in _forward(measurement):
        if path.outcome == "delivered":
            for hop in path.hops:
                if hop.status in ("missing", "unexpected"):
                    where = f"{hop.status}: {clean(hop.device.name)} {hop.direction} in {clean(hop.netns.name)}"
                    strayed[where] = strayed.get(where, 0) + (path.probes or 0)
            continue
        last = next((hop for hop in reversed(path.hops) if hop.status in ("observed", "unexpected")), None)
        seen = f"last seen: {clean(last.device.name)} {last.direction} in {clean(last.netns.name)}" if last else "seen at no device"
        key = (seen, *ending(path, screen))
        failed.setdefault(key, []).append(f"{_label(series)}: {path.probes} of {series.probes}")
    lines: list[str] = []
    for (seen, *how), whose in failed.items():
        lines += fold("; ".join(whose), screen.width, rest="  ")
        lines += fold(seen, screen.width, first="  ", rest="    ") + [f"  {line}" for line in how]
    lines = [screen.style("what did not arrive", "head"), *lines, ""] if lines else []
    if strayed:
        lines += [screen.style("not as predicted (netpath trace shows the way hop by hop)", "head")]
        lines += [f"  {where}, {probes} probes" for where, probes in strayed.items()] + [""]
    return lines


def _verdict(measurement: Measurement, screen: Screen) -> str:
    trace = measurement.trace
    outcome = screen.style(trace.outcome, _OUTCOMES.get(trace.outcome, "warn"))
    ended = {"precision": "; ended early, as precise as asked", "conntrack": "; ended early, no room in conntrack"}
    mine = [each for each in measurement.series if each.way == PATH]
    sent = sum(each.probes for each in mine)
    if trace.outcome == "mixed":
        counts = {name: sum(each.outcomes.get(name, 0) for each in mine) for name in _OUTCOMES}
        outcome += f" ({', '.join(f'{number} {name}' for name, number in counts.items() if number)})"
    way = "NOT as predicted" if trace.diverged else "as predicted"
    if trace.prediction.outcome == "uncertain":
        way = "which could not be predicted"
    return f"verdict: {sent} probes {outcome}, {way}{ended.get(measurement.stopped, '')}; {trace.completeness.verdict}"
