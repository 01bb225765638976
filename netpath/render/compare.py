"""Datapaths beside each other: as a table, as Markdown, as a page."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import fields

from tabulate import tabulate

from netpath.lab.compare import FAILS, HOLDS, Comparison, ModeResult, Ratio
from netpath.render.json import jsonable
from netpath.render.measure import bits, spent
from netpath.render.text import Screen, clean, duration, fold

_COST = (
    "MODE",
    "ONE WAY P50",
    "P99",
    "NEW P50",
    "x HOST",
    "RTT P50",
    "x HOST",
    "x HOST-GW",
    "TCP",
    "x HOST",
    "x HOST-GW",
    "CPU x HOST",
    "CPU/PACKET",
    "x HOST",
)
_WORK = ("MODE", "BYTES", "ENCAP", "NAT EST.", "NAT NEW", "REWRITES", "USER SPACE", "ROUTES/NODE", "WHERE THE MEAN GOES")
_VERDICTS = {HOLDS: "good", FAILS: "bad"}
_COLOURS = {
    "socket": "#2ca02c",
    "veth": "#8a8f94",
    "bridge": "#1f77b4",
    "route": "#17a398",
    "conntrack": "#9467bd",
    "nat": "#7b4b2a",
    "filter": "#e377c2",
    "ipvs": "#17becf",
    "encap": "#d62728",
    "decap": "#ff9f43",
    "userspace": "#f2c80f",
    "qdisc": "#2b3a55",
    "wire": "#b9bec3",
    "other": "#dfe3e6",
}
"""Also the order of a bar's parts: the same in every bar, so that one colour can be followed down the page."""
LEGEND = (
    "ONE WAY: established flow, first device to receiver, probes' cost taken out; x HOST: over host sockets on the same fabric, measured in "
    "turns; RTT: an application's ping-pong; CPU: of the whole machine for a byte of the TCP stream, CPU/PACKET for each packet that a UDP "
    "stream of 1400 bytes brings over; x HOST-GW: each over its own host sockets first; NAT: - where no hook tells it apart, <100 ns where it can't be told from nothing"
)


def _time(ns: float | None) -> str:
    return "-" if ns is None else duration(ns)


def _spent(ns: float | None) -> str:
    return "-" if ns is None else spent(ns)


def _factor(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return _factor(ratio.value) + (f" [{_factor(ratio.ci95[0])}, {_factor(ratio.ci95[1])}]" if ratio.ci95 else "")


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def cost_rows(modes: Sequence[ModeResult]) -> list[list[str]]:
    return [
        [
            clean(each.mode),
            _time(each.one_way_p50),
            _time(each.one_way_p99),
            _time(each.one_way_new_p50),
            _ratio(each.one_way_ratio),
            _time(each.rtt_p50),
            _ratio(each.rtt_ratio),
            _factor(each.rtt_to_hostgw),
            bits(each.tcp_bits_per_second),
            _ratio(each.tcp_ratio),
            _factor(each.tcp_to_hostgw),
            _factor(each.cpu_ratio),
            _time(each.packet_cpu_ns),
            _factor(each.packet_cpu_ratio),
        ]
        for each in modes
    ]


def work_rows(modes: Sequence[ModeResult]) -> list[list[str]]:
    return [
        [
            clean(each.mode),
            "-" if each.encap_bytes is None else f"+{each.encap_bytes}" if each.encap_bytes else "0",
            _spent(each.encap_ns),
            _spent(each.nat_established_ns),
            _spent(each.nat_new_ns),
            _number(each.translations),
            _number(each.crossings),
            str(each.routes_per_node),
            ", ".join(f"{clean(stage.stage)} {max(0.0, stage.share):.0%}" for stage in each.stages),
        ]
        for each in modes
    ]


def _aligned(columns: Sequence[str]) -> list[str]:
    return ["left" if column in ("MODE", "WHERE THE MEAN GOES") else "right" for column in columns]


def _tables(comparison: Comparison, style: str, cell: Callable[[str], str] = str) -> list[str]:
    return [
        tabulate(
            [[cell(text) for text in row] for row in rows],
            headers=list(columns),
            tablefmt=style,
            colalign=_aligned(columns),
            disable_numparse=True,
        )
        for columns, rows in ((_COST, cost_rows(comparison.modes)), (_WORK, work_rows(comparison.modes)))
    ]


def comparison_text(comparison: Comparison, screen: Screen) -> str:
    """What `netpath lab compare` shows."""
    cost, work = _tables(comparison, "plain")
    lines = [cost, "", work, ""]
    lines += [screen.style(line, "dim") for line in fold(LEGEND, screen.width, rest="  ")]
    lines += ["", screen.style("what is said, and what was measured here", "head")]
    for claim in comparison.claims:
        first, *rest = fold(f"{claim.verdict}: {claim.claim}", screen.width, rest="    ")
        style = _VERDICTS.get(claim.verdict, "warn")
        lines += [screen.style(claim.verdict, style) + first[len(claim.verdict) :], *rest]
        for text in (claim.measured, claim.basis):
            lines += fold(text, screen.width, first="  ", rest="    ") if text else []
    for mode, reason in comparison.skipped.items():
        lines += fold(f"left out: {clean(mode)}: {clean(reason)}", screen.width, rest="  ")
    for line in _partial(comparison):
        lines += fold(line, screen.width, rest="  ")
    lines += fold(
        f"{comparison.rounds} rounds in random order, kernel {clean(comparison.kernel)}; {comparison.caveat}",
        screen.width,
        rest="  ",
    )
    return "\n".join(lines) + "\n"


def _partial(comparison: Comparison) -> list[str]:
    partial = [clean(each.mode) for each in comparison.modes if not each.complete]
    return [f"PARTIAL: events were lost or hooks missing in {', '.join(partial)}"] if partial else []


def comparison_markdown(comparison: Comparison) -> str:
    """The same for a README: pipe tables."""
    cost, work = _tables(comparison, "github", _cell)
    claims = tabulate(
        [[_cell(text) for text in (claim.claim, claim.measured, claim.verdict, claim.basis)] for claim in comparison.claims],
        headers=["claim", "measured here", "verdict", "basis"],
        tablefmt="github",
        disable_numparse=True,
    )
    lines = [cost, "", work, "", LEGEND, "", claims, ""]
    lines += [_cell(line) for line in _partial(comparison)]
    lines += [f"Left out: {_cell(mode)}: {_cell(reason)}" for mode, reason in comparison.skipped.items()]
    lines.append(f"{comparison.rounds} rounds in random order, kernel {_cell(comparison.kernel)}; {comparison.caveat}.")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return clean(text).replace("|", "\\|").replace("<", "&lt;")


def comparison_content(comparison: Comparison) -> dict[str, object]:
    """The keys of the JSON document, in the order in which they are declared."""
    document = jsonable(comparison)
    return {field.name: document[field.name] for field in fields(comparison) if field.name != "taken_at"}


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 78em; padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px } th, td { padding: .3em .6em; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child, .words td { text-align: left } .scroll { overflow-x: auto }
.row { display: flex; align-items: center; margin: .35em 0 } .name { width: 11em; flex: none } .bar { display: flex; height: 1.5em; flex: 1 }
.bar span { display: block; min-width: 1px } .time { width: 6em; text-align: right; flex: none }
.key i { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; vertical-align: -.1em }
.good { color: #1e7d34 } .bad { color: #b02a2a } small { color: #555 }
"""


def comparison_html(comparison: Comparison) -> str:
    """One page that needs nothing else: a stacked bar for each mode, the tables, the claims. Everything is escaped."""
    shown = [each for each in comparison.modes if each.stages]
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><title>netpath: datapaths compared</title>',
        f"<style>{_STYLE}</style></head><body>",
        "<h1>Where the time goes</h1>",
        "<p>One way, established flow, 64 bytes of UDP, from the first device to the receiver: the mean, by stage.</p>",
    ]
    present = {stage.stage for each in shown for stage in each.stages}
    key = "".join(f'<i style="background:{_colour(stage)}"></i>{_safe(stage)}' for stage in sorted(present, key=_rank))
    parts.append(f'<p class="key">{key}</p>')
    # A process in the way takes so much longer that on one scale nothing else could be seen.
    parts += _bars([each for each in shown if not each.crossings], "")
    parts += _bars([each for each in shown if each.crossings], "Through a process in user space, on a scale of its own")
    for columns, rows in ((_COST, cost_rows(comparison.modes)), (_WORK, work_rows(comparison.modes))):
        parts.append(f'<div class="scroll">{_table(columns, rows)}</div>')
    parts.append(f"<p><small>{_safe(LEGEND)}</small></p><h2>What is said, and what was measured here</h2>")
    parts.append('<table class="words"><tr><th>claim</th><th>measured</th><th>verdict</th><th>basis</th></tr>')
    for claim in comparison.claims:
        style = _VERDICTS.get(claim.verdict, "")
        cells = "".join(f"<td>{_safe(text)}</td>" for text in (claim.claim, claim.measured))
        parts.append(f'<tr>{cells}<td class="{style}">{_safe(claim.verdict)}</td><td>{_safe(claim.basis)}</td></tr>')
    parts.append("</table>")
    parts += [f"<p>{_safe(line)}</p>" for line in _partial(comparison)]
    parts += [f"<p>Left out: {_safe(mode)}: {_safe(reason)}</p>" for mode, reason in comparison.skipped.items()]
    parts.append(
        f"<p><small>{comparison.rounds} rounds in random order, kernel {_safe(comparison.kernel)}, {_safe(comparison.taken_at)}; "
        f"{_safe(comparison.caveat)}.</small></p></body></html>"
    )
    return "\n".join(parts) + "\n"


def _bars(modes: Sequence[ModeResult], title: str) -> list[str]:
    """A bar for each mode, the shortest first, all on one scale."""
    longest = max((_total(each) for each in modes), default=0.0)
    parts = [f"<h2>{_safe(title)}</h2>"] if title and modes else []
    for each in sorted(modes, key=_total):
        bar = "".join(
            f'<span style="width:{100 * max(0.0, stage.ns) / longest if longest else 0:.2f}%;background:{_colour(stage.stage)}" '
            f'title="{_safe(stage.stage)} {_safe(spent(stage.ns))} ({max(0.0, stage.share):.0%})"></span>'
            for stage in sorted(each.stages, key=lambda stage: _rank(stage.stage))
        )
        name, time = _safe(each.mode), _safe(duration(_total(each)))
        parts.append(
            f'<div class="row"><div class="name">{name}</div><div class="bar">{bar}</div><div class="time">{time}</div></div>'
        )
    return parts


def _rank(stage: str) -> tuple[int, str]:
    order = list(_COLOURS)
    return (order.index(stage) if stage in order else len(order), stage)


def _total(result: ModeResult) -> float:
    return sum(max(0.0, stage.ns) for stage in result.stages)


def _colour(stage: str) -> str:
    return _COLOURS.get(stage, "#666666")


def _safe(text: str) -> str:
    return html.escape(clean(text))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_safe(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_safe(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
