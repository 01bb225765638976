"""Entry point: the verbs, and what becomes of every error.

Start-up is what a user feels first: a verb's own module imports nothing but typer and the standard library, and fetches the
pipeline when it runs.
"""

from __future__ import annotations

import signal
import traceback
from types import FrameType
from typing import Annotated, Any

import typer

from netpath.cli import inventory, lab, measure, path, probes, settings, snapshot, trace
from netpath.errors import EXIT_FINDING, EXIT_INTERRUPTED, EXIT_USAGE, NetpathError

_SWITCHES = ("--debug", "--no-color")
"""Flags that may stand anywhere on the line."""


def _version(wanted: bool) -> None:
    if wanted:
        from netpath import __version__
        from netpath.render.out import result

        result(f"netpath {__version__}\n")
        raise typer.Exit


def application() -> typer.Typer:
    app = typer.Typer(
        name="netpath",
        help="Where a container's packet goes, what every hop costs, and why it does not arrive.",
        epilog="--debug and --no-color may stand anywhere. Exit codes: 0 delivered as predicted, 1 look at it, 2 usage, 3 privilege or "
        "kernel feature missing, 4 inconclusive, 130 interrupted.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def top(
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
        ] = False,
    ) -> None:
        pass

    app.command("inventory", help=inventory.HELP)(inventory.run)
    app.command("path", help=path.HELP)(path.run)
    app.command("trace", help=trace.HELP)(trace.run)
    app.command("measure", help=measure.HELP)(measure.run)
    app.command("probes", help=probes.HELP)(probes.run)
    app.command("snapshot", help=snapshot.HELP)(snapshot.run)
    app.add_typer(lab.app(), name="lab", help=lab.HELP)
    return app


def _take_switches(arguments: list[str]) -> list[str]:
    """Remove the switches that may stand anywhere (before a ``--`` or the command of ``lab exec``) and remember them."""
    end = min(arguments.index("--") if "--" in arguments else len(arguments), _command_of_exec(arguments))
    head, tail = arguments[:end], arguments[end:]
    settings.debug = "--debug" in head
    settings.no_colour = "--no-color" in head
    return [word for word in head if word not in _SWITCHES] + tail


def _command_of_exec(arguments: list[str]) -> int:
    """Where the command that ``lab exec`` is to run begins: its flags are its own."""
    words = [at for at, word in enumerate(arguments) if not word.startswith("-")]
    if [arguments[at] for at in words[:2]] == ["lab", "exec"] and len(words) > 2:
        return words[2] + 1
    return len(arguments)


def guarded(arguments: list[str]) -> int:
    """The exit code of one command line. No traceback reaches the user without --debug."""
    try:
        settings.interrupted = False
        signal.signal(signal.SIGINT, _interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP):  # a timeout, a closed terminal: what was made is put back as well
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _interrupt)
        return _run(_take_switches(arguments))
    except NetpathError as error:
        return _failed(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _failed("interrupted; nothing is left behind", EXIT_INTERRUPTED)
    except Exception as error:
        if type(error).__name__ == "ReaderGone":  # the reader has enough; its class is imported only by who prints
            return 128 + signal.SIGPIPE
        return _failed(f"unexpected {type(error).__name__}: {error}; this is a bug in netpath (--debug shows where)", EXIT_FINDING)


def _failed(text: str, code: int) -> int:
    from netpath.render.out import failure

    if settings.debug and code != EXIT_INTERRUPTED:
        traceback.print_exc()
    failure(" ".join(text.split()))
    return code


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(application())
    try:
        outcome: Any = command.main(args=arguments, prog_name="netpath", standalone_mode=False)
    except Exception as error:
        # typer brings its own copy of click in some versions and uses click itself in others: its usage errors are known by shape.
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):
            context = getattr(error, "ctx", None)
            if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
                from netpath.render.out import result

                result(context.get_help() + "\n")
                return EXIT_USAGE
            hint = f" (see {context.command_path} --help)" if context is not None else ""
            return _failed(f"{error.format_message()}{hint}", EXIT_USAGE)
        if type(error).__name__ == "Abort":
            raise KeyboardInterrupt from error
        if type(error).__name__ == "Exit":
            return int(getattr(error, "exit_code", 0))
        raise
    if settings.interrupted:  # typer makes an exit code of it, which a command in a lab may have had on its own account
        raise KeyboardInterrupt
    return outcome if isinstance(outcome, int) else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    settings.interrupted = True
    raise KeyboardInterrupt
