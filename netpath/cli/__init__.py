"""The command line: one file per verb. Each parses, calls the pipeline, picks a renderer and sets the exit code."""

from __future__ import annotations

import gc
import sys


def main(arguments: list[str] | None = None) -> None:
    """Run one command line and exit with the contract's code."""
    # One command and out: on a node with thousands of rules, looking for cycles among what was read takes half of the time.
    # A verb that runs for long turns it on again.
    gc.disable()
    try:
        from netpath.cli.main import guarded

        code = guarded(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        # Before the verb began, while Python was still importing.
        sys.stderr.write("netpath: interrupted; nothing is left behind\n")
        code = 130
    sys.exit(code)
