"""What netpath or a test could leave on the machine, and a check that waits for the kernel: it frees closed programs late."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Hashable
from ctypes import addressof, create_string_buffer
from pathlib import Path

from netpath.ebpf import sys

PROG_GET_FD_BY_ID, MAP_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD = 13, 14, 15
PROG_NAME, MAP_NAME = 64, 24
"""Where the name is in struct bpf_prog_info and bpf_map_info (include/uapi/linux/bpf.h)."""

State = dict[str, frozenset[Hashable]]
Look = Callable[[], State]


def _named(list_ids: int, open_id: int, name_at: int) -> frozenset[Hashable]:
    """(id, name) of netpath's own programs or maps: all of their names begin with np_."""
    found: set[Hashable] = set()
    for each in sys.ids(list_ids):
        try:
            descriptor = sys.call(open_id, struct.pack("<I", each))
        except OSError:
            continue  # gone since
        try:
            info = create_string_buffer(256)
            sys.call(OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", descriptor, len(info), addressof(info)))
        finally:
            os.close(descriptor)
        name = info.raw[name_at : name_at + 16].split(b"\0")[0].decode()
        if name.startswith("np_"):
            found.add((each, name))
    return frozenset(found)


def _entries(folder: str, prefix: str) -> frozenset[Hashable]:
    path = Path(folder)
    return frozenset(each.name for each in path.iterdir() if each.name.startswith(prefix)) if path.is_dir() else frozenset()


def bpf() -> State:
    return {
        "eBPF programs": _named(sys.PROG_GET_NEXT_ID, PROG_GET_FD_BY_ID, PROG_NAME),
        "eBPF maps": _named(sys.MAP_GET_NEXT_ID, MAP_GET_FD_BY_ID, MAP_NAME),
        "eBPF links": frozenset(sys.ids(sys.LINK_GET_NEXT_ID)),
    }


def machine() -> State:
    """Everything by kind. Names of other runs' namespaces and labs don't count: theirs have other prefixes."""
    return {
        **bpf(),
        "network namespaces": _entries("/run/netns", "npt"),
        "lab records": _entries("/run/netpath/labs", "npt"),
    }


def here() -> State:
    """Of `machine`, what can be told from another run beside this one: all of it only where there is no other."""
    return machine() if os.environ.get("NETPATH_WHOLE_SUITE") else bpf()


def remaining(before: State, *, look: Look = machine, seconds: float = 5.0) -> State:
    """What is there and was not `before`, once it is gone or the time is up.

    What came after the first look is another program's: only what stays from then on counts.
    """
    deadline = time.monotonic() + seconds
    now = look()
    left = {kind: now[kind] - before[kind] for kind in now}
    while any(left.values()) and time.monotonic() < deadline:
        time.sleep(0.02)
        now = look()
        left = {kind: left[kind] & now[kind] for kind in now}
    return {kind: things for kind, things in left.items() if things}
