"""The lab relay: relay.c, compiled once by the machine's C compiler and kept in netpath's cache folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from netpath.ebpf import cache
from netpath.errors import MissingError
from netpath.lab import helpers, netns
from netpath.lab.build import Build

_SOURCE = Path(__file__).with_name("relay.c")
_FLAGS = ("-O2", "-std=gnu11")


def program() -> Path:
    """The relay as a program. Raises MissingError without a compiler, or without a folder that only we can write."""
    source = _SOURCE.read_text()
    compiler = shutil.which("cc") or shutil.which("gcc")

    def compiled(target: Path) -> None:
        if compiler is None:
            raise MissingError("lab: the relay is a C program, and there is no compiler (apt-get install gcc libc6-dev)")
        done = subprocess.run(
            [compiler, *_FLAGS, "-x", "c", "-o", str(target), "-"], input=source, capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = (
                [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no reason given"]
            )
            raise MissingError(f"lab: {compiler} does not compile the relay: {lines[0]} (apt-get install gcc libc6-dev)")

    path = cache.keep_program("lab-relay", cache.key(source, _FLAGS, os.uname().machine), compiled)
    if path is None:
        raise MissingError("lab: no cache folder that only this user can write, to keep the relay in (set XDG_CACHE_HOME)")
    return path


def start(
    build: Build, node: str, kind: str, device: str, identity: str, listen: str, port: int, peers: Sequence[tuple[str, str]]
) -> None:
    """Run a node's relay; its device and its socket are there when this returns.

    `kind`: ``tun`` makes `device`, and `identity` is its address; ``tap`` captures from `device`, and `identity` is the node's
    name. `peers`: what is behind another node (a subnet, or its name), and its address.
    """
    place = next(each for each in build.state.nodes if each.name == node)
    command = [str(program()), build.state.name, str(netns.path_of(place.netns)), kind, device, identity, listen, str(port)]
    helpers.begin(build.store, [*command, *(f"{what}={address}" for what, address in peers)], f"lab relay {node}")
