"""Starting a helper process of a lab: recorded before it is told what to do, ready when the call returns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netpath.errors import NetpathError
from netpath.lab import state


def start(store: state.Store, script: str, role: str, request: Any) -> None:
    """Run a script of this package with `request` on its stdin, and wait until it says that it is ready.

    Scripts are run isolated (``-I -S``), see only the standard library, and end by themselves if no request comes.
    """
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name(script)), store.state.name]
    begin(store, command, role, json.dumps(request).encode())


def begin(store: state.Store, command: Sequence[str], role: str, word: bytes = b"") -> None:
    """Run a program, have it begin with one line on its stdin, and wait until it says that it is ready.

    It must end by itself if no line comes. Raises NetpathError with its last line on stderr.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    began = state.start_time(process.pid)
    if began is None:
        raise NetpathError(f"lab: {role} ended at once")
    store.update(processes=(*store.state.processes, state.Process(process.pid, began, role)))
    try:
        process.stdin.write(word + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it says below what it died of
    answer = process.stdout.readline()
    if answer != b"ready\n":
        process.kill()
        lines = process.stderr.read().decode(errors="replace").strip().splitlines()
        raise NetpathError(f"lab: {role} did not start: {lines[-1] if lines else 'no reason given'}")
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    # Not our child to wait for: it outlives us. Known to be running, so that the interpreter does not warn.
    process.returncode = 0
