"""The command line: one file per verb. Each parses, calls the pipeline, picks a renderer and sets the exit code."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> None:
    """Run one command line and exit with the contract's code."""
    try:
        from netpath.cli.main import guarded

        code = guarded(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        # Before the verb began, while Python was still importing.
        sys.stderr.write("netpath: interrupted; nothing is left behind\n")
        code = 130
    sys.exit(code)
