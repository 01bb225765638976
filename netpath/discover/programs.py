"""BPF programs and tc filters on devices: what may redirect, rewrite or drop a packet there in ways netpath does not evaluate."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Mapping

from netpath.discover.nl import Netlink, attributes, number, text
from netpath.model.snapshot import Link, Program

_RTM_GETQDISC = 38
_RTM_GETTFILTER = 46
_TCMSG = struct.Struct("=BxxxiIII")
_PARENT_ROOT = 0xFFFFFFFF
_PARENT_INGRESS = 0xFFFFFFF1
_SIDES = (("tc ingress", 0xFFFFFFF2), ("tc egress", 0xFFFFFFF3))
_NO_FILTERS = frozenset({"noqueue", "pfifo_fast", "pfifo", "bfifo", "mq", "fq", "pfifo_head_drop", "tbf", "netem", "codel", "pie"})
"""Qdiscs that take no filters (netem and tbf have no class to ask for)."""
_ACTIONS = {"matchall": 2, "u32": 7, "flower": 3, "basic": 3, "fw": 4, "cgroup": 1, "route": 6, "flow": 10, "bpf": 1}
"""Where each kind of filter keeps its actions (include/uapi/linux/pkt_cls.h)."""
_VERDICTS = {0: "pass", 1: "reclassify", 2: "drop", 3: "pipe", 4: "drop", 5: "drop", 8: "trap"}

_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280, "ppc64le": 361, "s390x": 351, "riscv64": 280, "i686": 357, "armv7l": 386}
_PROG_GET_FD_BY_ID = 13
_OBJ_GET_INFO_BY_FD = 15
_PROG_QUERY = 16
_TCX = (("tcx ingress", 46), ("tcx egress", 47))
_NETKIT = (("netkit", 54), ("netkit", 55))
_MAX_PROGRAMS = 64
_libc = ctypes.CDLL(None, use_errno=True)


def read(
    netlink: Netlink, links: Iterable[Link], xdp: Mapping[int, list[int]], problems: list[str]
) -> dict[int, tuple[Program, ...]]:
    """Programs by ifindex, for the namespace of the calling thread. What can't be asked becomes a problem line."""
    found: dict[int, list[Program]] = {}
    names = _Names()
    for ifindex, ids in xdp.items():
        found.setdefault(ifindex, []).extend(Program("xdp", number_, names.of(number_)) for number_ in ids)
    try:
        _filters(netlink, found)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            problems.append(f"tc filters could not be read: {error.strerror}")
    _attached(links, names, found, problems)
    return {ifindex: tuple(programs) for ifindex, programs in found.items()}


def _filters(netlink: Netlink, found: dict[int, list[Program]]) -> None:
    for _, body in netlink.dump(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0)):
        _, ifindex, handle, parent, _ = _TCMSG.unpack_from(body)
        kind = text(attributes(body, _TCMSG.size).get(1, b""))
        if parent == _PARENT_INGRESS:
            for hook, side in _SIDES:
                if kind == "clsact" or hook == "tc ingress":
                    found.setdefault(ifindex, []).extend(_filters_at(netlink, ifindex, side, hook, classify_only=False))
        elif parent == _PARENT_ROOT and handle and kind not in _NO_FILTERS:
            found.setdefault(ifindex, []).extend(_filters_at(netlink, ifindex, handle, "tc egress", classify_only=True))


def _filters_at(netlink: Netlink, ifindex: int, parent: int, hook: str, *, classify_only: bool) -> list[Program]:
    """The filters of one place. Under a classful qdisc a filter without actions only picks a class: it is left out."""
    found: list[Program] = []
    try:
        messages = netlink.dump(_RTM_GETTFILTER, _TCMSG.pack(0, ifindex, 0, parent, 0))
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):
            return found  # the device or its qdisc is gone, or the qdisc takes no filters
        raise
    for _, body in messages:
        table = attributes(body, _TCMSG.size)
        kind = text(table.get(1, b""))
        if not table.get(2):
            continue  # the head of a priority's filters, not a filter
        options = attributes(table[2])
        if kind == "bpf":
            found.append(Program(hook, number(options[11]) if 11 in options else None, text(options.get(7, b"")) or "bpf"))
            continue
        if kind == "u32" and 4 in options:
            continue  # a hash table of u32's
        actions = _actions(options.get(_ACTIONS.get(kind, -1)))
        if actions or not classify_only:
            found.append(Program(hook, None, " ".join([kind, *actions])))
    return found


def _actions(value: bytes | None) -> list[str]:
    words: list[str] = []
    for _, action in sorted(attributes(value or b"").items()):
        table = attributes(action)
        kind = text(table.get(1, b""))
        words.append(kind)
        parameters = attributes(table.get(2, b"")).get(2, b"")
        if kind == "gact" and len(parameters) >= 12:
            words.append(_VERDICTS.get(struct.unpack_from("=i", parameters, 8)[0], "other"))
    return words


class _Names:
    """Names of BPF programs by id."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def of(self, identity: int) -> str:
        if identity not in self._known:
            self._known[identity] = _program_name(identity)
        return self._known[identity]


def _bpf(command: int, attr: ctypes.Array[ctypes.c_char]) -> int:
    """bpf(2). Raises OSError."""
    number_ = _BPF_SYSCALL.get(platform.machine())
    if number_ is None:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) on {platform.machine()} is not known")
    result: int = _libc.syscall(number_, command, attr, len(attr))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _program_name(identity: int) -> str:
    try:
        descriptor = _bpf(_PROG_GET_FD_BY_ID, ctypes.create_string_buffer(struct.pack("=III", identity, 0, 0), 12))
    except OSError:
        return ""
    try:
        info = ctypes.create_string_buffer(96)
        _bpf(
            _OBJ_GET_INFO_BY_FD,
            ctypes.create_string_buffer(struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)), 16),
        )
        return text(info.raw[64:80])
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _attached(links: Iterable[Link], names: _Names, found: dict[int, list[Program]], problems: list[str]) -> None:
    """Programs attached without a qdisc, by BPF_PROG_QUERY, which tells of the calling thread's namespace."""
    ids = (ctypes.c_uint32 * _MAX_PROGRAMS)()
    where = ctypes.addressof(ids)
    attr = ctypes.create_string_buffer(64)
    unknown: set[int] = set()
    for link in links:
        for hook, kind in (*_TCX, *(_NETKIT if link.kind == "netkit" else ())):
            if kind in unknown:
                continue
            struct.pack_into("=IIIIQI", attr, 0, link.ifindex, kind, 0, 0, where, _MAX_PROGRAMS)
            struct.pack_into("=IQQQQ", attr, 28, 0, 0, 0, 0, 0)
            try:
                _bpf(_PROG_QUERY, attr)
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ENOENT):
                    continue  # the device is gone, or has nothing attached
                unknown.add(kind)
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    # EINVAL: a kernel before 6.6 (tcx) or 6.7 (netkit), which has no such attachments
                    problems.append(f"{hook} programs could not be asked for: {error.strerror}")
                continue
            count = struct.unpack_from("=I", attr, 24)[0]
            found.setdefault(link.ifindex, []).extend(Program(hook, each, names.of(each)) for each in list(ids)[:count])
