"""Virtual servers from the kernel's bytes. A live reading, held to ipvsadm's, is in tests/lab/test_ipvs.py."""

from __future__ import annotations

import socket
import struct

import pytest

from netpath.discover import ipvs
from netpath.discover.nl import attribute
from netpath.model.snapshot import IpvsBackend, VirtualServer


def v4(text: str) -> bytes:
    return socket.inet_aton(text).ljust(16, b"\0")


def service(**more: bytes) -> bytes:
    fields = {
        "AF": struct.pack("=H", socket.AF_INET),
        "PROTOCOL": struct.pack("=H", 17),
        "ADDRESS": v4("10.96.0.7"),
        "PORT": struct.pack("!H", 53),
        "SCHEDULER": b"wrr\0",
        "FLAGS": struct.pack("=II", 0x2, 0xFFFFFFFF),
        "TIMEOUT": struct.pack("=I", 300),
        **more,
    }
    return b"".join(attribute(getattr(ipvs, name), value) for name, value in fields.items() if value)


def dest(address: bytes, port: int, weight: int, method: int, family: int | None = socket.AF_INET) -> tuple[int, bytes]:
    inner = attribute(ipvs.DEST_ADDRESS, address) + attribute(ipvs.DEST_PORT, struct.pack("!H", port))
    inner += attribute(ipvs.DEST_METHOD, struct.pack("=I", method)) + attribute(ipvs.DEST_WEIGHT, struct.pack("=I", weight))
    if family is not None:
        inner += attribute(ipvs.DEST_FAMILY, struct.pack("=H", family))
    return 0x1F, b"\x08\x01\0\0" + ipvs.nested(ipvs.DEST, inner)


def test_a_service_and_its_backends() -> None:
    found = ipvs.server(service(), [dest(v4("10.0.0.1"), 5353, 3, 0), dest(v4("10.0.0.2"), 0, 0, 2)])
    assert found == VirtualServer(
        4,
        "udp",
        "10.96.0.7",
        53,
        "wrr",
        backends=(IpvsBackend("10.0.0.1", 5353, 3, "masq"), IpvsBackend("10.0.0.2", 0, 0, "tunnel")),
    )
    assert found.title == "UDP 10.96.0.7:53 wrr"


def test_the_flag_that_the_kernel_sets_for_itself_is_no_flag() -> None:
    """IP_VS_SVC_F_HASHED is always there; persistent has a time with it."""
    found = ipvs.server(service(FLAGS=struct.pack("=II", 0x3, 0xFFFFFFFF)), [])
    assert (found.flags, found.timeout) == (("persistent",), 300)
    assert ipvs.server(service(), []).timeout is None


def test_ipv6_and_a_firewall_mark() -> None:
    six = ipvs.server(
        service(AF=struct.pack("=H", socket.AF_INET6), ADDRESS=socket.inet_pton(socket.AF_INET6, "fd00::7")),
        [dest(socket.inet_pton(socket.AF_INET6, "fd00::1"), 53, 1, 0, None)],
    )
    assert (six.family, six.address, six.backends[0].address) == (6, "fd00::7", "fd00::1")
    assert six.title == "UDP [fd00::7]:53 wrr"
    mark = ipvs.server(service(PROTOCOL=b"", ADDRESS=b"", PORT=b"", FWMARK=struct.pack("=I", 9)), [])
    assert (mark.fwmark, mark.protocol, mark.address, mark.port, mark.title) == (9, None, None, None, "FWM 9 wrr")


def test_an_answer_cut_short_is_an_error_and_no_guess() -> None:
    with pytest.raises(ValueError, match="address of 0 bytes"):
        ipvs.server(service(ADDRESS=b""), [])


def test_what_the_kernel_lacks_is_none_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipvs, "available", lambda: False)
    assert ipvs.read() == ()
