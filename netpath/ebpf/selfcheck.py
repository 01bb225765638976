"""A packet that is known in every field, for the probes to be tried on before anything they read is believed.

It crosses a pair of veths in a network namespace of its own, as a frame that no stack answers. Nothing of it is small or common: a
wrong offset must not read the right value from the member beside.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from netpath import setns
from netpath.errors import MissingError, NetpathError
from netpath.model import nonce as layout
from netpath.model.event import Event
from netpath.model.packet import Ethernet, Ipv4, Udp

INDEXES = {"tx": 70_001, "rx": 70_013}
"""Of the sending and of the receiving device."""
SOURCE, DESTINATION = "192.0.2.77", "198.51.100.33"
"""Addresses for documentation (RFC 5737); nobody routes the packet."""
SPORT, DPORT = 40_441, 50_551
MACS = "02:6e:70:00:00:01", "02:6e:70:00:00:02"
WAIT_SECONDS = 2.0

_RTM_NEWLINK, _REQUEST, _ACK, _CREATE, _EXCLUSIVE = 16, 1, 4, 0x400, 0x200
_IFF_UP = 1
_IFLA_IFNAME, _IFLA_LINKINFO, _INFO_KIND, _INFO_DATA, _VETH_PEER, _NLMSG_ERROR = 3, 18, 1, 2, 1, 2


@dataclass(frozen=True, slots=True)
class KnownPacket:
    """What is known of it. `size` is its payload's, in bytes."""

    netns: int
    size: int
    before_ns: int
    after_ns: int

    def differs(self, event: Event) -> str | None:
        """What an event at a device says otherwise; None: nothing."""
        frame = next((header for header in event.headers if isinstance(header, Ethernet)), None)
        ip = next((header for header in event.headers if isinstance(header, Ipv4)), None)
        udp = next((header for header in event.headers if isinstance(header, Udp)), None)
        facts: tuple[tuple[str, object, object], ...] = (
            ("namespace", event.netns, self.netns),
            ("ifindex", event.ifindex, INDEXES[event.hook]),
            ("IP length", event.ip_length, self.size + 28),
            ("frame length", event.length, self.size + 42),
            ("link-layer addresses", frame and (frame.src, frame.dst), MACS),
            ("addresses", ip and (ip.src, ip.dst), (SOURCE, DESTINATION)),
            ("ports", udp and (udp.sport, udp.dport), (SPORT, DPORT)),
            ("time", self.before_ns <= event.time_ns <= self.after_ns, True),
        )
        for name, found, wanted in facts:
            if found != wanted:
                return f"{name} at the {event.hook} hook: {found!r} instead of {wanted!r}"
        return None


def send(nonce: int, sequence: int, size: int) -> KnownPacket:
    """Send it, in a namespace of the calling thread's own, which must end. Raises MissingError, or NetpathError when it is lost."""
    try:
        setns.unshare()
    except OSError as error:
        raise MissingError(f"cannot make a network namespace for the self-check: {error.strerror} (run as root)") from error
    inode = Path("/proc/thread-self/ns/net").stat().st_ino
    _make_devices()
    kind = socket.htons(0x0800)
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, kind) as receiver,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, kind) as sender,
    ):
        receiver.bind(("rx", 0x0800))
        receiver.settimeout(WAIT_SECONDS)
        sender.bind(("tx", 0x0800))
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        sender.send(_frame(layout.pack(nonce, sequence, size)))
        try:
            receiver.recv(2048)
        except TimeoutError as error:
            raise NetpathError(
                f"the self-check's packet did not cross a pair of fresh devices within {WAIT_SECONDS:.0f} s"
            ) from error
        return KnownPacket(inode, size, before, time.clock_gettime_ns(time.CLOCK_MONOTONIC))


def _frame(payload: bytes) -> bytes:
    source, destination = (bytes.fromhex(mac.replace(":", "")) for mac in MACS)
    udp = struct.pack("!HHHH", SPORT, DPORT, 8 + len(payload), 0) + payload
    ip = (
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + socket.inet_aton(SOURCE) + socket.inet_aton(DESTINATION)
    )
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return destination + source + b"\x08\x00" + ip[:10] + struct.pack("!H", checksum) + ip[12:] + udp


def _make_devices() -> None:
    """A pair of veths, up, with these indexes (rtnetlink(7), drivers/net/veth.c). Raises MissingError."""
    peer = _attribute(_VETH_PEER, _link(INDEXES["rx"], 0) + _attribute(_IFLA_IFNAME, b"rx\0"))
    info = _attribute(_INFO_KIND, b"veth") + _attribute(_INFO_DATA, peer)
    made = _link(INDEXES["tx"], 0) + _attribute(_IFLA_IFNAME, b"tx\0") + _attribute(_IFLA_LINKINFO, info)
    # The sender comes up last: with its peer up it has a carrier then, and no queue that waits for one.
    up = [(_link(INDEXES[name], _IFF_UP), 0) for name in ("rx", "tx")]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        for body, flags in ((made, _CREATE | _EXCLUSIVE), *up):
            netlink.send(struct.pack("=IHHII", 16 + len(body), _RTM_NEWLINK, _REQUEST | _ACK | flags, 1, 0) + body)
            answer = netlink.recv(4096)
            kind, code = struct.unpack_from("=H", answer, 4)[0], struct.unpack_from("=i", answer, 16)[0]
            if kind != _NLMSG_ERROR or code:
                raise MissingError(
                    f"cannot make a pair of veths for the self-check: {os.strerror(-code)} (modprobe veth, or run as root)"
                )


def _link(index: int, flags: int) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, flags)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
