"""The errors a user sees: one clear line each, and the exit code that goes with it (docs/reference/cli.md)."""

from __future__ import annotations

EXIT_OK = 0
EXIT_FINDING = 1
EXIT_USAGE = 2
EXIT_MISSING = 3
EXIT_INCONCLUSIVE = 4
EXIT_INTERRUPTED = 130


class NetpathError(Exception):
    """What happened, on what, and what to do, in one line."""

    exit_code = EXIT_FINDING


class UsageError(NetpathError):
    """A bad flag, an unknown or ambiguous endpoint, an unreadable file."""

    exit_code = EXIT_USAGE


class MissingError(NetpathError):
    """A privilege or a kernel feature is missing; the message names it and how to get it."""

    exit_code = EXIT_MISSING


class InconclusiveError(NetpathError):
    """Events were lost, or hooks missing where it mattered."""

    exit_code = EXIT_INCONCLUSIVE
