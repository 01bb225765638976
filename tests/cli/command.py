"""Runs the real command in a process of its own, as a shell would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NETPATH = (sys.executable, "-m", "netpath")
_NOBODY = """set -e
mount --bind "$1" "$2"
cd /
exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all env PYTHONPATH="$2" "$2/.venv/bin/python" -m netpath "${@:3}"
"""
"""Runs netpath without privileges. The checkout may lie where only root can go (root's home), so it is mounted elsewhere for it."""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(self.out)
        return made


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """This process's environment without what decides about colour and width, and with `changes` (None: unset)."""
    made = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "CI")}
    made["PYTHONPATH"] = str(ROOT)
    for name, value in (changes or {}).items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = value
    return made


def as_nobody(*words: str, env: Mapping[str, str | None] | None = None) -> Done:
    """The command as a user without any privilege runs it."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        command = ["unshare", "--mount", "bash", "-c", _NOBODY, "bash", str(ROOT), place, *words]
        done = subprocess.run(command, capture_output=True, env=environment(env), timeout=60, check=False)
    return Done(done.returncode, done.stdout.decode(), without_progress(done.stderr.decode()))


def netpath(*words: str, env: Mapping[str, str | None] | None = None, timeout: float = 60) -> Done:
    done = subprocess.run([*NETPATH, *words], capture_output=True, env=environment(env), timeout=timeout, check=False, cwd="/")
    return Done(done.returncode, done.stdout.decode(), without_progress(done.stderr.decode()))


def without_progress(text: str) -> str:
    """stderr without the lines that say what is going on: whether there are any depends on how busy the machine is."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not (line.startswith("netpath: ") and line.endswith(" ...\n")))


def one_line(done: Done, code: int) -> str:
    """The one line on stderr of a run that failed with `code`."""
    assert done.code == code, (done.code, done.out, done.err)
    lines = done.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("netpath: "), done.err
    assert "Traceback" not in done.err and "\x1b" not in done.err
    return lines[0]
