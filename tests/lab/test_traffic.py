"""Packets really get from pod to pod, and back from the echo server."""

from __future__ import annotations

import socket

import pytest

from netpath import lab
from netpath.lab import Lab
from tests.lab import kinds
from tests.lab.helpers import Space

pytestmark = pytest.mark.root


def udp_echo(source: str, address: str, port: int, *, payload: bytes = b"netpath") -> tuple[bytes, str]:
    """Send one datagram and give what came back, and from where."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with Space(source).socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(payload, (address, port))
        data, sender = sock.recvfrom(65535)
    return data, sender[0]


def tcp_echo(source: str, address: str, port: int, payload: bytes) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with Space(source).socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.connect((address, port))
        sock.sendall(payload)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    return answer


def check_pairs(made: Lab, *, family: int = 0) -> None:
    """Every pod to every other: UDP on every port, TCP, and an answer from the address asked."""
    for source in made.pods:
        for target in made.pods:
            address = target.addresses[family]
            for port in lab.ECHO_UDP:
                payload = f"{source.name} {target.name} {port}".encode()
                assert udp_echo(source.netns, address, port, payload=payload) == (payload, address)
    for port in lab.ECHO_TCP:
        for target in made.pods[1:]:
            assert tcp_echo(made.pods[0].netns, target.addresses[family], port, b"x" * 100_000) == b"x" * 100_000


@pytest.mark.parametrize("mode", [mode.name for mode in lab.MODES if "docker" not in mode.name])
def test_every_pod_reaches_every_other_at_once(mode: str, lab_name: str) -> None:
    if mode in kinds.NEEDS:
        kinds.need(kinds.NEEDS[mode])
    check_pairs(lab.up(mode, lab_name))


@pytest.mark.parametrize("mode", ["flannel-vxlan", "flannel-hostgw", "bridge"])
def test_ipv6_pods(mode: str, lab_name: str) -> None:
    made = lab.up(mode, lab_name, ipv6=True)
    check_pairs(made)
    check_pairs(made, family=1)


def test_the_way_between_nodes_is_the_tunnel(lab_name: str) -> None:
    """The tunnel's own counters: 5 datagrams out, 5 back; and nothing of the pods' addresses on the wire unwrapped."""
    made = lab.up("flannel-vxlan", lab_name)
    node = Space(made.node("node1").netns)

    def counters() -> tuple[int, int]:
        return node.call(
            lambda: next(
                (int(words[2]), int(words[10]))
                for words in (line.replace(":", ": ").split() for line in open("/proc/thread-self/net/dev"))  # noqa: PTH123
                if words[0] == "flannel.1:"
            )
        )

    before = counters()
    for _ in range(5):
        udp_echo(made.pod("pod1a").netns, made.pod("pod2b").address, 7777)
    after = counters()
    assert after[0] - before[0] >= 5 and after[1] - before[1] >= 5


def test_node_to_pod_and_pod_to_the_other_node(lab_name: str) -> None:
    made = lab.up("flannel-vxlan", lab_name)
    assert udp_echo(made.node("node1").netns, "10.244.2.2", 7777)[0] == b"netpath"
    with Space(made.node("node2").netns).socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.settimeout(5)
        server.bind(("192.168.50.12", 9000))
        with Space(made.pod("pod1a").netns).socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"to the node", ("192.168.50.12", 9000))
            data, sender = server.recvfrom(100)
    assert data == b"to the node"
    # Masqueraded: a node is no part of the pod network.
    assert sender[0] == "192.168.50.11"


def test_fifty_pods_on_a_node(lab_name: str) -> None:
    made = lab.up("flannel-vxlan", lab_name, pods_per_node=50)
    assert len(made.pods) == 100
    assert made.pods[49].name == "pod1ax"
    for target in made.pods[::9]:
        assert udp_echo(made.pods[0].netns, target.address, 7777)[0] == b"netpath"


def test_zero_length_and_large_datagrams(lab_name: str) -> None:
    made = lab.up("flannel-vxlan", lab_name)
    assert udp_echo(made.pod("pod1a").netns, "10.244.2.2", 7777, payload=b"")[0] == b""
    assert udp_echo(made.pod("pod1a").netns, "10.244.2.2", 7777, payload=b"y" * 20_000)[0] == b"y" * 20_000


def test_a_client_that_does_not_read_stops_nobody(lab_name: str) -> None:
    made = lab.up("bridge", lab_name)
    with Space(made.pod("pod1a").netns).socket(socket.AF_INET, socket.SOCK_STREAM) as greedy:
        greedy.settimeout(0.3)
        greedy.connect(("10.244.2.2", 7070))
        with pytest.raises(TimeoutError):
            while True:
                greedy.sendall(b"z" * 65536)
        assert udp_echo(made.pod("pod1b").netns, "10.244.2.2", 7777)[0] == b"netpath"
        assert tcp_echo(made.pod("pod1b").netns, "10.244.2.2", 7070, b"still here") == b"still here"
