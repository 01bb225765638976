"""netpath trace"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from netpath.cli import options
from netpath.cli.options import Output
from netpath.errors import EXIT_FINDING, EXIT_INCONCLUSIVE, EXIT_OK, UsageError

if TYPE_CHECKING:
    from netpath.model.path import Trace

HELP = "Send probes and show the observed path against the predicted one."

_UNITS = {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}


def run(
    source: options.Source,
    destination: options.Destination,
    udp: options.Udp = False,
    tcp: options.Tcp = False,
    icmp: options.Icmp = False,
    sport: options.Sport = None,
    size: options.Size = 64,
    df: options.Df = False,
    ttl: options.Ttl = 64,
    count: Annotated[int, typer.Option("--count", "-c", min=1, max=100000, help="How many probes to send.")] = 5,
    timeout: Annotated[float, typer.Option("--timeout", min=0.01, max=60, help="Seconds to wait for the last probe's end.")] = 4.0,
    interval: Annotated[float, typer.Option("--interval", min=0, max=60, help="Seconds between probes.")] = 0.01,
    cold: Annotated[
        bool, typer.Option("--cold", help="Send no warm-up probe: the first figure includes ARP and conntrack.")
    ] = False,
    round_trip: Annotated[bool, typer.Option("--round-trip", help="Follow the answer back as well.")] = False,
    buffer: Annotated[
        int, typer.Option("--buffer", metavar="BYTES", help="Size of the event buffer, a power of two.", show_default=True)
    ] = 1 << 20,
    hooks: options.Hooks = None,
    expect: options.Expect = None,
    expect_max_p99: Annotated[
        str | None,
        typer.Option(
            "--expect-max-p99", metavar="TIME", help="Exit 1 if the 99th percentile of the one-way time is above: 50us, 2ms."
        ),
    ] = None,
    output: options.OutputOption = Output.table,
) -> int:
    limit = _time(expect_max_p99) if expect_max_p99 is not None else None
    from netpath.render.out import Progress, result
    from netpath.trace.request import TraceRequest
    from netpath.trace.session import run as trace

    asked = TraceRequest(
        source=source,
        destination=destination,
        protocol=options.protocol(udp, tcp, icmp),
        sport=sport,
        size=size,
        df=df,
        ttl=ttl,
        count=count,
        timeout=timeout,
        interval=interval,
        cold=cold,
        round_trip=round_trip,
        hooks=options.hook_names(hooks),
        ring_bytes=buffer,
    )
    done = trace(asked, progress=Progress())
    if output is Output.json:
        from netpath.render.json import document

        request = options.request(done.source, done.destination, done.flow, count=count, interval=interval, round_trip=round_trip)
        nodes = options.nodes(done.snapshot, done.index)
        result(document("Trace", done.snapshot.taken_at, nodes, request, _content(done.trace)))
    else:
        from netpath.render.hops import trace_text

        result(trace_text(done.trace, options.screen(), wide=output is Output.wide))
    return exit_code(done.trace, expect.value if expect else None, limit)


def _content(trace: Trace) -> dict[str, object]:
    from dataclasses import fields

    from netpath.render.json import jsonable

    document = jsonable(trace)
    order = [field.name for field in fields(trace) if field.name in document]
    return {name: document[name] for name in order}


def _time(text: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ns|us|µs|ms|s)\s*", text)
    if found is None:
        raise UsageError(f"--expect-max-p99 {text!r}: a number with ns, us, ms or s, such as 50us")
    return float(found[1]) * _UNITS[found[2]]


def exit_code(trace: Trace, expected: str | None, max_p99_ns: float | None) -> int:
    """The contract's code for a finished trace: 4 before 1 before 0. An expectation replaces what counts as worth a look.

    A limit alone expects delivery. A probe that was lost is one that was dropped, at an unknown place.
    """
    if trace.completeness.verdict != "COMPLETE":
        return EXIT_INCONCLUSIVE
    if max_p99_ns is not None:
        worst = [
            path.overhead["one_way_ns"].p99
            for path in trace.paths
            if path.direction == "forward" and path.overhead and path.overhead["one_way_ns"]
        ]
        if not worst or max(worst) > max_p99_ns:
            return EXIT_FINDING
        expected = expected or "delivered"
    if expected is not None:
        met = trace.outcome == expected or (expected == "dropped" and trace.outcome == "lost")
        return EXIT_OK if met else EXIT_FINDING
    if trace.outcome != "delivered":
        return EXIT_FINDING
    if trace.prediction.outcome == "uncertain":
        return EXIT_INCONCLUSIVE
    return EXIT_FINDING if trace.diverged else EXIT_OK
