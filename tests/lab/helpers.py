"""Looking at the kernel from outside the lab's own code: ip, bridge, /proc."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from netpath.lab import netns, state
from tests.netns import Netns


class Space(Netns):
    """A namespace by its name under /run/netns, or by the absolute path of its file."""

    @property
    def path(self) -> str:
        return str(Path("/run/netns", self.name))


def read(space: str, *words: str) -> Any:
    """The JSON that ip or bridge prints in a namespace."""
    text = Space(space).run(*words)
    return json.loads(text) if text.strip() else []


def rules(space: str, backend: str = "iptables-nft") -> dict[str, list[str]]:
    """iptables-save without counters and comments: table to lines, policies of built-in chains included."""
    tables: dict[str, list[str]] = {}
    current: list[str] = []
    for line in Space(space).run(f"{backend}-save").splitlines():
        if line.startswith("*"):
            current = tables.setdefault(line[1:], [])
        elif line.startswith((":", "-A")):
            current.append(line.partition(" [")[0] if line.startswith(":") else line)
    return tables


def leftovers(name: str) -> list[str]:
    """Everything of the lab `name` that can still be found: names, documents, mounts, processes."""
    found = [str(path) for folder in ("/run/netns", "/run/netpath/labs") for path in Path(folder).glob(f"{name}*")]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    return found


def inhabitants(inodes: set[int]) -> set[tuple[int, int]]:
    """Processes in these network namespaces, as (pid, start time). An inode's number alone may be somebody else's by tomorrow."""
    found = set()
    for pid in netns.processes_in(frozenset(inodes)):
        began = state.start_time(pid)
        if began is not None:
            found.add((pid, began))
    return found


def alive(known: set[tuple[int, int]]) -> set[int]:
    """Those of them that are still there."""
    return {pid for pid, began in known if state.start_time(pid) == began}


def processes(word: str) -> set[int]:
    """Processes with `word` in their command line."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def run(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout
