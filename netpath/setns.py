"""Moving a thread into a network namespace. Only ever for threads and processes that were made for it and end there.

Python 3.12 has os.setns; this is for 3.11 too.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def enter(descriptor: int) -> None:
    """Move the calling thread into the network namespace that an open file stands for. Raises OSError."""
    check(_libc.setns(descriptor, CLONE_NEWNET), "setns")


def enter_path(path: str) -> None:
    """The same for a file: a bind mount, or /proc/PID/ns/net. Raises OSError, FileNotFoundError when it is gone."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(descriptor)
    finally:
        os.close(descriptor)


def unshare(flags: int = CLONE_NEWNET) -> None:
    """Move the calling thread into a new namespace. Raises OSError."""
    check(_libc.unshare(flags), "unshare")


def check(result: int, what: str) -> None:
    """Raise OSError with the errno of a system call by ctypes that failed; `what` names it or its object."""
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
