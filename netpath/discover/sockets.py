"""Sockets that can receive, by sock_diag (include/uapi/linux/inet_diag.h), and the processes that hold them."""

# Thousands of small files: pathlib doubles the time.
# ruff: noqa: PTH115, PTH208

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from netpath.discover.namespaces import Process
from netpath.discover.nl import NETLINK_SOCK_DIAG, Netlink, address, attributes, number
from netpath.model.snapshot import Socket

_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = struct.Struct("=BBBxI48s")
_MESSAGE = struct.Struct("=BBBBHH16s16sI8sIIIII")
_PROTOCOLS = ((socket.IPPROTO_TCP, "tcp", 1 << 10), (socket.IPPROTO_UDP, "udp", 0xFFFFFFFF))
"""TCP in state LISTEN; UDP in any."""
_ESTABLISHED = 1
_SKV6ONLY = 11
MANY_PROCESSES = 500
"""Above this many processes on a machine only docker-proxies are looked up: reading every descriptor of thousands takes seconds."""
PROXY = "docker-proxy"

Held = tuple[Socket, int]
"""A socket and its inode in sockfs."""


def read(devices: Mapping[int, str]) -> list[Held]:
    """Listening TCP and bound UDP sockets of the calling thread's namespace, without their processes. Raises OSError."""
    found: list[Held] = []
    with Netlink(NETLINK_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            for protocol, name, states in _PROTOCOLS:
                request = _REQUEST.pack(family, protocol, 1 << (_SKV6ONLY - 1) & 0xFF, states, bytes(48))
                for _, body in netlink.dump(_SOCK_DIAG_BY_FAMILY, request):
                    entry = _one(body, name, devices)
                    if entry is not None:
                        found.append(entry)
    found.sort(key=lambda held: (held[0].protocol, held[0].port, held[0].address, held[0].device or "", held[0].connected, held[1]))
    return found


def _one(body: bytes, protocol: str, devices: Mapping[int, str]) -> Held | None:
    family, state, _, _, port, _, source, _, device, _, _, _, _, _, inode = _MESSAGE.unpack_from(body)
    port = socket.ntohs(port)
    if not port:
        return None
    table = attributes(body, _MESSAGE.size)
    return (
        Socket(
            protocol=protocol,
            address=address(source[:4] if family == socket.AF_INET else source),
            port=port,
            device=devices.get(device, str(device)) if device else None,
            connected=protocol == "udp" and state == _ESTABLISHED,
            v6only=family == socket.AF_INET6 and number(table.get(_SKV6ONLY, b"")) != 0,
        ),
        inode,
    )


def owners(wanted: Iterable[int], processes: list[Process]) -> dict[int, Process]:
    """Who holds the sockets with these inodes. A docker-proxy is preferred to the daemon that handed it the descriptor."""
    open_inodes = set(wanted)
    found: dict[int, Process] = {}
    if not open_inodes:
        return found
    few = len(processes) <= MANY_PROCESSES
    for process in sorted(processes, key=lambda process: (process.name != PROXY, process.pid)):
        if process.name != PROXY and (not few or not open_inodes):
            continue
        folder = f"/proc/{process.pid}/fd"
        try:
            descriptors = os.listdir(folder)
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                target = os.readlink(f"{folder}/{descriptor}")
            except OSError:
                continue
            if target.startswith("socket:["):
                inode = int(target[8:-1])
                if inode in open_inodes:
                    found[inode] = process
                    open_inodes.discard(inode)
    return found


def with_owners(held: list[Held], found: Mapping[int, Process]) -> tuple[Socket, ...]:
    """The sockets with their processes; the command line only of docker-proxies, whose target stands there."""
    return tuple(_owned(entry, found.get(inode)) for entry, inode in held)


def _owned(entry: Socket, process: Process | None) -> Socket:
    if process is None:
        return entry
    command = command_line(process.pid) if process.name == PROXY else None
    return replace(entry, process=process.name, pid=process.pid, command=" ".join(command) if command else None)


def command_line(pid: int) -> list[str] | None:
    """The words of a process's command line; None when it is gone."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    return [word.decode("utf-8", "backslashreplace") for word in raw.rstrip(b"\0").split(b"\0")]
