"""Taking a lab away, from whatever state it is in."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from netpath.errors import NetpathError
from netpath.lab import netns, state

_PATIENCE_S = 3.0
"""How long processes get between SIGTERM and SIGKILL."""
_DEADLINE_S = 20.0
"""How long the kernel gets to finish."""
_GROUP = 0x6E70
"""Interface group by which a namespace's devices are deleted in one request."""


def remove(stored: state.State, *, hard: bool) -> None:
    """Remove everything that the document records, then the document. NetpathError if something stays.

    `hard`: end processes with SIGKILL at once.
    """
    store = state.Store(stored)
    store.update(status="removing")
    inodes = _inodes(stored)
    recorded = [(process.pid, process.start_time) for process in stored.processes]
    if hard:
        # Parents first, all at once: a supervisor must not see its child go and start another.
        end([*recorded, *_inside(inodes)], reap=True, hard=True)
    else:
        end(recorded, reap=True)
    deadline = time.monotonic() + _DEADLINE_S
    while inside := _inside(inodes):
        if time.monotonic() > deadline:
            raise NetpathError(
                f"lab {stored.name}: processes {', '.join(str(pid) for pid, _ in inside)} are still in its namespaces"
            )
        end(inside, hard=hard)
    spaces = tuple(name for name in stored.namespaces if _is_namespace(netns.path_of(name)))
    if spaces:
        netns.in_thread(lambda: _delete_devices(spaces))
    for name in stored.namespaces:
        netns.remove(name)
    for folder in stored.folders:
        _remove_folder(folder)
    for group in stored.cgroups:
        _remove_group(group)
    state.forget(stored.name)


def _inodes(stored: state.State) -> frozenset[int]:
    """The lab's network namespaces: those with names, and those mounted below its folders."""
    paths = [netns.path_of(name) for name in stored.namespaces]
    paths += [Path(path) for folder in stored.folders for path in _mounted(folder)]
    return frozenset(path.stat().st_ino for path in paths if _is_namespace(path))


def _is_namespace(path: Path) -> bool:
    try:
        return path.stat().st_dev == _nsfs()
    except OSError:
        return False


def _inside(inodes: frozenset[int]) -> list[tuple[int, int]]:
    """Processes in these namespaces, and what descends from them, as (pid, start time); never this one."""
    if not inodes:
        return []
    found = set(netns.processes_in(inodes))
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                text = Path(entry.path, "stat").read_text()
                children.setdefault(int(text[text.rindex(")") + 2 :].split()[1]), []).append(int(entry.name))
    waiting = list(found)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    found.discard(os.getpid())
    return [(pid, began) for pid in sorted(found) if (began := state.start_time(pid)) is not None]


def _nsfs() -> int:
    return Path("/proc/self/ns/net").stat().st_dev


def end(processes: Iterable[tuple[int, int]], *, reap: bool = False, hard: bool = False) -> None:
    """End processes given as (pid, start time): SIGTERM, and SIGKILL for those that stay. They are gone when this returns.

    `reap`: collect the exit status of those that are children of this process. `hard`: no SIGTERM.
    """
    waiting: dict[int, int] = {}
    try:
        for pid, began in processes:
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:
                continue
            # Looked at after opening: from here on the descriptor can't mean another process.
            if state.start_time(pid) != began:
                os.close(descriptor)
                continue
            waiting[descriptor] = pid
        signals = ((signal.SIGTERM, _PATIENCE_S), (signal.SIGKILL, _DEADLINE_S))
        for number, patience in signals[1:] if hard else signals:
            for descriptor in waiting:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
            until = time.monotonic() + patience
            poll = select.poll()
            for descriptor in waiting:
                poll.register(descriptor, select.POLLIN)
            while waiting and (left := until - time.monotonic()) > 0:
                for descriptor, _event in poll.poll(left * 1000):
                    poll.unregister(descriptor)
                    if reap:
                        with contextlib.suppress(ChildProcessError):
                            os.waitpid(waiting[descriptor], os.WNOHANG)
                    del waiting[descriptor]
                    os.close(descriptor)
            if not waiting:
                return
        raise NetpathError(f"lab: processes {', '.join(map(str, waiting.values()))} can not be ended")
    finally:
        for descriptor in waiting:
            os.close(descriptor)


def _delete_devices(names: tuple[str, ...]) -> None:
    """Delete the devices of these namespaces, in the calling worker thread.

    A namespace without a name is taken apart by the kernel some time later; what is deleted by request is gone with the answer.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    for name in names:
        try:
            descriptor = os.open(netns.path_of(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            netns.enter(descriptor)
        finally:
            os.close(descriptor)
        with IPRoute() as route:
            try:
                indexes = [link["index"] for link in route.get_links() if link["index"] != 1 and link.get("ifname") != "lo"]
                for index in indexes:
                    route.link("set", index=index, group=_GROUP)
                if indexes:
                    route.link("del", group=_GROUP)
            except NetlinkError as error:
                # Some devices can't be deleted (tunl0 and its like): they go with the namespace.
                if error.code not in (errno.ENODEV, errno.EOPNOTSUPP, errno.EBUSY, errno.EINVAL):
                    raise NetpathError(f"lab: {name}: deleting its devices: {error}") from error


def _mounted(folder: str) -> list[str]:
    """Mount points at or below `folder`, the latest mounted first."""
    points = (line.split()[4].replace("\\040", " ") for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [point for point in points if point == folder or point.startswith(f"{folder}/")][::-1]


def _remove_folder(folder: str) -> None:
    """Unmount what is mounted at or below `folder`, and delete it."""
    deadline = time.monotonic() + _DEADLINE_S
    while points := _mounted(folder):
        if time.monotonic() > deadline:
            raise NetpathError(f"lab: {points[0]} can not be unmounted")
        for point in points:
            netns.unmount(point)
    if Path(folder).exists():
        shutil.rmtree(folder)


def _remove_group(group: str) -> None:
    """Delete a control group in every hierarchy, children first; its processes are gone already."""
    deadline = time.monotonic() + _DEADLINE_S
    hierarchies = [
        fields[4]
        for fields in (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
        if fields[fields.index("-") + 1] in ("cgroup", "cgroup2")
    ]
    for hierarchy in hierarchies:
        top = Path(hierarchy, group)
        if not top.is_dir():
            continue
        for folder, _folders, _files in sorted(os.walk(top), key=lambda entry: len(entry[0]), reverse=True):
            while True:
                try:
                    os.rmdir(folder)  # noqa: PTH106
                    break
                except FileNotFoundError:
                    break
                except OSError as error:
                    # Processes that ended a moment ago are still being taken out of it.
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise NetpathError(f"lab: control group {folder}: {error.strerror}") from error
                    time.sleep(0.005)
