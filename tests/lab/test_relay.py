"""The user-space tunnel's packet handling, without a tunnel."""

from __future__ import annotations

import ipaddress
import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from netpath import lab
from netpath.lab.relay import forwarded
from tests.lab.helpers import Space, leftovers, processes
from tests.lab.test_lifecycle import gone
from tests.lab.test_traffic import udp_echo


def checksum(header: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~int(total) & 0xFFFF


def header(ttl: int, source: int, destination: int, identification: int, protocol: int) -> bytes:
    fields = (0x45, 0, 28, identification, 0x4000, ttl, protocol, 0, source, destination)
    plain = struct.pack("!BBHHHBBHII", *fields)
    return plain[:10] + struct.pack("!H", checksum(plain)) + plain[12:]


words = st.integers(0, 2**32 - 1)


@given(st.integers(2, 255), words, words, st.integers(0, 65535), st.integers(0, 255))
def test_the_ttl_goes_down_and_the_checksum_holds(
    ttl: int, source: int, destination: int, identification: int, protocol: int
) -> None:
    packet = header(ttl, source, destination, identification, protocol) + b"payload!"
    changed = forwarded(packet)
    assert changed is not None
    assert changed[8] == ttl - 1
    assert checksum(changed[:20]) == 0
    assert changed[:8] + changed[9:10] + changed[12:] == packet[:8] + packet[9:10] + packet[12:]


@given(st.binary(max_size=60))
def test_anything_else_is_no_crash(data: bytes) -> None:
    changed = forwarded(data)
    assert changed is None or (len(changed) == len(data) and changed[0] >> 4 == 4)


def test_a_packet_at_its_end_goes_no_further() -> None:
    address = int(ipaddress.IPv4Address("10.244.1.2"))
    assert forwarded(header(1, address, address, 0, 17) + b"payload!") is None
    assert forwarded(header(0, address, address, 0, 17) + b"payload!") is None


def test_the_relay_survives_what_it_cannot_deliver(lab_name: str) -> None:
    """Addresses of no node, garbage on its port: dropped, and the tunnel still works."""
    made = lab.up("flannel-udp", lab_name)
    with Space(made.pod("pod1a").netns).socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"nobody", ("10.244.77.7", 7777))
    with Space(made.node("node2").netns).socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for data in (b"", b"x", b"E" * 30, b"`" * 100):
            sock.sendto(data, ("192.168.50.11", 8285))
    assert udp_echo(made.pod("pod1a").netns, "10.244.2.2", 7777)[0] == b"netpath"


def test_down_ends_the_relays(lab_name: str) -> None:
    lab.up("flannel-udp", lab_name)
    assert len(processes(lab_name)) == 3
    lab.down(lab_name)
    gone(lab_name)
    assert leftovers(lab_name) == []
