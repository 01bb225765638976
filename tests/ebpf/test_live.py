"""Real packets through real devices: every field of what the probes report, and that nothing of them stays."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN

from netpath.ebpf import programs
from netpath.ebpf import sys as bpf
from netpath.ebpf.headers import parse
from netpath.ebpf.providers import DEVICES
from netpath.ebpf.ring import Lines, Ring
from netpath.ebpf.tracer import Tracer
from netpath.errors import MissingError
from netpath.model import nonce as layout
from netpath.model.event import Boundary, Event
from netpath.model.packet import Ethernet, Icmp, Icmpv6, Ipv4, Tcp, Udp
from tests.netns import Netns, run, veth_pair

pytestmark = [pytest.mark.root, pytest.mark.ebpf]
PORTS = {4789: "vxlan", 8285: "ip"}
DEADLINE = 10.0


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Netns, Netns]]:
    with veth_pair() as (a, b):
        # Neighbours are known, so that nothing but the probes moves.
        for one, device, other, peer, number in ((a, "a0", b, "b0", 2), (b, "b0", a, "a0", 1)):
            mac = other.ip("-br", "link", "show", peer).split()[2]
            one.batch(*(f"neigh replace {ip}{number} lladdr {mac} dev {device} nud permanent" for ip in ("10.9.0.", "fd09::")))
        yield a, b


@contextmanager
def armed(*, count: int = 9, ring_bytes: int = 1 << 20, **options: Any) -> Iterator[tuple[Tracer, int]]:
    nonce = layout.new_nonce()
    with Tracer(ring_bytes=ring_bytes) as tracer:
        tracer.load()
        tracer.arm(nonce, count=count, tunnel_ports=options.pop("tunnel_ports", PORTS), **options)
        yield tracer, nonce


def deliver(pair: tuple[Netns, Netns], nonce: int, sequences: Iterable[int]) -> None:
    """Datagrams with the mark from one namespace to a socket in the other, each received before the next is sent."""
    a, b = pair
    with a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, b.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("10.9.0.2", 0))
        receiver.settimeout(DEADLINE)
        for sequence in sequences:
            sender.sendto(layout.pack(nonce, sequence, 64), receiver.getsockname())
            receiver.recv(100)


def until(tracer: Tracer, enough: Callable[[Sequence[Event]], bool]) -> list[Event]:
    """Drain until `enough`; fails at the deadline with what was seen."""
    events: list[Event] = []
    end = time.monotonic() + DEADLINE
    while not enough(events):
        assert time.monotonic() < end, "\n".join(map(repr, events)) or "nothing was seen"
        events += tracer.drain()
    return events + tracer.drain()


def name_of(event: Event) -> str:
    """The device of an event, by what iproute2 says of the namespace it happened in."""
    for path in Path("/run/netns").iterdir():
        if path.name.startswith("npt") and path.exists() and path.stat().st_ino == event.netns:
            links = json.loads(run("ip", "-j", "-n", path.name, "link"))
            return next((link["ifname"] for link in links if link["ifindex"] == event.ifindex), "?")
    return "?"


def steps(events: Sequence[Event]) -> list[tuple[str, str, str]]:
    return [(event.hook, name_of(event), event.role) for event in sorted(events, key=lambda event: event.time_ns)]


def of(events: Sequence[Event], kind: type) -> Any:
    (event,) = events[:1]
    return next(header for header in event.headers if isinstance(header, kind))


def device(netns: Netns, name: str) -> tuple[int, int]:
    return netns.inode, int(netns.ip("-o", "link", "show", name).split(":")[0])


def test_udp_to_a_closed_port_is_dropped_with_its_reason(pair: tuple[Netns, Netns]) -> None:
    a, b = pair
    with armed() as (tracer, nonce), a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        sender.sendto(layout.pack(nonce, 3, 40), ("10.9.0.2", 9))
        port = sender.getsockname()[1]
        events = until(tracer, lambda seen: any(event.hook == "drop" and event.role == "probe" for event in seen))
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    there = [event for event in events if event.role == "probe"]
    assert steps(there) == [("tx", "a0", "probe"), ("rx", "b0", "probe"), ("drop", "b0", "probe")]
    tx, rx, drop = there
    assert (tx.netns, tx.ifindex) == device(a, "a0")
    assert (rx.netns, rx.ifindex) == device(b, "b0")
    assert drop.netns == b.inode
    assert drop.reason == "NO_SOCKET"
    for event in (tx, rx):
        assert (event.sequence, event.length, event.ip_length) == (3, 82, 68)
        assert event.headers[0] == Ethernet(
            src=a.ip("-br", "link", "show", "a0").split()[2], dst=b.ip("-br", "link", "show", "b0").split()[2]
        )
        assert event.headers[2] == Udp(port, 9)
        ip = of([event], Ipv4)
        assert (ip.src, ip.dst, ip.ttl, ip.length) == ("10.9.0.1", "10.9.0.2", 64, 68)
    assert tx.skb == rx.skb == drop.skb
    assert before <= tx.time_ns < rx.time_ns < drop.time_ns <= after
    # The port unreachable that came back quotes the probe.
    errors = [event for event in events if event.role == "error" and event.hook in ("tx", "rx")]
    assert steps(errors) == [("tx", "b0", "error"), ("rx", "a0", "error")]
    assert of(errors, Icmp) == Icmp(3, 3)
    assert {event.sequence for event in events} == {3}


@pytest.mark.parametrize("provider", [each.name for each in DEVICES])
def test_with_a_common_size_the_end_of_a_packet_decides(pair: tuple[Netns, Netns], provider: str) -> None:
    """Probes of the size that was armed are seen, and what quotes them; a longer datagram with the same mark is another's."""
    a, b = pair
    nonce = layout.new_nonce()
    with Tracer(hooks=[provider]) as tracer, a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        tracer.load()
        assert tracer.providers[0] == provider
        tracer.arm(nonce, count=9, tunnel_ports=PORTS, payload=40, listen_in=[b.path])
        tracer.self_check()
        sender.sendto(layout.pack(nonce, 1, 41), ("10.9.0.2", 9))
        sender.sendto(layout.pack(nonce, 2, 40), ("10.9.0.2", 9))
        events = until(tracer, lambda seen: any(event.role == "error" and event.hook == "rx" for event in seen))
    assert {event.sequence for event in events} == {2}
    assert {event.hook for event in events if event.role == "probe"} == {"tx", "rx", "local_in", "drop"}


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "10.9.0.2"), (socket.AF_INET6, "fd09::2")])
def test_delivery_is_seen_at_local_in_and_at_the_socket(pair: tuple[Netns, Netns], family: int, address: str) -> None:
    a, b = pair
    with (
        armed(listen_in=[a.path, b.path]) as (tracer, nonce),
        a.socket(family, socket.SOCK_DGRAM) as sender,
        b.socket(family, socket.SOCK_DGRAM) as receiver,
    ):
        assert tracer.missing_hooks == ()
        receiver.bind((address, 0))
        sender.sendto(layout.pack(nonce, 0, 12), (address, receiver.getsockname()[1]))
        expected = ["local_out", "tx", "rx", "local_in"] + ["socket"] * ("socket" in tracer.hooks)
        events = until(tracer, lambda seen: len(seen) >= len(expected))
        assert [event.hook for event in events] == expected
        assert [event.netns for event in events] == [a.inode, a.inode, b.inode, b.inode, b.inode][: len(expected)]
        assert {event.ip_length for event in events} == {40 if family == socket.AF_INET else 60}
        assert receiver.recv(100) == layout.pack(nonce, 0, 12)


def test_echo_and_its_answer(pair: tuple[Netns, Netns]) -> None:
    a, _ = pair
    for kind, family, number, address in (
        (Icmp, socket.AF_INET, socket.IPPROTO_ICMP, "10.9.0.2"),
        (Icmpv6, socket.AF_INET6, socket.IPPROTO_ICMPV6, "fd09::2"),
    ):
        with armed() as (tracer, nonce), a.socket(family, socket.SOCK_RAW, number) as sender:
            body = layout.pack(nonce, 4, 20)
            request = bytes(ICMP(id=77, seq=4) / body) if kind is Icmp else struct.pack(">BBHHH", 128, 0, 0, 77, 4) + body
            sender.sendto(request, (address, 0))
            events = until(tracer, lambda seen: ("rx", "a0", "answer") in steps(seen))
        hops = [event for event in events if event.hook in ("tx", "rx")]
        assert steps(hops) == [("tx", "a0", "probe"), ("rx", "b0", "probe"), ("tx", "b0", "answer"), ("rx", "a0", "answer")]
        assert of(hops[:1], kind) == kind(8 if kind is Icmp else 128, 0, 77, 4)
        assert of(hops[2:], kind) == kind(0 if kind is Icmp else 129, 0, 77, 4)


def frame(a: Netns, b: Netns) -> Any:
    return Ether(src=a.ip("-br", "link", "show", "a0").split()[2], dst=b.ip("-br", "link", "show", "b0").split()[2])


def inject(netns: Netns, name: str, data: bytes) -> None:
    with netns.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((name, 0))
        sender.send(data)


def test_a_syn_by_its_number_and_the_answer_by_its_acknowledgement(pair: tuple[Netns, Netns]) -> None:
    a, b = pair
    base = 0xFFFFFFF0  # wraps between the probes
    with armed(tcp_base=base) as (tracer, _):
        for sequence, number in ((2, layout.tcp_sequence(base, 2)), (0, base + 1)):  # the second one is nobody's probe
            packet = frame(a, b) / IP(src="10.9.0.1", dst="10.9.0.2") / TCP(sport=5000 + sequence, dport=81, seq=number)
            inject(a, "a0", bytes(packet))
        events = until(tracer, lambda seen: ("rx", "a0", "answer") in steps(seen))
    hops = [event for event in events if event.hook in ("tx", "rx")]
    assert steps(hops)[:4] == [("tx", "a0", "probe"), ("rx", "b0", "probe"), ("tx", "b0", "answer"), ("rx", "a0", "answer")]
    assert {event.sequence for event in hops} == {2}
    answer = of(hops[2:], Tcp)
    assert (answer.flags, answer.ack) == ("RA", layout.tcp_sequence(base, 2) + 1)


V4, V6 = IP(src="10.9.0.1", dst="10.9.0.77"), IPv6(src="fd09::1", dst="fd09::77")
DATAGRAM = UDP(sport=40000, dport=9)
STACKS: Mapping[str, Any] = {
    "qinq": Dot1AD(vlan=7, type=0x8100) / Dot1Q(vlan=100) / V4 / DATAGRAM,
    "priority tag": Dot1Q(vlan=0, prio=5) / V4 / DATAGRAM,
    "ipv4 options": IP(src="10.9.0.1", dst="10.9.0.77", options=[IPOption(b"\x01")] * 37) / DATAGRAM,
    "ipv6 extensions": V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(m=1) / DATAGRAM,
    "ipip": V4 / V4 / DATAGRAM,
    "sit": V4 / V6 / DATAGRAM,
    "ip6ip6": V6 / V6 / DATAGRAM,
    "ip in udp": V4 / UDP(sport=8285, dport=8285) / V4 / DATAGRAM,
    "vxlan": V4 / UDP(sport=9, dport=4789) / VXLAN(vni=42, flags=8) / Ether(src="02::1", dst="02::2") / V4 / DATAGRAM,
    "vxlan, tagged inside and outside": Dot1Q(vlan=9)
    / V6
    / UDP(sport=9, dport=4789)
    / VXLAN(vni=42, flags=8)
    / Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    / Dot1Q(vlan=10)
    / V6
    / DATAGRAM,
    "quoted in an ipv6 error": V6 / ICMPv6DestUnreach() / V6 / DATAGRAM,
    "quoted in an error in ipip": V4 / V4 / ICMP(type=11) / V4 / DATAGRAM,
}
del STACKS["vxlan"][Ether].src, STACKS["vxlan"][Ether].dst


@pytest.mark.parametrize("name", STACKS)
def test_the_mark_is_found_in_any_stack(pair: tuple[Netns, Netns], name: str) -> None:
    a, b = pair
    with armed() as (tracer, nonce):
        data = bytes(frame(a, b) / STACKS[name] / layout.pack(nonce, 5, 12))
        inject(a, "a0", data)
        events = until(tracer, lambda seen: {"tx", "rx"} <= {event.hook for event in seen})
    expected, ip_length = parse(data, -1, 0, PORTS)
    hops = [event for event in events if event.hook in ("tx", "rx")]
    assert [(event.hook, name_of(event)) for event in hops] == [("tx", "a0"), ("rx", "b0")]
    for event in hops:
        assert (event.headers, event.length, event.ip_length) == (expected, len(data), ip_length)
        assert (event.sequence, event.role) == (5, "error" if "quoted" in name else "probe")


@pytest.mark.parametrize("tags", [Dot1Q(vlan=100), Dot1AD(vlan=7, type=0x8100) / Dot1Q(vlan=100), Dot1Q(vlan=0, prio=5)])
def test_a_tag_that_the_kernel_carries_beside_the_packet(tags: Any) -> None:
    """On reception the kernel takes the outer tag out of the frame; a bridge hands it on beside it (net/core/dev.c)."""
    with veth_pair() as (a, b):
        b.batch(
            "link add br0 type bridge",
            "link add c0 type veth peer name c1",
            *(f"link set {name} master br0" for name in ("b0", "c0")),
            *(f"link set {name} up" for name in ("c1", "c0", "br0")),
        )
        with armed() as (tracer, nonce):
            data = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:99") / tags / V4 / DATAGRAM / layout.pack(nonce, 1, 12))
            inject(a, "a0", data)
            events = until(tracer, lambda seen: ("rx", "c1", "probe") in steps(seen))
        hops = [event for event in events if event.hook in ("tx", "rx")]
        ports = [step for step in steps(hops) if step[1] != "br0"]
        assert ports == [("tx", "a0", "probe"), ("rx", "b0", "probe"), ("tx", "c0", "probe"), ("rx", "c1", "probe")]
        expected, ip_length = parse(data, -1, 0, PORTS)
        for event in hops:
            if name_of(event) != "br0":
                assert (event.headers, event.length, event.ip_length) == (expected, len(data), ip_length), name_of(event)


def test_what_does_not_fit_is_counted(pair: tuple[Netns, Netns]) -> None:
    a, _ = pair
    with armed(ring_bytes=4096, count=300) as (tracer, nonce), a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for sequence in range(300):
            with contextlib.suppress(ConnectionRefusedError):
                sender.sendto(layout.pack(nonce, sequence, 12), ("10.9.0.2", 9))
        received = tracer.drain()
        assert 0 < len(received) < 300
        assert tracer.lost > 0
        assert len(received) + tracer.lost == tracer.generated
        assert tracer.generated >= 3 * 300


def test_in_brief_what_devices_saw_has_no_headers(pair: tuple[Netns, Netns]) -> None:
    with armed(count=9) as (tracer, nonce):
        deliver(pair, nonce, [1])
        tracer.drain()
        deliver(pair, nonce, [2])
        events = {event.hook: event for event in tracer.drain(brief=True)}
    assert {"tx", "rx", "socket"} <= events.keys()
    assert all(event.sequence == 2 and event.netns and event.cost_ns > 0 for event in events.values())
    assert events["tx"].headers == events["rx"].headers == ()
    assert [type(header).__name__ for header in events["socket"].headers][-2:] == ["Ipv4", "Udp"]


def test_one_record_in_four_says_for_its_place_what_it_cost(pair: tuple[Netns, Netns]) -> None:
    with armed(count=300) as (tracer, nonce):
        assert tracer._kit is not None
        unpack = tracer._kit.event.unpack
        size = tracer._kit.event.struct.size
        deliver(pair, nonce, range(1, 20))
        loud = tracer.take()
        assert all(unpack(raw.ljust(size, b"\0"))["left"] for raw in loud)
        before, _ = tracer.decoded(loud)
        tracer.spare()
        deliver(pair, nonce, range(20, 300))
        spared = tracer.take()
        said = [bool(unpack(raw.ljust(size, b"\0"))["left"]) for raw in spared]
        assert 0.15 < sum(said) / len(said) < 0.35
        events, _ = tracer.decoded(spared)
    told: dict[str, list[int]] = {hook: [event.cost_ns for event in before if event.hook == hook] for hook in ("tx", "rx")}
    for event, spoke in zip(events, said, strict=True):
        if event.hook in told:
            lately = sorted(told[event.hook][-9:])
            if spoke:
                told[event.hook].append(event.cost_ns)
            else:
                assert event.cost_ns == lately[len(lately) // 2] > 0


def test_a_reader_that_is_ahead_of_what_a_program_saw_leaves_room(pair: tuple[Netns, Netns]) -> None:
    """A program looks at the head, others write, all of it is read, and then it looks at the tail."""
    a, _ = pair
    with armed(count=300) as (tracer, nonce), a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        assert tracer._kit is not None
        if not isinstance(tracer._kit.ring, Lines):
            pytest.skip("before 6.2 the buffer is the kernel's")
        tracer.drain()
        words = tracer._kit.ring._words
        read = words[8]
        words[8] = words[0] + 1000
        sender.sendto(layout.pack(nonce, 1, 12), ("10.9.0.2", 9))
        words[8] = read
        assert tracer.lost == 0
        assert {"tx", "rx"} <= {event.hook for event in tracer.drain()}


def test_two_runs_at_once_see_only_their_own(pair: tuple[Netns, Netns]) -> None:
    a, _ = pair
    with (
        armed() as (one, first),
        armed() as (two, second),
        a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        for nonce, sequence in ((first, 1), (second, 2), (first, 3)):
            sender.sendto(layout.pack(nonce, sequence, 12), ("10.9.0.2", 9))
        seen = [
            until(tracer, lambda events, last=last: any(e.sequence == last and e.hook == "drop" for e in events))  # type: ignore[misc]
            for tracer, last in ((one, 3), (two, 2))
        ]
    assert [{event.sequence for event in events} for events in seen] == [{1, 3}, {2}]


def test_two_runs_at_once_both_see_a_delivery(pair: tuple[Netns, Netns]) -> None:
    """Of an echo, which no socket of ours receives: the hooks of both runs are at LOCAL_IN of one namespace."""
    a, b = pair
    places = [a.path, b.path]
    with armed(listen_in=places) as (one, first), armed(listen_in=places) as (two, second):
        for tracer, nonce in ((two, second), (one, first)):
            with a.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sender:
                sender.sendto(bytes(ICMP(id=78, seq=1) / layout.pack(nonce, 1, 20)), ("10.9.0.2", 0))
            seen = until(tracer, lambda events: any(e.hook == "local_in" and e.netns == b.inode for e in events))
            assert any(event.hook == "local_out" and event.netns == a.inode for event in seen)


def test_numbers_beyond_the_last_are_foreign(pair: tuple[Netns, Netns]) -> None:
    a, _ = pair
    with armed(count=3) as (tracer, nonce), a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for sequence in (9, 2**32 - 1, 3):
            sender.sendto(layout.pack(nonce, sequence, 12), ("10.9.0.2", 9))
        sender.sendto(layout.pack(nonce ^ 1 << 63, 1, 12), ("10.9.0.2", 9))
        events = until(tracer, lambda seen: any(event.hook == "drop" for event in seen))
    assert {event.sequence for event in events} == {3}


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
    )


class Flood:
    """Sends one frame over and over from a thread (the system call runs without Python's lock)."""

    BATCH = 1024

    def __init__(self, netns: Netns, name: str, data: bytes) -> None:
        self._socket = netns.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind((name, 0))
        self._data = ctypes.create_string_buffer(data, len(data))
        self._vector = _Iovec(ctypes.addressof(self._data), len(data))
        self._messages = (_Message * self.BATCH)()
        for message in self._messages:
            message.vectors, message.vector_count = ctypes.addressof(self._vector), 1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        libc = ctypes.CDLL(None)
        while not self._stop.is_set():
            libc.sendmmsg(self._socket.fileno(), self._messages, self.BATCH, 0)

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


def received(netns: Netns, name: str) -> int:
    return int(netns.call(lambda: Path("/proc/thread-self/net/dev").read_text()).partition(f"{name}:")[2].split()[1])


def test_a_hundred_thousand_foreign_packets_a_second(pair: tuple[Netns, Netns]) -> None:
    a, b = pair
    window = 0.25  # s: so much for the probes to come through, at that rate
    # For another station: past the drivers and the hooks, the kernel has little to do with it.
    foreign = bytes(Ether(dst="02:00:00:00:00:77") / IP(src="10.9.0.1", dst="10.9.0.77") / DATAGRAM / (b"\xff" * 64))
    with (
        armed(count=10_000) as (tracer, nonce),
        Flood(a, "a0", foreign),
        a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        b.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        receiver.settimeout(DEADLINE)
        receiver.bind(("10.9.0.2", 0))
        events: list[Event] = []
        rates: list[float] = []
        count, end = 0, time.monotonic() + DEADLINE
        while max(rates, default=0) < 100_000:  # the machine may have something else to do in some of them
            assert time.monotonic() < end, f"packets a second: {rates}"
            began, packets = time.monotonic(), received(b, "b0")
            while time.monotonic() < began + window:
                sender.sendto(layout.pack(nonce, count, 64), receiver.getsockname())
                receiver.recv(100)
                count += 1
                events += tracer.drain()
                time.sleep(0.001)  # the flood needs the interpreter, too
            rates.append((received(b, "b0") - packets) / (time.monotonic() - began))
        events += tracer.drain()
        assert tracer.lost == 0
        assert tracer.generated == len(events)
    hooks = ("tx", "rx", "socket")
    assert {event.hook for event in events} <= {*hooks, "drop"}
    for hook in hooks[:2]:
        assert [event.sequence for event in events if event.hook == hook] == list(range(count))
    assert all(of([event], Udp).dport != DATAGRAM.dport for event in events)


def objects(pid: int) -> dict[int, set[int]]:
    """The ids of the eBPF programs, maps and links that a process holds, by the command that lists such ids."""
    found: dict[int, set[int]] = {bpf.PROG_GET_NEXT_ID: set(), bpf.MAP_GET_NEXT_ID: set(), bpf.LINK_GET_NEXT_ID: set()}
    words = {"prog_id:": bpf.PROG_GET_NEXT_ID, "map_id:": bpf.MAP_GET_NEXT_ID, "link_id:": bpf.LINK_GET_NEXT_ID}
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            for line in info.read_text().splitlines():
                word, _, number = line.partition("\t")
                if word in words:
                    found[words[word]].add(int(number))
    return found


def gone(held: Mapping[int, set[int]]) -> bool:
    return not any(bpf.ids(command) & ids for command, ids in held.items())


def test_closing_leaves_nothing(pair: tuple[Netns, Netns]) -> None:
    a, b = pair
    before = objects(os.getpid())
    with armed(listen_in=[a.path, b.path]):
        held = {command: ids - before[command] for command, ids in objects(os.getpid()).items()}
        assert len(held[bpf.PROG_GET_NEXT_ID]) == 8
        assert len(held[bpf.MAP_GET_NEXT_ID]) == 5
        assert len(held[bpf.LINK_GET_NEXT_ID]) >= 5 + 8
        assert not gone(held)
    assert objects(os.getpid()) == before
    wait_gone(held)


def wait_gone(held: Mapping[int, set[int]]) -> None:
    end = time.monotonic() + DEADLINE
    while not gone(held):
        assert time.monotonic() < end, f"still there: {held}"


CHILD = """
import sys
from netpath.ebpf.tracer import Tracer
with Tracer() as tracer:
    tracer.load()
    tracer.arm(1, count=1, tunnel_ports={4789: "vxlan"}, listen_in=sys.argv[1:])
    print("armed", flush=True)
    sys.stdin.read()
"""


def test_a_kill_leaves_nothing(pair: tuple[Netns, Netns]) -> None:
    a, b = pair
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", CHILD, a.path, b.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"armed\n"
            held = objects(child.pid)
            assert all(held.values())
            child.send_signal(signal.SIGKILL)
            child.wait()
        wait_gone(held)
        for netns in (a, b):
            assert "clsact" not in run("tc", "-n", netns.name, "qdisc", "show")


def test_the_self_check_passes_and_is_not_reported() -> None:
    with armed() as (tracer, _):
        tracer.self_check()
        assert tracer.generated >= 2
        assert tracer.drain() == []


@pytest.mark.parametrize(
    ("struct_name", "member"),
    [
        ("sk_buff", "len"),
        ("sk_buff", "head"),
        ("ns_common", "inum"),
        ("sk_buff", "data"),
        ("sk_buff", "dev"),
        ("sk_buff", "protocol"),
        ("sk_buff", "mac_header"),
        ("net_device", "ifindex"),
        ("net_device", "type"),
        ("net_device", "nd_net"),
    ],
)
def test_the_self_check_refuses_wrong_offsets(
    struct_name: str, member: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from netpath.ebpf import programs

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    real = programs.defines

    def wrong(types: Any) -> dict[str, int]:
        values = real(types)
        return {**values, f"OFF_{struct_name}_{member}": values[f"OFF_{struct_name}_{member}"] + 4}

    monkeypatch.setattr(programs, "defines", wrong)
    with armed() as (tracer, _), pytest.raises(MissingError, match="probes"):
        tracer.self_check()


def test_a_kind_of_event_can_be_left_away_for_a_while(pair: tuple[Netns, Netns]) -> None:
    a, b = pair
    nonce = layout.new_nonce()
    marks = {a.path: (Boundary(4, "output", 7, 9),)}
    with (
        Tracer() as tracer,
        a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        b.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        tracer.load()
        tracer.arm(nonce, count=9, tunnel_ports=PORTS, payload=40, listen_in=[a.path, b.path], stages=marks)
        receiver.bind(("10.9.0.2", 0))
        receiver.settimeout(DEADLINE)

        def kinds(sequence: int) -> list[str]:
            sender.sendto(layout.pack(nonce, sequence, 40), receiver.getsockname())
            assert len(receiver.recv(100)) == 40
            events = tracer.drain()
            stamps = tracer.take_stamps()
            assert {event.sequence for event in events} | {stamp.sequence for stamp in stamps} == {sequence}
            return sorted([event.hook for event in events] + ["stamp" for _ in stamps])

        whole = kinds(1)
        assert {"tx", "rx", "stamp", "local_out"} <= set(whole)
        for number, left in enumerate((("tx",), ("rx", "stamp"), ("stamp",)), start=2):
            with tracer.without(*left):
                assert kinds(number) == [kind for kind in whole if kind not in left]
            assert kinds(number + 4) == whole


def test_readers_of_tun_devices_are_watched_where_there_may_be_some(pair: tuple[Netns, Netns]) -> None:
    # Every datagram that anybody on the machine reads pays for that hook.
    with armed(payload=40) as (tracer, _):
        assert "tun_read" in tracer.hooks
    with armed(payload=40, relays=False) as (tracer, _):
        assert "tun_read" not in tracer.hooks
        assert tracer.missing_hooks == ()
        with tracer.without("tun_read", "rx"):
            assert "tun_read" not in tracer.hooks
        assert not tracer._links.get("tun_read")


@pytest.mark.parametrize("devices", ["btf", "raw"])
@pytest.mark.parametrize("payload", [64, None])
def test_without_newer_functions_the_kernels_ring_buffer_is_used(
    devices: str, payload: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a kernel before 6.2."""
    monkeypatch.setattr(programs, "modern", lambda types: None)
    with Tracer(hooks=[devices]) as tracer:
        tracer.load()
        tracer.arm(layout.new_nonce(), count=3, tunnel_ports={}, payload=payload)
        tracer.self_check()
        assert isinstance(tracer._kit and tracer._kit.ring, Ring)
