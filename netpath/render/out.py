"""Where text goes: results to stdout, progress and warnings to stderr."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time

from netpath.errors import NetpathError
from netpath.render.text import clean


class ReaderGone(Exception):
    """Whoever read our output has closed the pipe. An exception of its own: click would take a BrokenPipeError for itself."""


def result(text: str) -> None:
    """Print a result as it is. Raises NetpathError when it can't be written (a full disk), ReaderGone when nobody reads it."""
    if sys.stdout is None:
        raise NetpathError("the result could not be written: stdout is closed")
    try:
        # What the terminal's encoding lacks, and bytes that are no text, are shown by their numbers.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Or the interpreter tries to flush it once more, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise ReaderGone from error
        raise NetpathError(f"the result could not be written: {error.strerror}") from error


def warning(text: str) -> None:
    """Print one line about something that went wrong but did not end the run."""
    with contextlib.suppress(OSError):
        print(f"netpath: {clean(text)}", file=sys.stderr)


def failure(text: str) -> None:
    """Print the one line that a failed run ends with."""
    with contextlib.suppress(OSError):
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
            with contextlib.suppress(OSError):
                print(f"netpath: {clean(text)} ...", file=sys.stderr, flush=True)
