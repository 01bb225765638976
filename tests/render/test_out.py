"""What goes to stderr."""

from __future__ import annotations

import io

import pytest

from netpath.render.out import Progress, ReaderGone, failure, result, warning
from tests.render.test_text import HOSTILE


def test_progress_is_told_only_of_what_takes_long(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("netpath.render.out.time.monotonic", lambda: now[0])
    progress = Progress()
    progress("quick")
    now[0] += Progress.PATIENCE
    progress("slow\n\x1b[31m")
    progress("slow\n\x1b[31m")
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == "netpath: slow\\x0a\\x1b[31m ...\n"


@pytest.mark.parametrize("say", [warning, failure])
def test_a_message_is_one_harmless_line(say: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(say)
    say(HOSTILE)
    text = capsys.readouterr().err
    assert text.startswith("netpath: ") and text.count("\n") == 1 and text[:-1].isprintable()


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def fileno(self) -> int:
        return self.duplicate

    duplicate = -1


def test_a_gone_reader_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    closed = Closed()
    closed.duplicate = os.open(os.devnull, os.O_WRONLY)
    monkeypatch.setattr("sys.stdout", closed)
    with pytest.raises(ReaderGone):
        result("text")
    os.close(closed.duplicate)
