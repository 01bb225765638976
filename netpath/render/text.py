"""Text for terminals: names made harmless, numbers made short, colour only where it can be seen."""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from dataclasses import dataclass

_STYLES = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "head": "1"}

_UNITS = ((999.5, 1.0, "ns"), (999_500.0, 1e3, "µs"), (999_500_000.0, 1e6, "ms"))
"""(below this many ns, divisor, unit); rounding must not show 1000 of a unit."""


def clean(text: str) -> str:
    """A name from the system with everything escaped that a terminal would act on: controls, escapes, newlines, bidi marks."""
    return "".join(character if _harmless(character) else _escaped(character) for character in text)


def _harmless(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def duration(ns: float) -> str:
    """Nanoseconds with three significant figures and a unit: ``870 ns``, ``5.62 µs``, ``1.20 ms``."""
    factor, unit = next(
        ((factor, unit) for limit, factor, unit in _UNITS if abs(ns) < limit),
        (1e9, "s"),
    )
    value = ns / factor
    digits = 0 if unit == "ns" or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


_STYLE = re.compile("\x1b\\[[0-9;]*m")


def seen(line: str) -> int:
    """Columns that a line takes on a terminal: colours take none, a wide character two, a combining one none."""
    return sum(_columns(character) for character in _STYLE.sub("", line))


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fold(text: str, width: int, *, first: str = "", rest: str = "") -> list[str]:
    """Lines of at most `width` columns, broken at spaces; a word that is longer than a line is broken where it must be.

    `first` and `rest` are what the first line and the others begin with. `text` has no colours.
    """
    lines, line, empty = [], first, True
    for word in text.split(" "):
        gap = "" if empty else " "
        if seen(line) + len(gap) + seen(word) > width and not empty:
            lines.append(line)
            line, gap = rest, ""
        line += gap + word
        empty = False
        while seen(line) > width and width > len(rest):
            head, line = _cut(line, width)
            lines.append(head)
            line = rest + line
    return [*lines, line]


def _cut(line: str, width: int) -> tuple[str, str]:
    taken = 0
    for at, character in enumerate(line):
        taken += _columns(character)
        if taken > width:
            return line[:at], line[at:]
    return line, ""


def command(text: str, width: int, *, rest: str) -> list[str]:
    """A shell command folded so that it can still be pasted: a backslash where it goes on, its comment on lines of its own."""
    if seen(text) <= width:
        return [text]
    line, mark, comment = text.partition("  # ")
    lines = fold(line, width - 2, rest=rest)
    lines = [f"{each} \\" for each in lines[:-1]] + lines[-1:]
    return lines + (fold(comment, width, first=f"{rest}# ", rest=f"{rest}# ") if mark else [])


@dataclass(frozen=True, slots=True)
class Screen:
    """Where a result is shown."""

    colour: bool
    width: int

    def style(self, text: str, style: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.colour and text else text


def screen(*, no_colour: bool = False) -> Screen:
    """stdout as it is: colour on a terminal that can, unless NO_COLOR or `no_colour` says no; a pipe is as wide as it wants."""
    terminal = sys.stdout.isatty()
    colour = terminal and not no_colour and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    # A pipe has no width of its own; COLUMNS may give it one.
    width = shutil.get_terminal_size((200, 24)).columns if terminal or os.environ.get("COLUMNS") else 200
    return Screen(colour, width)
