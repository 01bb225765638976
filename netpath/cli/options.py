"""Options that several verbs share, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netpath.cli import settings
from netpath.errors import UsageError

if TYPE_CHECKING:
    from netpath.endpoints import Endpoint
    from netpath.model.index import SnapshotIndex
    from netpath.model.packet import Flow
    from netpath.model.snapshot import Snapshot
    from netpath.render.text import Screen


class Output(StrEnum):
    table = "table"
    wide = "wide"
    json = "json"


class Expectation(StrEnum):
    delivered = "delivered"
    rejected = "rejected"
    dropped = "dropped"


Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC", help="Where from: an address, netns:NAME, pid:PID, docker:NAME, pod:NS/NAME, host, or a bare name."
    ),
]
Destination = Annotated[
    str, typer.Argument(metavar="DST[:PORT]", help="Where to: as SRC, or any address; with a port unless ICMP is meant.")
]
OutputOption = Annotated[Output, typer.Option("-o", "--output", help="How to show the result.")]
SnapshotOption = Annotated[
    str | None,
    typer.Option(
        "--snapshot", metavar="FILE", help="Read the state from a snapshot, a dump folder or a tar instead of this machine."
    ),
]
Udp = Annotated[bool, typer.Option("--udp", help="Probe by UDP (needs a port).")]
Tcp = Annotated[bool, typer.Option("--tcp", help="Probe by a TCP SYN (the default with a port).")]
Icmp = Annotated[bool, typer.Option("--icmp", help="Probe by an ICMP echo (the default without a port).")]
Sport = Annotated[int | None, typer.Option("--sport", min=1, max=65535, help="Source port.")]
Size = Annotated[int, typer.Option("--size", min=0, max=65000, help="Bytes of payload after the transport header.")]
Df = Annotated[bool, typer.Option("--df", help="Set don't-fragment.")]
Ttl = Annotated[int, typer.Option("--ttl", min=1, max=255, help="TTL or hop limit.")]
Hooks = Annotated[
    str | None,
    typer.Option(
        "--hooks",
        metavar="NAME,...",
        help="Use these kinds of hook only: btf or raw; netfilter, fentry or kprobe (see netpath probes).",
    ),
]
Expect = Annotated[Expectation | None, typer.Option("--expect", help="Exit 0 if this is the outcome, 1 if not.")]


def protocol(udp: bool, tcp: bool, icmp: bool) -> str | None:
    """The protocol that was asked for; None: the port decides. Raises UsageError when several were."""
    chosen = [name for name, wanted in (("udp", udp), ("tcp", tcp), ("icmp", icmp)) if wanted]
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0]} and --{chosen[1]} exclude each other")
    return chosen[0] if chosen else None


def screen() -> Screen:
    from netpath.render.text import screen as make

    return make(no_colour=settings.no_colour)


def request(source: Endpoint, destination: Endpoint, flow: Flow, **more: Any) -> dict[str, Any]:
    """What was asked, as the JSON documents repeat it."""
    return {
        "source": _endpoint(source),
        "destination": _endpoint(destination),
        "protocol": flow.protocol,
        **({} if flow.protocol == "icmp" else {"port": flow.dport, "sport": flow.sport}),
        "size": flow.payload,
        "df": flow.df,
        "ttl": flow.ttl,
        **more,
    }


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    return {"text": endpoint.text, "netns": endpoint.netns, "address": endpoint.address, "workload": endpoint.workload}


def datapaths(snapshot: Snapshot, index: SnapshotIndex) -> Mapping[str, tuple[Any, ...]]:
    from netpath.cni import recognise

    return recognise(snapshot, index)


def nodes(snapshot: Snapshot, index: SnapshotIndex) -> list[dict[str, Any]]:
    """The `nodes` of a document: every namespace that forwards, with the datapaths it runs."""
    return [
        {"name": name, "kernel": snapshot.kernel, "datapaths": found} for name, found in sorted(datapaths(snapshot, index).items())
    ]


def hook_names(text: str | None) -> tuple[str, ...]:
    """What ``--hooks`` was given, in words."""
    return tuple(word for part in (text or "").split(",") if (word := part.strip()))
