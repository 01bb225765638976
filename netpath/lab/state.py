"""What a lab has made, on disk before it is made, so that it can be removed whatever happened.

One JSON document per lab in /run/netpath/labs. Every name that the lab is going to use (namespaces, folders, mounts) is written
before the kernel is asked for it; a process is recorded before it is told to begin.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from netpath.errors import NetpathError, UsageError

DIRECTORY = Path("/run/netpath/labs")
"""State of every lab of this machine."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}\Z")


@dataclass(frozen=True, slots=True)
class Pod:
    """A workload of the lab: a pod or a container."""

    name: str
    """Short name: ``pod1a``."""
    node: str
    """Short name of its node."""
    netns: str
    """Its namespace: a name under /run/netns, or an absolute path."""
    addresses: tuple[str, ...]
    """IPv4 first."""


@dataclass(frozen=True, slots=True)
class Node:
    """A namespace that forwards."""

    name: str
    """Short name: ``node1``."""
    netns: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the lab. The start time (clock ticks since boot, /proc/PID/stat) tells it from a later one with its number."""

    pid: int
    start_time: int
    role: str


@dataclass(frozen=True, slots=True)
class State:
    """One lab's document."""

    name: str
    mode: str
    status: str = "building"
    """``building``, ``up`` or ``removing``."""
    builder: Process | None = None
    options: dict[str, Any] = field(default_factory=dict)
    namespaces: tuple[str, ...] = ()
    """Every name under /run/netns that the lab uses."""
    nodes: tuple[Node, ...] = ()
    pods: tuple[Pod, ...] = ()
    processes: tuple[Process, ...] = ()
    folders: tuple[str, ...] = ()
    """Folders that belong to the lab alone; removed with what is mounted below them."""
    cgroups: tuple[str, ...] = ()
    """Control groups, relative to the root of every hierarchy, that belong to the lab alone."""
    docker_sockets: tuple[str, ...] = ()
    """Docker API sockets of the lab's nodes, for discovery."""
    services: tuple[dict[str, Any], ...] = ()
    """Services that the lab's rules implement (cluster address, ports, endpoints)."""


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def is_alive(process: Process) -> bool:
    return start_time(process.pid) == process.start_time


def check_name(name: str) -> str:
    if not _NAME.match(name):
        raise UsageError(f"lab name {name!r}: use up to 31 small letters, digits and dashes, a letter or digit first")
    return name


def _path(name: str) -> Path:
    return DIRECTORY / f"{name}.json"


def names() -> tuple[str, ...]:
    """Names of the labs there are, sorted."""
    try:
        return tuple(sorted(path.stem for path in DIRECTORY.glob("*.json")))
    except OSError:
        return ()


def remnants() -> tuple[str, ...]:
    """Names of labs whose builder died before anything of them was made: a draft or a lock, no document."""
    try:
        return tuple(sorted({path.stem for suffix in ("new", "lock") for path in DIRECTORY.glob(f"*.{suffix}")} - set(names())))
    except OSError:
        return ()


def load(name: str) -> State | None:
    """The lab's document, None if there is none. A document cut short by a full disk raises NetpathError."""
    try:
        text = _path(check_name(name)).read_text()
    except FileNotFoundError:
        return None
    try:
        raw = json.loads(text)
        known = {key: value for key, value in raw.items() if key in State.__dataclass_fields__}
        known["builder"] = Process(**raw["builder"]) if raw.get("builder") else None
        known["namespaces"] = tuple(raw.get("namespaces", ()))
        known["folders"] = tuple(raw.get("folders", ()))
        known["cgroups"] = tuple(raw.get("cgroups", ()))
        known["docker_sockets"] = tuple(raw.get("docker_sockets", ()))
        known["services"] = tuple(raw.get("services", ()))
        known["nodes"] = tuple(Node(**{**node, "addresses": tuple(node["addresses"])}) for node in raw.get("nodes", ()))
        known["pods"] = tuple(Pod(**{**pod, "addresses": tuple(pod["addresses"])}) for pod in raw.get("pods", ()))
        known["processes"] = tuple(Process(**process) for process in raw.get("processes", ()))
        return State(**known)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise NetpathError(f"{_path(name)}: not a lab's state ({error})") from error


class Store:
    """The document of a lab being built: every change is on disk before the call returns."""

    def __init__(self, state: State) -> None:
        self.state = state

    def update(self, **changes: Any) -> State:
        self.state = replace(self.state, **changes)
        target = _path(self.state.name)
        # Written beside and renamed: a reader, or a crash, sees the old document or the new one.
        draft = target.with_suffix(".new")
        draft.write_text(json.dumps(asdict(self.state), indent=1))
        draft.replace(target)
        return self.state


def forget(name: str) -> None:
    """Remove the lab's document."""
    for suffix in (".new", ".json"):
        _path(name).with_suffix(suffix).unlink(missing_ok=True)


@contextmanager
def locked(name: str, *, wait: bool) -> Iterator[None]:
    """Hold the lab's lock; the kernel gives it back when the holder ends.

    Raises UsageError if another process holds it and `wait` is false.
    """
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = DIRECTORY / f"{check_name(name)}.lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise UsageError(f"lab {name}: being built or removed by another netpath") from None
            try:
                # The holder before us may have removed the file: then this lock guards nothing.
                if path.stat().st_ino != os.fstat(descriptor).st_ino:
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)
