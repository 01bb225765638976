"""netpath lab"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from netpath.cli import options
from netpath.errors import EXIT_INCONCLUSIVE, EXIT_OK

HELP = "Build container datapaths in network namespaces, for trying, teaching and testing."


class ComparisonOutput(StrEnum):
    table = "table"
    json = "json"
    markdown = "markdown"
    html = "html"


def app() -> typer.Typer:
    made = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
    made.command("up", help="Build a lab and print its name.")(up)
    made.command("down", help="Remove a lab, also one whose building was interrupted.")(down)
    made.command("list", help="Show the labs that are up, and the kinds of lab there are.")(list_)
    made.command(
        "exec",
        help="Run a command in a node or pod: netpath lab exec pod1a -- ip addr.",
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    )(exec_)
    made.command(
        "compare", help="Build labs, measure them in turns beside host sockets, and hold what is said about them against it."
    )(compare)
    return made


def up(
    mode: Annotated[str, typer.Argument(metavar="[MODE]", help="Which kind; netpath lab list shows them.")] = "flannel-vxlan",
    name: Annotated[str | None, typer.Option("--name", help="A name for it, at most a few letters.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Vary it, e.g. services=nftables or nodes=3; see docs/lab.md."),
    ] = None,
) -> int:
    from netpath import lab
    from netpath.render.out import result

    made = lab.up(mode, name, **lab.parse_options(settings or []))
    lines = [f"lab {made.name} ({made.mode}) is up"]
    lines += [f"  {pod.label}  {pod.address}  on {made.node(pod.node).netns}" for pod in made.pods]
    commands = next(kind.try_commands for kind in lab.MODES if kind.name == made.mode)
    lines += [f"try: {command.format(lab=made.name)}" for command in commands]
    result("\n".join(lines) + "\n")
    return 0


def down(
    names: Annotated[list[str] | None, typer.Argument(metavar="[LAB]...", help="Which; all of them without a name.")] = None,
) -> int:
    from netpath import lab
    from netpath.render.out import result

    gone = []
    if names:
        for name in names:
            lab.down(name)
            gone.append(name)
    else:
        gone = list(lab.down_all())
    result("".join(f"lab {name} is gone\n" for name in gone) or "no lab was up\n")
    return 0


def list_() -> int:
    from netpath import lab
    from netpath.render.lists import labs_text
    from netpath.render.out import result

    result(labs_text(lab.list_labs(), lab.MODES, options.screen()))
    return 0


def exec_(
    target: Annotated[str, typer.Argument(metavar="NODE|POD", help="Where: pod1a, LAB/pod1a or the namespace's name.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run.")],
) -> int:
    from netpath import lab

    return lab.run_in(target, command[1:] if command and command[0] == "--" else command)


def compare(
    modes: Annotated[list[str] | None, typer.Argument(metavar="[MODE]...", help="Which; all of them without a name.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=100, help="Turns through all modes, in random order.")] = 2,
    count: Annotated[int, typer.Option("--count", "-c", min=5, max=1000, help="Probes of each kind in each round.")] = 120,
    output: Annotated[ComparisonOutput, typer.Option("-o", "--output", help="How to show the result.")] = ComparisonOutput.table,
) -> int:
    from netpath.lab import compare as comparing
    from netpath.render import compare as rendering
    from netpath.render.out import Progress, result

    done = comparing.run(modes or (), rounds=rounds, count=count, progress=Progress())
    if output is ComparisonOutput.json:
        import platform

        from netpath.render.json import document

        nodes = [{"name": platform.node(), "kernel": done.kernel, "datapaths": []}]
        request = {"modes": [mode.name for mode in comparing.chosen(modes or ())], "rounds": rounds, "count": count}
        result(document("Comparison", done.taken_at, nodes, request, rendering.comparison_content(done)))
    elif output is ComparisonOutput.table:
        result(rendering.comparison_text(done, options.screen()))
    else:
        result(rendering.comparison_markdown(done) if output is ComparisonOutput.markdown else rendering.comparison_html(done))
    return EXIT_INCONCLUSIVE if done.incomplete or not all(each.complete for each in done.modes) else EXIT_OK
