"""The smallest pieces: harmless names, short numbers, folded lines."""

from __future__ import annotations

import io
import shlex
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpath.render.text import Screen, clean, command, duration, fold, screen, seen

HOSTILE = "a\x1b[2J\x1b]0;t\x07b\nc\rd\x9b31me\u202ef\u2066g\u200bh\ud800i\u2028j\U000e0001k\x7f"


def test_what_a_terminal_would_act_on_is_shown_as_numbers() -> None:
    assert clean("a\x1b[31m\nb") == "a\\x1b[31m\\nb".replace("\\n", "\\x0a")
    assert clean("x\u202ey") == "x\\u202ey"
    assert clean("\U000e0001") == "\\U000e0001"
    assert clean("web-1 ü 漢 é") == "web-1 ü 漢 é"
    assert all(unicodedata.category(character)[0] != "C" for character in clean(HOSTILE))


@given(st.text(st.characters()))
def test_no_text_gets_through(text: str) -> None:
    assert not {unicodedata.category(each) for each in clean(text)} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (7.4, "7 ns"),
        (999, "999 ns"),
        (999.6, "1.00 µs"),
        (1234, "1.23 µs"),
        (12340, "12.3 µs"),
        (123400, "123 µs"),
        (999499, "999 µs"),
        (999600, "1.00 ms"),
        (1.5e6, "1.50 ms"),
        (2.5e9, "2.50 s"),
        (61e9, "61.0 s"),
        (-1234, "-1.23 µs"),
    ],
)
def test_durations(ns: float, text: str) -> None:
    assert duration(ns) == text


@given(st.floats(0, 1e11))
def test_a_duration_is_near_and_short(ns: float) -> None:
    text = duration(ns)
    value, unit = text.split()
    assert float(value) * {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9}[unit] == pytest.approx(ns, rel=0.006, abs=0.6)
    assert len(text) <= 7 and float(value) < 1000


@given(st.lists(st.text("abc漢", min_size=1, max_size=30), min_size=1), st.integers(12, 60))
def test_folding_loses_nothing_and_keeps_the_width(words: list[str], width: int) -> None:
    lines = fold(" ".join(words), width, first="  ", rest="    ")
    assert max(map(seen, lines)) <= width
    assert "".join(line.strip() for line in lines).replace(" ", "") == "".join(words)


def test_a_folded_command_can_be_pasted() -> None:
    text = "ip netns exec demo-node1 bridge fdb append aa:a7:61:cb:9b:e3 dev flannel.1 dst 'a b'  # then trace again, and look at it once more"
    lines = command(text, 40, rest="    ")
    assert len(lines) > 3 and max(map(seen, lines)) <= 40
    pasted = "\n".join(lines).replace("\\\n", "")
    assert shlex.split(pasted, comments=True) == shlex.split(text, comments=True)
    assert "look at it" in " ".join(line.strip(" #") for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "no_colour", "terminal", "colour"),
    [
        ({}, False, True, True),
        ({"NO_COLOR": "1"}, False, True, False),
        ({"NO_COLOR": ""}, False, True, True),
        ({"TERM": "dumb"}, False, True, False),
        ({}, True, True, False),
        ({}, False, False, False),
    ],
)
def test_colour_only_where_it_can_be_seen(
    environment: dict[str, str], no_colour: bool, terminal: bool, colour: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", Terminal() if terminal else io.StringIO())
    assert screen(no_colour=no_colour).colour is colour


def test_a_pipe_is_wide_unless_columns_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.delenv("COLUMNS", raising=False)
    assert screen().width == 200
    monkeypatch.setenv("COLUMNS", "80")
    assert screen().width == 80


def test_styles() -> None:
    assert Screen(True, 80).style("x", "bad") == "\x1b[31mx\x1b[0m"
    assert Screen(False, 80).style("x", "bad") == "x"
    assert Screen(True, 80).style("", "bad") == ""
    assert seen(Screen(True, 80).style("漢x", "bad")) == 3
