"""The lab relay: what it does to packets, and how it is compiled, started and ended."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netpath import lab
from netpath.errors import MissingError
from netpath.lab import relays
from tests.lab.helpers import Space, leftovers, processes
from tests.lab.test_lifecycle import gone
from tests.lab.test_traffic import udp_echo
from tests.netns import Netns, namespaces

pytestmark = pytest.mark.root

PORT = 8285
OWN, PEER = "127.0.0.1", "127.0.0.2"


def checksum(header: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~int(total) & 0xFFFF


def packet(ttl: int, source: str, destination: str, identification: int, protocol: int, payload: bytes = b"payload!") -> bytes:
    ends = ipaddress.IPv4Address(source).packed, ipaddress.IPv4Address(destination).packed
    plain = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), identification, 0x4000, ttl, protocol, 0, *ends)
    return plain[:10] + struct.pack("!H", checksum(plain)) + plain[12:] + payload


class Ends:
    """A relay in a namespace of its own, with its peer played by a socket and its device by a packet socket."""

    def __init__(self, space: Netns, program: Path) -> None:
        space.ip("link", "set", "lo", "up")
        words = [str(program), "npt-relay", space.path, "tun", "tun0", "10.9.1.0", OWN, str(PORT), f"10.9.2.0/24={PEER}"]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"ready\n"
        space.sysctl("net.ipv6.conf.tun0.disable_ipv6", 1)
        space.ip("addr", "add", "10.9.1.0/32", "dev", "tun0")
        space.ip("link", "set", "tun0", "up")
        space.ip("route", "add", "10.9.0.0/16", "dev", "tun0")
        inside = Space(space.name)
        self.peer = inside.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.peer.bind((PEER, PORT))
        self.device = inside.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self.device.bind(("tun0", 0x0800))
        self.raw = inside.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        for sock in (self.peer, self.device, self.raw):
            sock.settimeout(5)

    def written(self) -> bytes:
        """The next packet that the relay wrote to its device."""
        while True:
            data, where = self.device.recvfrom(2048)
            if where[2] != socket.PACKET_OUTGOING:
                return data

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(5)
        assert self.process.stdin is not None and self.process.stdout is not None
        for each in (self.peer, self.device, self.raw, self.process.stdin, self.process.stdout):
            each.close()


@pytest.fixture(scope="module")
def ends() -> Iterator[Ends]:
    with namespaces(1) as (space,):
        made = Ends(space, relays.program())
        yield made
        made.close()


protocols = st.integers(0, 255)
many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(st.integers(2, 255), st.integers(0, 255), st.integers(1, 65535), protocols, st.binary(min_size=8, max_size=1200))
def test_from_the_device_the_ttl_goes_down_and_the_checksum_holds(
    ends: Ends, ttl: int, host: int, number: int, protocol: int, payload: bytes
) -> None:
    sent = packet(ttl, "10.9.1.5", f"10.9.2.{host}", number, protocol, payload)
    ends.raw.sendto(sent, (f"10.9.2.{host}", 0))
    changed, where = ends.peer.recvfrom(2048)
    assert where == (OWN, PORT)
    assert changed[8] == ttl - 1 and checksum(changed[:20]) == 0
    assert changed[:8] + changed[9:10] + changed[12:] == sent[:8] + sent[9:10] + sent[12:]


@many
@given(st.integers(2, 255), st.integers(0, 65535), protocols, st.binary(max_size=1200))
def test_to_the_device_too(ends: Ends, ttl: int, number: int, protocol: int, payload: bytes) -> None:
    sent = packet(ttl, "10.9.2.5", "10.9.1.77", number, protocol, payload)
    ends.peer.sendto(sent, (OWN, PORT))
    changed = ends.written()
    assert changed[8] == ttl - 1 and checksum(changed[:20]) == 0
    assert changed[:8] + changed[9:10] + changed[12:] == sent[:8] + sent[9:10] + sent[12:]


@many
@given(st.binary(max_size=60).filter(lambda data: len(data) < 20 or data[0] >> 4 != 4 or data[8] < 2))
def test_what_is_no_packet_or_at_its_end_goes_no_further(ends: Ends, data: bytes) -> None:
    ends.peer.sendto(data, (OWN, PORT))
    ends.peer.sendto(packet(1, "10.9.2.5", "10.9.1.77", 1, 17), (OWN, PORT))
    good = packet(9, "10.9.2.5", "10.9.1.77", 2, 17, b"after it")
    ends.peer.sendto(good, (OWN, PORT))
    assert ends.written()[12:] == good[12:]


def test_nobodys_subnet_is_answered_as_the_proxy_answers(ends: Ends) -> None:
    """Network unreachable, TTL 8, from the device's address, with the header and eight bytes; none about ICMP or later fragments."""
    icmp, offender = packet(64, "10.9.1.5", "10.9.7.7", 3, 1), packet(64, "10.9.1.5", "10.9.7.7", 4, 17, b"12345678 and more")
    later = bytearray(packet(64, "10.9.1.5", "10.9.7.7", 5, 17))
    later[6:8], later[10:12] = b"\x00\x10", b"\0\0"
    later[10:12] = struct.pack("!H", checksum(bytes(later[:20])))
    for data in (icmp, bytes(later), offender):
        ends.raw.sendto(data, ("10.9.7.7", 0))
    answer = ends.written()
    assert (answer[8], answer[9], answer[12:16], answer[16:20]) == (8, 1, bytes([10, 9, 1, 0]), bytes([10, 9, 1, 5]))
    assert checksum(answer[:20]) == 0 and checksum(answer[20:]) == 0 and answer[20:22] == b"\x03\x00"
    quoted = answer[28:]
    assert len(quoted) == 28 and quoted[4:6] == offender[4:6] and quoted[20:] == b"12345678"


def test_without_a_word_it_ends(tmp_path: Path) -> None:
    """The builder died before it said so: nothing was made."""
    words = [str(relays.program()), "x", "/proc/self/ns/net", "tun", "nptrelay0", "10.9.1.0", OWN, str(PORT)]
    assert subprocess.run(words, stdin=subprocess.DEVNULL, check=False, timeout=5).returncode == 0


def test_it_says_what_it_can_not_understand() -> None:
    for words in (["tun", "t0", "10.9.1.0", OWN, "1", "10.9.2.0=1.1.1.1"], ["tap", "t0", "nonsense", OWN, "1"], ["tun"]):
        done = subprocess.run(
            [str(relays.program()), "x", "/nonexistent", *words], input=b"\n", capture_output=True, check=False, timeout=5
        )
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = relays.program()
    assert first.parent == tmp_path / "netpath" and os.access(first, os.X_OK)
    made = first.stat().st_mtime_ns
    monkeypatch.setenv("PATH", "/nonexistent")
    assert relays.program() == first and first.stat().st_mtime_ns == made
    assert sorted(path.name for path in first.parent.iterdir()) == [first.name]


def test_a_program_that_others_could_have_written_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = relays.program()
    path.write_bytes(b"foreign")
    path.chmod(0o777)
    assert relays.program() == path and path.read_bytes() != b"foreign"


def test_no_compiler_is_one_line_and_exit_3(lab_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingError, match="apt-get install gcc libc6-dev") as caught:
        lab.up("flannel-udp", lab_name)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    assert leftovers(lab_name) == [] and list((tmp_path / "netpath").iterdir()) == []


def test_the_relay_survives_what_it_cannot_deliver(lab_name: str) -> None:
    """Addresses of no node, garbage on its port: dropped, and the tunnel still works."""
    made = lab.up("flannel-udp", lab_name)
    with Space(made.pod("pod1a").netns).socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"nobody", ("10.244.77.7", 7777))
    with Space(made.node("node2").netns).socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for data in (b"", b"x", b"E" * 30, b"`" * 100):
            sock.sendto(data, ("192.168.50.11", PORT))
    assert udp_echo(made.pod("pod1a").netns, "10.244.2.2", 7777)[0] == b"netpath"


@pytest.mark.parametrize("mode", ["flannel-udp", "weave-sleeve"])
def test_down_ends_the_relays(lab_name: str, mode: str) -> None:
    lab.up(mode, lab_name)
    # Two relays and the echo server.
    assert len(processes(lab_name)) == 3
    lab.down(lab_name)
    gone(lab_name)
    assert leftovers(lab_name) == []


@pytest.mark.parametrize(("name", "real"), [("flannel-udp", "flanneld"), ("weave-sleeve", "weaver")])
def test_the_list_of_labs_says_whose_work_it_is(name: str, real: str) -> None:
    mode = next(each for each in lab.MODES if each.name == name)
    assert f"lab relay, not {real}" in mode.real_parts
