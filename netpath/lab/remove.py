"""Taking a lab away, from whatever state it is in."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from netpath.errors import NetpathError
from netpath.lab import netns, state

_PATIENCE_S = 3.0
"""How long processes get between SIGTERM and SIGKILL."""
_DEADLINE_S = 20.0
"""How long the kernel gets to finish."""
_GROUP = 0x6E70
"""Interface group by which a namespace's devices are deleted in one request."""


def remove(stored: state.State, ends: Callable[[state.State], None] | None) -> None:
    """Remove everything that the document records, then the document. NetpathError if something stays."""
    store = state.Store(stored)
    store.update(status="removing")
    if ends is not None:
        ends(stored)
    end([(process.pid, process.start_time) for process in stored.processes], reap=True)
    spaces = {}
    for name in stored.namespaces:
        with contextlib.suppress(OSError):
            if netns.path_of(name).stat().st_dev == _nsfs():
                spaces[name] = netns.inode_of(name)
    inodes = frozenset(spaces.values())
    for _round in range(3):
        inside = [
            (pid, began)
            for pid in netns.processes_in(inodes)
            if pid != os.getpid() and (began := state.start_time(pid)) is not None
        ]
        if not inside:
            break
        end(inside)
    if spaces:
        netns.in_thread(lambda: _delete_devices(tuple(spaces)))
    for name in stored.namespaces:
        netns.remove(name)
    for folder in stored.folders:
        _remove_folder(folder)
    left = [str(pid) for pid in netns.processes_in(inodes) if pid != os.getpid()] if inodes else []
    if left:
        raise NetpathError(f"lab {stored.name}: processes {', '.join(left)} are still in its namespaces")
    state.forget(stored.name)


def _nsfs() -> int:
    return Path("/proc/self/ns/net").stat().st_dev


def end(processes: Iterable[tuple[int, int]], *, reap: bool = False) -> None:
    """End processes given as (pid, start time): SIGTERM, and SIGKILL for those that stay. They are gone when this returns.

    `reap`: collect the exit status of those that are children of this process.
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
        for number, patience in ((signal.SIGTERM, _PATIENCE_S), (signal.SIGKILL, _DEADLINE_S)):
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


def _remove_folder(folder: str) -> None:
    """Unmount what is mounted at or below `folder`, deepest first, and delete it."""
    mounted = [
        path
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if (path := line.split()[4].replace("\\040", " ")) == folder or path.startswith(f"{folder}/")
    ]
    for path in sorted(mounted, key=len, reverse=True):
        netns.unmount(path)
    if Path(folder).exists():
        shutil.rmtree(folder)
