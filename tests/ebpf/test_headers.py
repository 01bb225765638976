"""The header parser against packets that scapy builds, and against anything at all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN

from netpath.ebpf.headers import parse
from netpath.model.packet import Ethernet, Headers, Icmp, Icmpv6, Ipv4, Ipv6, Opaque, Tcp, Udp, Vlan, VxlanHeader

PORTS = {4789: "vxlan", 8285: "ip", 6783: "sleeve"}
MAC = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}
ETHER = Ether(src=MAC["src"], dst=MAC["dst"])
V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fd00::1", dst="fd00::2")
LOAD = b"n" * 12
ETHERNET = Ethernet(**MAC)


def v4(length: int, **more: Any) -> Ipv4:
    return Ipv4(**{"src": "10.0.0.1", "dst": "10.0.0.2", "ttl": 64, "length": length, "df": False, "tos": 0, **more})


def v6(length: int, **more: Any) -> Ipv6:
    return Ipv6(**{"src": "fd00::1", "dst": "fd00::2", "ttl": 64, "length": length, "tos": 0, **more})


UDP_LAYER, UDP_HEADER = UDP(sport=40000, dport=53), Udp(40000, 53)
CASES: list[tuple[str, Any, Headers]] = [
    ("udp", ETHER / V4 / UDP_LAYER / LOAD, (ETHERNET, v4(40), UDP_HEADER)),
    ("udp over ipv6", ETHER / V6 / UDP_LAYER / LOAD, (ETHERNET, v6(60), UDP_HEADER)),
    (
        "ttl, tos, df",
        ETHER / IP(src="10.0.0.1", dst="10.0.0.2", ttl=3, tos=0xB8, flags="DF") / UDP_LAYER / LOAD,
        (ETHERNET, v4(40, ttl=3, tos=0xB8, df=True), UDP_HEADER),
    ),
    (
        "ipv4 options",
        ETHER / IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption(b"\x94\x04\0\0"), IPOption(b"\x01")]) / UDP_LAYER / LOAD,
        (ETHERNET, v4(48), UDP_HEADER),
    ),
    (
        "first fragment",
        ETHER / IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / UDP_LAYER / LOAD,
        (ETHERNET, v4(40, fragment=True), UDP_HEADER),
    ),
    ("later fragment", ETHER / IP(src="10.0.0.1", dst="10.0.0.2", frag=5, proto=17) / LOAD, (ETHERNET, v4(32, fragment=True))),
    ("vlan", ETHER / Dot1Q(vlan=100) / V4 / UDP_LAYER / LOAD, (ETHERNET, Vlan(100), v4(40), UDP_HEADER)),
    (
        "qinq",
        ETHER / Dot1AD(vlan=7, type=0x8100) / Dot1Q(vlan=100) / V4 / UDP_LAYER / LOAD,
        (ETHERNET, Vlan(7, 0x88A8), Vlan(100), v4(40), UDP_HEADER),
    ),
    (
        "ipv6 extensions",
        ETHER / V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(m=1) / UDP_LAYER / LOAD,
        (ETHERNET, v6(84, extensions=(0, 60, 44)), UDP_HEADER),
    ),
    ("ipv6 later fragment", ETHER / V6 / IPv6ExtHdrFragment(offset=4, nh=17) / LOAD, (ETHERNET, v6(60, extensions=(44,)))),
    (
        "syn",
        ETHER / V4 / TCP(sport=1, dport=2, flags="S", seq=0xFFFFFFF0),
        (ETHERNET, v4(40), Tcp(1, 2, "S", 0xFFFFFFF0)),
    ),
    (
        "syn-ack",
        ETHER / V6 / TCP(sport=2, dport=1, flags="SA", seq=9, ack=10),
        (ETHERNET, v6(60), Tcp(2, 1, "SA", 9, 10)),
    ),
    ("echo", ETHER / V4 / ICMP(id=5, seq=6) / LOAD, (ETHERNET, v4(40), Icmp(8, 0, 5, 6))),
    ("echo over ipv6", ETHER / V6 / ICMPv6EchoRequest(id=5, seq=6, data=LOAD), (ETHERNET, v6(60), Icmpv6(128, 0, 5, 6))),
    (
        "icmp error",
        ETHER / V4 / ICMP(type=3, code=3) / IP(src="10.0.0.2", dst="10.0.0.1") / UDP_LAYER / LOAD,
        (ETHERNET, v4(68), Icmp(3, 3), v4(40, src="10.0.0.2", dst="10.0.0.1"), UDP_HEADER),
    ),
    (
        "icmpv6 error",
        ETHER / V6 / ICMPv6DestUnreach(code=4) / V6 / UDP_LAYER / LOAD,
        (ETHERNET, v6(108), Icmpv6(1, 4), v6(60), UDP_HEADER),
    ),
    (
        "vxlan",
        ETHER / V4 / UDP(sport=1234, dport=4789) / VXLAN(vni=42, flags=8) / ETHER / V6 / UDP_LAYER / LOAD,
        (ETHERNET, v4(110), Udp(1234, 4789), VxlanHeader(42), ETHERNET, v6(60), UDP_HEADER),
    ),
    ("ipip", ETHER / V4 / V4 / UDP_LAYER / LOAD, (ETHERNET, v4(60), v4(40), UDP_HEADER)),
    ("sit", ETHER / V4 / V6 / UDP_LAYER / LOAD, (ETHERNET, v4(80), v6(60), UDP_HEADER)),
    ("ip6ip6", ETHER / V6 / V6 / UDP_LAYER / LOAD, (ETHERNET, v6(100), v6(60), UDP_HEADER)),
    (
        "ip in udp",
        ETHER / V4 / UDP(sport=8285, dport=8285) / V4 / UDP_LAYER / LOAD,
        (ETHERNET, v4(68), Udp(8285, 8285), v4(40), UDP_HEADER),
    ),
    (
        "sleeve",
        ETHER / V4 / UDP(sport=6783, dport=6783) / (b"sender" + b"origin" + b"target" + b"\0\x36") / ETHER / V4 / UDP_LAYER / LOAD,
        (ETHERNET, v4(102), Udp(6783, 6783), Opaque("sleeve", 20), ETHERNET, v4(40), UDP_HEADER),
    ),
]


@pytest.mark.parametrize(("packet", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_scapy_packets(packet: Any, expected: Headers) -> None:
    data = bytes(packet)
    headers, ip_length = parse(data, -1, 0, PORTS)
    assert headers == expected
    assert ip_length == len(data) - 14 - 4 * sum(isinstance(header, Vlan) for header in expected)
    # From the network header on, with and without the link-layer header before it.
    (protocol,) = (int.from_bytes(data[12:14], "big"),)
    assert parse(data, 14, protocol, PORTS) == (expected, ip_length)
    assert parse(data[14:], 0, protocol, PORTS) == (expected[1:], ip_length)


@pytest.mark.parametrize("packet", [case[1] for case in CASES], ids=[case[0] for case in CASES])
def test_every_cut_gives_the_headers_that_are_whole(packet: Any) -> None:
    data = bytes(packet)
    whole, _ = parse(data, -1, 0, PORTS)
    for length in range(len(data)):
        headers, _ = parse(data[:length], -1, 0, PORTS)
        assert len(headers) <= len(whole)
        kinds = [type(header) for header in headers]
        assert kinds == [type(header) for header in whole][: len(kinds)]


@given(
    data=st.binary(max_size=200),
    l3=st.integers(-1, 64),
    protocol=st.sampled_from([0, 0x0800, 0x86DD, 0x8100, 0x88A8, 0x0806, 0xFFFF]),
)
@settings(max_examples=300)
def test_anything_is_survived(data: bytes, l3: int, protocol: int) -> None:
    headers, ip_length = parse(data, l3, protocol, PORTS)
    assert len(headers) <= 64
    assert ip_length >= 0


@given(case=st.sampled_from(CASES), changes=st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=8))
@settings(max_examples=300)
def test_damaged_packets_are_survived(case: tuple[str, Any, Headers], changes: list[tuple[int, int]]) -> None:
    data = bytearray(bytes(case[1]))
    for position, value in changes:
        data[position % len(data)] = value
    headers, _ = parse(bytes(data), -1, 0, PORTS)
    assert headers[:1] and isinstance(headers[0], Ethernet)
