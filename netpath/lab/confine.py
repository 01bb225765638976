"""Becoming a real component inside a lab. Run as ``python -I confine.py LAB``, stdlib only.

It reads one JSON line from stdin: ``netns``, the folder ``keep``, ``hide``, ``argv``, ``env`` and ``log``. If stdin closes before
that (the builder died), it ends. Then it enters the network namespace, makes a mount namespace of its own, covers the folders of
``hide`` with empty ones (what the component writes there ends with it), keeps ``keep`` as the only place whose mounts are
seen outside, and becomes ``argv``.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MS_REC = 16384
MS_SLAVE = 1 << 19

_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)


def mount(source: str, target: str, kind: bytes | None, flags: int) -> None:
    check(_libc.mount(source.encode(), target.encode(), kind, ctypes.c_ulong(flags), None), target)


def main() -> None:
    line = sys.stdin.readline()
    if not line:
        return
    request = json.loads(line)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    descriptor = os.open(request["netns"], os.O_RDONLY | os.O_CLOEXEC)
    check(_libc.setns(descriptor, CLONE_NEWNET), "setns")
    check(_libc.unshare(CLONE_NEWNS), "unshare")
    keep = request["keep"]
    with open("/proc/self/mountinfo") as table:  # noqa: PTH123
        points = {line.split()[4].replace("\\040", " ") for line in table}
    for point in points:
        if point != keep and not point.startswith(f"{keep}/"):
            try:
                mount("", point, None, MS_SLAVE)
            except OSError:
                continue  # covered by another mount, and so out of reach
    kept = os.open(keep, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for folder in request["hide"]:
        if os.path.isdir(folder):  # noqa: PTH112
            mount("tmpfs", folder, b"tmpfs", 0)
    os.makedirs(keep, exist_ok=True)  # noqa: PTH103
    if os.stat(keep).st_ino != os.fstat(kept).st_ino:  # noqa: PTH116
        mount(f"/proc/self/fd/{kept}", keep, None, MS_BIND | MS_REC)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.execve(request["argv"][0], request["argv"], request["env"])


if __name__ == "__main__":
    main()
