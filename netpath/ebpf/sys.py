"""The bpf(2) calls that netpath makes, by number, without a library. Layouts: include/uapi/linux/bpf.h.

Everything made here is a file descriptor; the kernel takes it away when the last one is closed, however the process ends.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import struct
from dataclasses import dataclass
from pathlib import Path

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, PROG_LOAD = 0, 1, 2, 5
PROG_GET_NEXT_ID, MAP_GET_NEXT_ID, LINK_GET_NEXT_ID, OBJ_GET_INFO_BY_FD = 11, 12, 31, 15
RAW_TRACEPOINT_OPEN, LINK_CREATE, ENABLE_STATS = 17, 28, 32
BTF_GET_FD_BY_ID, BTF_GET_NEXT_ID = 19, 23

MAPPABLE = 1 << 10
"""BPF_F_MMAPABLE: the values of an array may be mapped into memory (5.5)."""
MAP_HASH, MAP_ARRAY, MAP_PERCPU_ARRAY, MAP_RINGBUF = 1, 2, 6, 27
PROG_SCHED_CLS, PROG_KPROBE, PROG_RAW_TRACEPOINT, PROG_TRACING, PROG_NETFILTER = 3, 2, 17, 26, 32
TRACE_RAW_TP, TRACE_FENTRY, TRACE_FEXIT, NETFILTER_ATTACH, TCX_INGRESS = 23, 24, 25, 45, 46

KPROBES = Path("/sys/bus/event_source/devices/kprobe")
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_PERF_ATTR_SIZE, _PERF_FLAG_FD_CLOEXEC, _PERF_SET_BPF, _PERF_ENABLE = 112, 8, 0x40042408, 0x2400

_INFO_SIZE = 224
"""struct bpf_prog_info up to attach_btf_obj_id; an older kernel fills what it knows of it."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def number() -> int:
    """The system call's number on this architecture. Raises NotImplementedError on one that netpath doesn't know."""
    known = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
    machine = os.uname().machine
    if machine not in known:
        raise NotImplementedError(f"netpath does not know the bpf system call of {machine}")
    return known[machine]


def call(command: int, attributes: bytes) -> int:
    """bpf(command, attributes): a descriptor or another result. Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), 152))
    result = int(_libc.syscall(number(), command, buffer, len(buffer)))
    if result < 0 and ctypes.get_errno() == errno.EPERM and command in (MAP_CREATE, PROG_LOAD) and lift_memory_limit():
        result = int(_libc.syscall(number(), command, buffer, len(buffer)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def lift_memory_limit() -> bool:
    """Before 5.11 maps and programs count as locked memory, 64 KiB of it by default, and more is EPERM. False: nothing to lift."""
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        ctypes.set_errno(errno.EPERM)
        return False
    return True


def _pointer(data: ctypes.Array[ctypes.c_char] | None) -> int:
    return ctypes.addressof(data) if data is not None else 0


def create_map(kind: int, key_size: int, value_size: int, entries: int, name: str, flags: int = 0) -> int:
    attributes = struct.pack("<IIIIIII16s", kind, key_size, value_size, entries, flags, 0, 0, name.encode()[:15])
    return call(MAP_CREATE, attributes)


def update(map_fd: int, key: bytes, value: bytes) -> None:
    key_buffer, value_buffer = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    call(MAP_UPDATE, struct.pack("<IIQQQ", map_fd, 0, _pointer(key_buffer), _pointer(value_buffer), 0))


def lookup(map_fd: int, key: bytes, value_size: int) -> bytes:
    key_buffer, value_buffer = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value_size)
    call(MAP_LOOKUP, struct.pack("<IIQQQ", map_fd, 0, _pointer(key_buffer), _pointer(value_buffer), 0))
    return value_buffer.raw


class LoadError(OSError):
    """The verifier refused a program; `log` is all that it said, `program` the program's name."""

    def __init__(self, code: int, text: str, log: str, program: str = "") -> None:
        super().__init__(code, text)
        self.log, self.program = log, program


def load(
    kind: int,
    code: bytes,
    name: str,
    *,
    attach_type: int = 0,
    attach_btf_id: int = 0,
    attach_btf_obj: int = 0,
    log_size: int = 1 << 20,
) -> int:
    """Load a program, licence GPL. Raises LoadError with the verifier's log."""
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")

    def attempt(level: int, log: ctypes.Array[ctypes.c_char] | None) -> int:
        attributes = struct.pack(
            "<IIQQIIQII16sIIIIQIIQIII",
            kind, len(code) // 8, _pointer(instructions), _pointer(licence),
            level, len(log) if log is not None else 0, _pointer(log),
            0, 0, name.encode()[:15], 0, attach_type, 0, 0, 0, 0, 0, 0, 0, attach_btf_id, attach_btf_obj,
        )  # fmt: skip
        return call(PROG_LOAD, attributes)

    try:
        return attempt(0, None)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            raise LoadError(error.errno, error.strerror or "", "", name) from error
        refused = error
    log = ctypes.create_string_buffer(log_size)
    try:
        return attempt(1, log)
    except OSError as error:
        # ENOSPC is the log's own: it was longer than the room for it.
        cause = refused if error.errno == errno.ENOSPC else error
        text = log.value.decode(errors="replace")
        raise LoadError(cause.errno or errno.EINVAL, cause.strerror or "", text, name) from error


@dataclass(frozen=True, slots=True)
class ProgramSize:
    """How large a loaded program is."""

    instructions: int
    """After the verifier's rewriting (xlated_prog_len)."""
    verified: int | None
    """Instructions that the verifier walked through; None before 5.16, which does not tell."""


def program_size(program: int) -> ProgramSize:
    """Of a program's descriptor (struct bpf_prog_info). Raises OSError."""
    info = ctypes.create_string_buffer(_INFO_SIZE)
    call(OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", program, _INFO_SIZE, _pointer(info)))
    translated = struct.unpack_from("<I", info.raw, 20)[0]
    return ProgramSize(translated // 8, struct.unpack_from("<I", info.raw, 216)[0] or None)


def open_raw_tracepoint(program: int, name: str | None) -> int:
    """Attach to a tracepoint; without a name to the one a BTF-typed program was loaded for."""
    text = ctypes.create_string_buffer(name.encode()) if name is not None else None
    return call(RAW_TRACEPOINT_OPEN, struct.pack("<QI", _pointer(text), program))


def kprobe_type() -> int:
    """The type of perf event that a kprobe is. Raises LoadError on a kernel without kprobes."""
    try:
        return int(KPROBES.joinpath("type").read_text())
    except (OSError, ValueError) as error:
        raise LoadError(errno.ENOENT, "this kernel has no kprobes", "") from error


def open_kprobe(program: int, function: str, *, leaving: bool) -> int:
    """Attach to a function of the kernel, as it is entered or as it returns (perf_event_open(2), config1: the name). Raises OSError."""
    returning = 0
    if leaving:
        # format/retprobe says which bit of config it is: config:0
        returning = 1 << int(KPROBES.joinpath("format/retprobe").read_text().strip().rpartition(":")[2])
    text = ctypes.create_string_buffer(function.encode())
    attributes = ctypes.create_string_buffer(
        struct.pack("<IIQQQQQIIQQ", kprobe_type(), _PERF_ATTR_SIZE, returning, 0, 0, 0, 0, 0, 0, _pointer(text), 0), _PERF_ATTR_SIZE
    )
    machine = os.uname().machine
    event = int(_libc.syscall(_PERF_EVENT_OPEN[machine], attributes, -1, 0, -1, _PERF_FLAG_FD_CLOEXEC))
    if event < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    try:
        fcntl.ioctl(event, _PERF_SET_BPF, program)
        fcntl.ioctl(event, _PERF_ENABLE, 0)
    except OSError:
        os.close(event)
        raise
    return event


def btf_of_module(name: str) -> int | None:
    """A descriptor of a loaded module's types; None when the kernel has none. Raises OSError."""
    current = 0
    while True:
        buffer = ctypes.create_string_buffer(struct.pack("<III", current, 0, 0), 152)
        if int(_libc.syscall(number(), BTF_GET_NEXT_ID, buffer, len(buffer))) < 0:
            return None
        current = struct.unpack_from("<I", buffer.raw, 4)[0]
        try:
            descriptor = call(BTF_GET_FD_BY_ID, struct.pack("<I", current))
        except OSError:
            continue  # it went away meanwhile
        text = ctypes.create_string_buffer(64)
        info = ctypes.create_string_buffer(struct.pack("<QIIQII", 0, 0, 0, _pointer(text), len(text), 0))
        call(OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", descriptor, 32, _pointer(info)))
        if text.value == name.encode():
            return descriptor
        os.close(descriptor)


def link_netfilter(program: int, family: int, hook: int, priority: int) -> int:
    """Attach to a netfilter hook of the calling thread's network namespace (family 2: IPv4, 10: IPv6)."""
    return call(LINK_CREATE, struct.pack("<IIIIIIiI", program, 0, NETFILTER_ATTACH, 0, family, hook, priority, 0))


def ids(command: int) -> frozenset[int]:
    """All ids of programs (PROG_GET_NEXT_ID), maps or links on the machine."""
    found: set[int] = set()
    current = 0
    while True:
        buffer = ctypes.create_string_buffer(struct.pack("<III", current, 0, 0), 152)
        if int(_libc.syscall(number(), command, buffer, len(buffer))) < 0:
            return frozenset(found)
        current = struct.unpack_from("<I", buffer.raw, 4)[0]
        found.add(current)


def possible_cpus() -> int:
    """How many values a per-CPU map holds for one key."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().replace(",", "-").rpartition("-")[2]
    return int(last) + 1
