"""Compiles the probe programs with bcc and prints them as JSON. A process of its own: ``python -m netpath.ebpf.compile -D...``.

Needs no kernel headers: bcc gets a tree of nearly empty ones (probes/headers), and what the programs must know of the kernel comes
by -D from its BTF. Exit code 3 when bcc is not installed.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from typing import Any

from netpath.ebpf.programs import LD_IMM64, PSEUDO_MAP_FD, SOURCE, source_folder, source_text

MARKS = ("np_hook_begin", "np_hook_end", "np_track_begin", "np_track_end", "np_nat_begin", "np_nat_end")
FUNCTIONS = ("np_socket", "np_deliver", "np_sent", "np_received", "np_forwarded", *MARKS)
"""Programs that a function may have."""
PROGRAMS = ("np_tx", "np_rx", "np_drop", "np_tun_read", "np_local_in", "np_local_out", "np_stamp", "np_queued", *FUNCTIONS)
MAPS = ("settings", "tunnels", "counters", "scratch", "events")
NO_BCC = (
    "bcc is not installed for this Python: apt-get install python3-bpfcc, and use the distribution's python3 "
    "(PyPI's bcc is another project)"
)


def references(code: bytes, maps: dict[int, str]) -> list[tuple[int, str]]:
    """Which instructions of a program load the address of which map."""
    found: list[tuple[int, str]] = []
    index = 0
    while index < len(code) // 8:
        operation, registers, _, value = struct.unpack_from("<BBhi", code, index * 8)
        if operation == LD_IMM64:
            if registers >> 4 == PSEUDO_MAP_FD:
                found.append((index, maps[value]))
            index += 1
        index += 1
    return found


def whole(name: str) -> str:
    """A source file with the headers beside it in place of their #include lines: bcc rewrites map accesses in one file only."""
    return re.sub(r'^#include "(\w+\.h)"$', lambda found: whole(found[1]), source_text(name), flags=re.M)


def compile_all(flags: list[str]) -> dict[str, dict[str, Any]]:
    # bcc looks for a kernel source tree by this variable before it looks for the running kernel's.
    os.environ["BCC_KERNEL_SOURCE"] = str(source_folder() / "headers")
    from bcc import BPF

    compiled = BPF(text=whole(SOURCE), cflags=[*flags, "-Wno-everything"])
    by_register = "-DNP_KPROBE" in flags
    maps = {compiled[name].map_fd: name for name in (*MAPS, *(("frames",) if by_register else ()))}
    return {
        name: {"code": code.hex(), "maps": references(code, maps)}
        for name in (FUNCTIONS if by_register else PROGRAMS)
        for code in [bytes(compiled.dump_func(name.encode()))]
    }


def main() -> int:
    try:
        import bcc  # noqa: F401
    except ImportError:
        sys.stderr.write(NO_BCC + "\n")
        return 3
    document = compile_all(sys.argv[1:])
    sys.stdout.write(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
