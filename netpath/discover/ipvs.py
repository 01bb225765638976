"""IPVS's virtual servers and their backends, over generic netlink (include/uapi/linux/ip_vs.h, net/netfilter/ipvs/ip_vs_ctl.c)."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

from netpath.discover.nl import Message, Netlink, address, attribute, attributes, network_number, number, text
from netpath.model.snapshot import IpvsBackend, VirtualServer

NETLINK_GENERIC = 16
_CONTROL, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 0x10, 3, 1, 2
"""GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME (include/uapi/linux/genetlink.h)."""
_VERSION = 1
NEW_SERVICE, GET_SERVICE, NEW_DEST, GET_DEST = 1, 4, 5, 8
SERVICE, DEST = 1, 2
"""Attributes that hold a service's and a destination's own."""
AF, PROTOCOL, ADDRESS, PORT, FWMARK, SCHEDULER, FLAGS, TIMEOUT, NETMASK = range(1, 10)
DEST_ADDRESS, DEST_PORT, DEST_METHOD, DEST_WEIGHT, DEST_UPPER, DEST_LOWER, DEST_FAMILY = 1, 2, 3, 4, 5, 6, 11
_NESTED = 0x8000
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
_METHODS = {0: "masq", 1: "local", 2: "tunnel", 3: "route", 4: "bypass"}
_FLAGS = ((0x1, "persistent"), (0x4, "onepacket"), (0x8, "sched1"), (0x10, "sched2"), (0x20, "sched3"))
PERSISTENT = 0x1


def available() -> bool:
    """Whether the kernel's IPVS is there for the calling thread's namespace. Asking this way loads no module."""
    return Path("/proc/thread-self/net/ip_vs").exists()


def family(netlink: Netlink) -> int:
    """The number under which the kernel has IPVS's family. Raises OSError."""
    request = struct.pack("=BBH", _GET_FAMILY, 1, 0) + attribute(_FAMILY_NAME, b"IPVS\0")
    (answer,) = netlink.ask(_CONTROL, [request])
    if isinstance(answer, int):
        code = answer or errno.ENOENT
        raise OSError(code, os.strerror(code))
    return number(attributes(answer[1], 4).get(_FAMILY_ID, b""))


def request(command: int, payload: bytes = b"") -> bytes:
    """A request of the family."""
    return struct.pack("=BBH", command, _VERSION, 0) + payload


def nested(kind: int, payload: bytes) -> bytes:
    return attribute(kind | _NESTED, payload)


def read() -> tuple[VirtualServer, ...]:
    """The virtual servers of the calling thread's namespace, sorted. None there without IPVS. Raises OSError, ValueError."""
    if not available():
        return ()
    with Netlink(NETLINK_GENERIC) as netlink:
        kind = family(netlink)
        found = []
        for message in netlink.dump(kind, request(GET_SERVICE)):
            raw = attributes(message[1], 4).get(SERVICE, b"")
            backends = netlink.dump(kind, request(GET_DEST, nested(SERVICE, _identity(raw))))
            found.append(server(raw, backends))
    return tuple(
        sorted(found, key=lambda each: (each.family, each.fwmark or 0, each.protocol or "", each.address or "", each.port or 0))
    )


def _identity(raw: bytes) -> bytes:
    """What the kernel finds a service by: its mark, or protocol, address and port."""
    table = attributes(raw)
    wanted = (AF, FWMARK) if FWMARK in table else (AF, PROTOCOL, ADDRESS, PORT)
    return b"".join(attribute(kind, table[kind]) for kind in wanted if kind in table)


def server(raw: bytes, backends: list[Message]) -> VirtualServer:
    """A virtual server from the attributes of its service and from the messages of a dump of its backends."""
    table = attributes(raw)
    own = number(table.get(AF, b""))
    flags = number(table.get(FLAGS, b"")[:4])
    mark = number(table[FWMARK]) if FWMARK in table else None
    protocol = number(table.get(PROTOCOL, b""))
    return VirtualServer(
        family=6 if own == socket.AF_INET6 else 4,
        protocol=_PROTOCOLS.get(protocol, str(protocol)) if mark is None else None,
        address=_address(table.get(ADDRESS, b""), own) if mark is None else None,
        port=network_number(table.get(PORT, b"")) if mark is None else None,
        scheduler=text(table.get(SCHEDULER, b"")),
        fwmark=mark,
        flags=tuple(name for bit, name in _FLAGS if flags & bit),
        timeout=number(table.get(TIMEOUT, b"")) if flags & PERSISTENT else None,
        backends=tuple(_backend(attributes(body, 4).get(DEST, b""), own) for _, body in backends),
    )


def _backend(raw: bytes, service_family: int) -> IpvsBackend:
    table = attributes(raw)
    own = number(table[DEST_FAMILY]) if DEST_FAMILY in table else service_family
    method = number(table.get(DEST_METHOD, b"")) & 0x7
    return IpvsBackend(
        address=_address(table.get(DEST_ADDRESS, b""), own),
        port=network_number(table.get(DEST_PORT, b"")),
        weight=number(table.get(DEST_WEIGHT, b"")),
        method=_METHODS.get(method, str(method)),
    )


def _address(value: bytes, own: int) -> str:
    """An address is always 16 bytes there (union nf_inet_addr), of which IPv4 uses the first four."""
    return address(value[:4] if own == socket.AF_INET else value)
