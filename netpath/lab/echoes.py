"""Starting a lab's echo server (see echo.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from netpath.errors import NetpathError
from netpath.lab import netns, state
from netpath.lab.options import ECHO_TCP, ECHO_UDP


def start(store: state.Store) -> None:
    """Start the server for all pods; they answer when this returns. It is on record before it is told what to do."""
    places = [
        {"netns": str(netns.path_of(pod.netns)), "udp": ECHO_UDP, "tcp": ECHO_TCP}  # an absolute path stays itself
        for pod in store.state.pods
    ]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("echo.py")), store.state.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    began = state.start_time(process.pid)
    if began is None:
        raise NetpathError("lab: the echo server ended at once")
    store.update(processes=(*store.state.processes, state.Process(process.pid, began, "echo")))
    process.stdin.write(json.dumps(places).encode() + b"\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if answer != b"ready\n":
        process.kill()
        lines = process.stderr.read().decode(errors="replace").strip().splitlines()
        raise NetpathError(f"lab: the echo server did not start: {lines[-1] if lines else 'no reason given'}")
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    # Not our child to wait for: it outlives us. Known to be running, so that the interpreter does not warn.
    process.returncode = 0
