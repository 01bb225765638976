"""Network namespaces with a name under /run/netns, as iproute2 keeps them.

A name is a file on which a namespace is bind-mounted (iproute2, ip/ipnetns.c). Nothing here changes the namespace of the
calling thread: work inside a namespace is done by a thread or a process that ends afterwards.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from netpath.setns import check as check
from netpath.setns import enter as enter
from netpath.setns import unshare as unshare

T = TypeVar("T")

DIRECTORY = Path("/run/netns")

MS_BIND = 4096
MS_REC = 16384
MS_SHARED = 1 << 20
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def path_of(name: str) -> Path:
    return DIRECTORY / name


def inode_of(name: str) -> int:
    """The namespace's inode, its identity as /proc/PID/ns/net shows it. Raises OSError."""
    return path_of(name).stat().st_ino


def in_thread(function: Callable[[], T], *, on_interrupt: Callable[[], None] | None = None) -> T:
    """Run `function` in a thread of its own, which may change namespaces, and give its result or raise its error.

    If the waiting thread is interrupted, `on_interrupt` is called (to ask the worker to stop), the worker is waited for, and
    the interrupt goes on.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="netpath-lab")
    thread.start()
    try:
        thread.join()
    except BaseException:
        if on_interrupt is not None:
            on_interrupt()
        thread.join()
        raise
    if failure:
        raise failure[0]
    return result[0]


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    code = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        None if data is None else data.encode(),
    )
    check(code, target)


def unmount(target: str) -> bool:
    """Detach the mount on `target`; false if there is none."""
    if _libc.umount2(os.fsencode(target), _MNT_DETACH) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOENT):
        return False
    raise OSError(code, os.strerror(code), target)


def prepare() -> None:
    """Make /run/netns a shared mount of its own: names made here are then seen, and removed, in every mount namespace."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    if not any(line.split()[4] == str(DIRECTORY) for line in Path("/proc/self/mountinfo").read_text().splitlines()):
        mount(str(DIRECTORY), str(DIRECTORY), None, MS_BIND | MS_REC)
    mount("", str(DIRECTORY), None, MS_SHARED | MS_REC)


def create(name: str) -> int:
    """Make a namespace called `name` and leave the calling (worker) thread in it; the descriptor is the caller's to close."""
    path = path_of(name)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    unshare()
    mount("/proc/thread-self/ns/net", str(path), None, MS_BIND)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def remove(name: str) -> None:
    """Take the name away. The namespace itself goes when nothing uses it any more."""
    path = path_of(name)
    while unmount(str(path)):
        pass
    path.unlink(missing_ok=True)


def processes_in(inodes: frozenset[int]) -> dict[int, int]:
    """Processes with a thread in one of these namespaces: pid to inode. Processes that end meanwhile are left out."""
    found: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            inode = Path(entry.path, "ns", "net").stat().st_ino
        except OSError:
            continue
        if inode in inodes:
            found[int(entry.name)] = inode
    return found
