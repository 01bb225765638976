"""Which network namespaces there are, what they are called, and how to enter them."""

# Thousands of small files: pathlib doubles the time.
# ruff: noqa: PTH116, PTH208

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from netpath import setns
from netpath.errors import MissingError

NAMED = ("/run/netns", "/var/run/netns")
"""Where iproute2 keeps its names."""
_HELD = (*NAMED, "/run/docker/netns", "/var/run/docker/netns")
_CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}
_NSFS_ROOT = re.compile(r"net:\[(\d+)\]")
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(slots=True)
class Process:
    """A process by what /proc says of it."""

    pid: int
    netns: int
    name: str


@dataclass(slots=True)
class Found:
    """A namespace that is there to be read."""

    inode: int
    names: set[str] = field(default_factory=set)
    paths: list[str] = field(default_factory=list)
    """Bind mounts first: a process may end."""
    pids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Survey:
    """All namespaces and processes that are visible."""

    namespaces: dict[int, Found]
    processes: list[Process]
    own: int
    problems: list[str]


def require_privileges() -> None:
    """Raises MissingError naming the capabilities that this process lacks and that entering and reading namespaces needs."""
    effective = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    missing = [name for bit, name in _CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        raise MissingError(f"reading network namespaces needs {' and '.join(missing)}: run as root, or use --snapshot FILE")


def survey() -> Survey:
    """Look for namespaces in bind mounts and in every process. Never raises for one that can't be looked at."""
    own = os.stat("/proc/self/ns/net")
    found: dict[int, Found] = {own.st_ino: Found(own.st_ino)}
    problems: list[str] = []
    for path, inode in sorted(_mounts(own.st_dev)):
        namespace = found.setdefault(inode, Found(inode))
        if path not in namespace.paths:
            namespace.paths.append(path)
        folder, _, name = path.rpartition("/")
        if folder in NAMED:
            namespace.names.add(name)
    processes = _processes(problems)
    for process in processes:
        found.setdefault(process.netns, Found(process.netns)).pids.append(process.pid)
    for namespace in found.values():
        if namespace.pids:
            namespace.paths.append(f"/proc/{namespace.pids[0]}/ns/net")
    # The pid of the first process in it may be anyone's; this name of our own namespace holds as long as we do.
    if not found[own.st_ino].names:
        found[own.st_ino].paths = ["/proc/self/ns/net"]
    return Survey(found, processes, own.st_ino, problems)


def _mounts(nsfs: int) -> set[tuple[str, int]]:
    """Every (path, inode) of a bind-mounted network namespace."""
    found: set[tuple[str, int]] = set()
    folders: set[str] = set()
    for folder in _HELD:
        real = os.path.realpath(folder)
        if real in folders:
            continue
        folders.add(real)
        try:
            entries = list(os.scandir(real))
        except OSError:
            continue
        for entry in entries:
            # A file on which nothing is mounted (any more) is no namespace: its device tells.
            try:
                status = entry.stat()
            except OSError:
                continue
            if status.st_dev == nsfs:
                found.add((entry.path, status.st_ino))
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return found
    for line in lines:
        fields = line.split(" ")
        match = _NSFS_ROOT.fullmatch(fields[3]) if len(fields) > 4 else None
        if match is None:
            continue
        path = _OCTAL.sub(lambda octal: chr(int(octal.group(1), 8)), fields[4])
        folder, _, name = path.rpartition("/")
        try:
            status = os.stat(path)
        except OSError:
            continue
        # A later mount may hide this one, and a folder may be mounted twice under names that are links to each other.
        if status.st_dev == nsfs and status.st_ino == int(match.group(1)):
            found.add((f"{os.path.realpath(folder)}/{name}", status.st_ino))
    return found


def _processes(problems: list[str]) -> list[Process]:
    found: list[Process] = []
    denied = 0
    for word in os.listdir("/proc"):
        if not word.isdecimal():
            continue
        try:
            inode = os.stat(f"/proc/{word}/ns/net").st_ino
            descriptor = os.open(f"/proc/{word}/comm", os.O_RDONLY)
            try:
                name = os.read(descriptor, 64).decode("utf-8", "backslashreplace").rstrip("\n")
            finally:
                os.close(descriptor)
        except PermissionError:
            # Process 1 is shielded on some machines; whatever namespace it has, others are in it too.
            denied += word != "1"
            continue
        except OSError:
            continue
        found.append(Process(int(word), inode, name))
    if denied:
        problems.append(f"the namespaces of {denied} processes could not be looked at: CAP_SYS_PTRACE is needed")
    return sorted(found, key=lambda process: process.pid)


class Vanished(Exception):
    """The namespace is gone, or its file now stands for another one."""


def enter(namespace: Found) -> None:
    """Move the calling thread, which must not be the main one, into a namespace. Raises Vanished or OSError (forbidden)."""
    failure: OSError | None = None
    for path in namespace.paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if isinstance(error, PermissionError):
                failure = error
            continue
        try:
            if os.fstat(descriptor).st_ino != namespace.inode:
                continue
            setns.enter(descriptor)
            return
        except OSError as error:
            failure = error
        finally:
            os.close(descriptor)
    if failure is not None:
        raise failure
    raise Vanished


@contextmanager
def descriptor_of(namespace: Found) -> Iterator[int | None]:
    """A descriptor of a namespace, None when it is gone or closed to us."""
    for path in namespace.paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if os.fstat(descriptor).st_ino == namespace.inode:
                yield descriptor
                return
        finally:
            os.close(descriptor)
    yield None
