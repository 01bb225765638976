"""netpath lab"""

from __future__ import annotations

from typing import Annotated

import typer

from netpath.cli import options

HELP = "Build container datapaths in network namespaces, for trying, teaching and testing."


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
