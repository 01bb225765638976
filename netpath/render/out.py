"""Where text goes: results to stdout, progress and warnings to stderr."""

from __future__ import annotations

import sys
import time

from netpath.render.text import clean


def result(text: str) -> None:
    """Print a result as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()


def warning(text: str) -> None:
    """Print one line about something that went wrong but did not end the run."""
    print(f"netpath: {clean(text)}", file=sys.stderr)


def failure(text: str) -> None:
    """Print the one line that a failed run ends with."""
    print(f"netpath: {clean(text)}", file=sys.stderr)


class Progress:
    """Tells what is going on, once it has been going on for longer than a second."""

    PATIENCE = 1.0

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._shown = ""

    def __call__(self, text: str) -> None:
        if time.monotonic() - self._started >= self.PATIENCE and text != self._shown:
            self._shown = text
            print(f"netpath: {clean(text)} ...", file=sys.stderr, flush=True)
