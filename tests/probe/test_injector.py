"""Probes leave from inside the source namespace, through its own stack, and look as asked."""

from __future__ import annotations

import errno
import secrets
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from netpath.errors import NetpathError, UsageError
from netpath.model import nonce as layout
from netpath.probe.injector import Injector, UnreachableError
from netpath.probe.messages import Enter
from tests.netns import Netns, veth_pair

pytestmark = pytest.mark.root

NONCE = 0x0123456789ABCDEF
ETH_P_ALL = 3


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Netns, Netns]]:
    with veth_pair() as made:
        yield made


@pytest.fixture
def injector() -> Iterator[Injector]:
    with Injector() as made:
        yield made


def sniffer(netns: Netns, device: str) -> socket.socket:
    def open_() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        sock.bind((device, ETH_P_ALL))
        sock.settimeout(5)
        return sock

    return netns.call(open_)


def captured(sock: socket.socket, wanted: bytes) -> bytes:
    """The first incoming IP packet that contains `wanted`."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        data, address = sock.recvfrom(65535)
        if wanted in data and address[2] != socket.PACKET_OUTGOING:
            return data
    raise AssertionError("the probe was not seen")


@pytest.mark.parametrize(("family", "dst", "src"), [(4, "10.9.0.2", "10.9.0.1"), (6, "fd09::2", "fd09::1")])
def test_udp_reaches_a_socket_from_the_kernels_own_source(
    pair: tuple[Netns, Netns], injector: Injector, family: int, dst: str, src: str
) -> None:
    a, b = pair
    with b.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as receiver:
        receiver.bind((dst, 0))
        receiver.settimeout(5)
        port = receiver.getsockname()[1]
        entered = injector.enter(Enter(a.path, "udp", dst, NONCE, dport=port, size=100))
        assert entered.source == src
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        (sent,) = injector.send(7)
        data, address = receiver.recvfrom(2000)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        assert (address[0], address[1]) == (src, entered.sport)
        assert len(data) == 100 and layout.unpack(data) == (NONCE, 7)
        assert sent.error == 0 and before <= sent.time_ns <= after
        receiver.sendto(data, address)
        deadline = time.monotonic() + 5
        while not injector.answers and time.monotonic() < deadline:
            injector.poll()
        assert [answer.sequence for answer in injector.answers] == [7]
        assert injector.answers[0].time_ns > after


def test_probes_of_a_batch_follow_one_another_each_with_its_own_time(pair: tuple[Netns, Netns], injector: Injector) -> None:
    a, b = pair
    with b.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("10.9.0.2", 0))
        receiver.settimeout(5)
        injector.enter(Enter(a.path, "udp", "10.9.0.2", NONCE, dport=receiver.getsockname()[1]))
        shots = injector.send(4, 5, 6, size=30)
        assert [layout.unpack(receiver.recv(2000)) for _ in shots] == [(NONCE, 4), (NONCE, 5), (NONCE, 6)]
    assert [(shot.sequence, shot.error) for shot in shots] == [(4, 0), (5, 0), (6, 0)]
    assert shots[0].time_ns < shots[1].time_ns < shots[2].time_ns


def test_ttl_df_and_source_port_are_as_asked(pair: tuple[Netns, Netns], injector: Injector) -> None:
    a, b = pair
    with sniffer(b, "b0") as capture:
        injector.enter(Enter(a.path, "udp", "10.9.0.2", NONCE, dport=9, sport=40123, ttl=3, df=True))
        injector.send(1)
        packet = IP(captured(capture, NONCE.to_bytes(8, "big")))
        assert (packet.ttl, str(packet.flags), packet.sport, packet.dport, packet.len) == (3, "DF", 40123, 9, 92)
    with Injector() as other, sniffer(b, "b0") as capture:
        other.enter(Enter(a.path, "udp", "10.9.0.2", NONCE, dport=9))
        other.send(1)
        packet = IP(captured(capture, NONCE.to_bytes(8, "big")))
        assert (packet.ttl, str(packet.flags)) == (64, "")


@pytest.mark.parametrize(("dst", "src"), [("10.9.0.2", "10.9.0.1"), ("fd09::2", "fd09::1")])
def test_a_syn_carries_its_number_and_a_right_checksum(pair: tuple[Netns, Netns], injector: Injector, dst: str, src: str) -> None:
    a, b = pair
    base = secrets.randbelow(2**31)
    number = layout.tcp_sequence(base, 3)
    with sniffer(b, "b0") as capture:
        entered = injector.enter(Enter(a.path, "tcp", dst, NONCE, dport=81, tcp_base=base))
        injector.send(3)
        raw = captured(capture, struct.pack(">I", number))
        packet = (IPv6 if ":" in dst else IP)(raw)
        segment = packet[TCP]
        assert (packet.src, segment.sport, segment.dport, segment.seq, str(segment.flags)) == (src, entered.sport, 81, number, "S")
        claimed = segment.chksum
        del segment.chksum
        rebuilt = (IPv6 if ":" in dst else IP)(bytes(packet))
        assert rebuilt[TCP].chksum == claimed


@pytest.mark.parametrize("dst", ["10.9.0.2", "fd09::2"])
def test_an_echo_is_answered(pair: tuple[Netns, Netns], injector: Injector, dst: str) -> None:
    a, _ = pair
    injector.enter(Enter(a.path, "icmp", dst, NONCE, identifier=4711, size=64))
    for number in (1, 2):
        assert injector.send(number)[0].error == 0
    deadline = time.monotonic() + 5
    while len(injector.answers) < 2 and time.monotonic() < deadline:
        injector.poll()
    assert [answer.sequence for answer in injector.answers] == [1, 2]


def test_a_probe_that_does_not_fit_is_refused_not_fragmented(pair: tuple[Netns, Netns], injector: Injector) -> None:
    a, _ = pair
    injector.enter(Enter(a.path, "udp", "10.9.0.2", NONCE, dport=9, size=1473, df=True))
    assert injector.send(1)[0].error == errno.EMSGSIZE


def test_no_route_a_blackhole_and_a_prohibition_are_told_apart(pair: tuple[Netns, Netns]) -> None:
    a, _ = pair
    a.batch("route add blackhole 10.77.0.0/16", "route add prohibit 10.78.0.0/16")
    for dst, code in (("10.99.0.1", errno.ENETUNREACH), ("10.77.0.1", errno.EINVAL), ("10.78.0.1", errno.EACCES)):
        with Injector() as injector, pytest.raises(NetpathError) as raised:
            injector.enter(Enter(a.path, "udp", dst, NONCE, dport=9))
        assert isinstance(raised.value, UnreachableError) and raised.value.code == code, dst


def test_a_taken_port_and_a_foreign_address_are_the_users_mistakes(pair: tuple[Netns, Netns]) -> None:
    a, _ = pair
    with a.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        with Injector() as injector, pytest.raises(UsageError, match=f"source port {port} is in use"):
            injector.enter(Enter(a.path, "udp", "10.9.0.2", NONCE, dport=9, sport=port))
    with Injector() as injector, pytest.raises(UsageError, match=r"10\.9\.0\.77 is not an address"):
        injector.enter(Enter(a.path, "udp", "10.9.0.2", NONCE, dport=9, src="10.9.0.77"))


def test_a_namespace_that_is_gone(injector: Injector) -> None:
    with pytest.raises(NetpathError, match="is gone"):
        injector.enter(Enter("/run/netns/npt-never", "udp", "10.9.0.2", NONCE, dport=9))


def test_the_sender_ends_with_its_parent() -> None:
    injector = Injector()
    process = injector._process
    injector._channel.close()
    assert process.wait(timeout=5) == 0


@pytest.mark.parametrize("protocol", ["udp", "tcp", "icmp"])
def test_a_fresh_flow_for_every_probe(pair: tuple[Netns, Netns], injector: Injector, protocol: str) -> None:
    a, b = pair
    entered = injector.enter(
        Enter(a.path, protocol, "10.9.0.2", NONCE, dport=None if protocol == "icmp" else 4433, tcp_base=1000, identifier=77)
    )
    at = {"udp": (20, 22), "tcp": (20, 22), "icmp": (24, 26)}[protocol]  # source port, or identifier, behind an IPv4 header
    seen = []
    with sniffer(b, "b0") as sock:
        for number in range(1, 6):
            assert injector.send(number, size=30 + number, fresh=True)[0].error == 0
            wanted = layout.tcp_sequence(1000, number).to_bytes(4, "big") if protocol == "tcp" else layout.HEAD.pack(NONCE, number)
            packet = captured(sock, wanted)
            seen.append(int.from_bytes(packet[slice(*at)], "big"))
            if protocol != "tcp":
                assert len(packet) == 28 + 30 + number
        assert injector.send(6)[0].error == 0
    assert len(set(seen)) == 5 and entered.sport not in seen and (protocol != "icmp" or 77 not in seen)
