"""netpath measure"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netpath.cli import options
from netpath.cli.options import Output
from netpath.cli.trace import exit_code
from netpath.errors import UsageError

if TYPE_CHECKING:
    from netpath.measure.result import Measurement

HELP = "Send many probes, beside the same on the nodes' own network, and show what the way costs, with intervals."


class FlowKind(StrEnum):
    new = "new"
    established = "established"
    both = "both"


def run(
    source: options.Source,
    destination: options.Destination,
    udp: options.Udp = False,
    tcp: options.Tcp = False,
    icmp: options.Icmp = False,
    sport: options.Sport = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="BYTES,...", help="Payload sizes to measure, one after the other interleaved.")
    ] = None,
    df: options.Df = False,
    ttl: options.Ttl = 64,
    flow: Annotated[
        FlowKind | None,
        typer.Option("--flow", help="Probes that open flows, of one established flow, or both (the default; TCP: new)."),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-c", min=1, max=10000, help="How many probes of each kind.")] = 200,
    rate: Annotated[
        float, typer.Option("--rate", min=0.1, max=10000, help="Probes a second on average, of all kinds; they go in bursts.")
    ] = 200.0,
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="PERCENT", help="End early when every median is known this well: 5%.")
    ] = None,
    round_trip: Annotated[bool, typer.Option("--round-trip", help="Follow the answers back as well.")] = False,
    no_baseline: Annotated[
        bool, typer.Option("--no-baseline", help="Leave out the same probes between the nodes' own sockets.")
    ] = False,
    load: Annotated[
        bool, typer.Option("--load", help="Then run TCP and UDP streams on both ways: throughput, and CPU time for it.")
    ] = False,
    load_seconds: Annotated[
        float, typer.Option("--load-seconds", min=0.1, max=60, help="How long each stream lasts, in all, on each way.")
    ] = 2.0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.01, max=60, help="Seconds to wait for the end of a burst's probes.")
    ] = 1.0,
    buffer: Annotated[int, typer.Option("--buffer", metavar="BYTES", help="Size of the event buffer, a power of two.")] = 1 << 20,
    hooks: options.Hooks = None,
    output: options.OutputOption = Output.table,
) -> int:
    from netpath.measure.plan import MeasureRequest

    asked = MeasureRequest(
        source=source,
        destination=destination,
        protocol=options.protocol(udp, tcp, icmp),
        sport=sport,
        sizes=sizes(size),
        flow=flow.value if flow else None,
        count=count,
        rate=rate,
        precision=fraction(precision),
        round_trip=round_trip,
        baseline=not no_baseline,
        df=df,
        ttl=ttl,
        timeout=timeout,
        hooks=options.hook_names(hooks),
        ring_bytes=buffer,
        load_seconds=load_seconds if load else None,
    )
    from netpath.measure.session import run as measure
    from netpath.render.measure import Bar
    from netpath.render.out import Progress, result

    with Bar() as bar:
        done = measure(asked, progress=Progress(), tick=bar)
    if output is Output.json:
        from netpath.render.json import document

        request = options.request(
            done.source, done.destination, done.flow, count=count, interval=1 / done.rate, round_trip=round_trip
        )
        request |= {"rate": rate, "flow": asked.flow, "precision": asked.precision}
        nodes = options.nodes(done.snapshot, done.index)
        result(document("Trace", done.snapshot.taken_at, nodes, request, content(done)))
    else:
        from netpath.render.measure import measurement_text

        result(measurement_text(done, options.screen(), wide=output is Output.wide))
    return exit_code(done.trace, None, None)


def content(done: Measurement) -> dict[str, Any]:
    """A Trace's keys, with the series that its paths belong to, and what only a measurement has."""
    from netpath.render.json import jsonable

    document: dict[str, Any] = jsonable(done.trace)
    for path, number in zip(document["paths"], done.path_series, strict=True):
        path["series"] = number
    baseline = jsonable(done.baseline)
    if done.underlay is not None:
        baseline["paths"] = jsonable(done.underlay.paths)
        for path, number in zip(baseline["paths"], done.underlay_series, strict=True):
            path["series"] = number
    loads = {} if done.load is None else {"load": jsonable(done.load)}
    return document | {
        "series": jsonable(done.series),
        "comparisons": jsonable(done.comparisons),
        "baseline": baseline,
        "conntrack": jsonable(done.conntrack),
        "stopped": done.stopped,
        "rate": done.rate,
        **loads,
    }


def sizes(text: str | None) -> tuple[int, ...] | None:
    """``64,512,1400``. Raises UsageError."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and word.isascii() and int(word) <= 65000 for word in words):
        raise UsageError(f"--size {text!r}: one or more numbers of bytes up to 65000, such as 64,512,1400")
    return tuple(int(word) for word in words)


def fraction(text: str | None) -> float | None:
    """``5%`` as 0.05. Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,3}(?:\.\d+)?)\s*%?\s*", text)
    if found is None or not 0 < float(found[1]) <= 100:
        raise UsageError(f"--precision {text!r}: a percentage above 0 and up to 100, such as 5%")
    return float(found[1]) / 100
