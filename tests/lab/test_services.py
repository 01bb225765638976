"""kube-proxy's rules in a lab: the text it writes, and what packets make of it."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from netpath import lab
from netpath.errors import UsageError
from netpath.lab import Lab, services
from netpath.lab.services import Endpoint, Service
from tests.lab.helpers import Space, rules

pytestmark = pytest.mark.root

BACKENDS = ("iptables-nft", "iptables-legacy", "nftables")

ECHO = Service(
    "echo",
    "udp",
    "udp",
    "10.96.7.8",
    5353,
    (Endpoint("pod1b", "node1", "10.244.1.3", 7071), Endpoint("pod2a", "node2", "10.244.2.2", 7071)),
    node_port=30053,
)


@dataclass(frozen=True)
class Servers:
    """A lab whose endpoints are sockets of ours, so that a test sees who got what from whom."""

    lab: Lab
    sockets: dict[str, socket.socket]

    def send(self, source: str, address: str, port: int) -> tuple[str, str]:
        """A datagram from a node or pod, and the answer, which must come from the address asked: (endpoint, source it saw)."""
        member = lab.find(f"{self.lab.name}/{source}")
        with Space(member.path).socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(3)
            client.connect((address, port))
            client.send(b"to a service")
            ready, _, _ = select.select([client, *self.sockets.values()], [], [], 3)
            if client in ready:
                client.recv(100)  # raises ConnectionRefusedError
            for name, server in self.sockets.items():
                if server in ready:
                    data, sender = server.recvfrom(100)
                    server.sendto(data, sender)
                    assert client.recv(100) == b"to a service"
                    return name, sender[0]
        raise TimeoutError(f"{source} to {address}:{port}: nobody got it")


@pytest.fixture(scope="module", params=BACKENDS)
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    with ExitStack() as stack:
        made = stack.enter_context(lab.running("flannel-vxlan", f"npt{os.urandom(3).hex()}", services=request.param, echo=False))
        sockets = {}
        for name in ("pod1b", "pod2a"):
            sock = stack.enter_context(Space(made.pod(name).path).socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind(("", 7071))
            sockets[name] = sock
        yield Servers(made, sockets)


def test_cluster_ip_from_a_pod(servers: Servers) -> None:
    seen = [servers.send("pod1a", "10.96.7.8", 5353) for _ in range(40)]
    # Both endpoints, by chance (2 in 2^40 against), and both see the pod itself.
    assert {name for name, _ in seen} == {"pod1b", "pod2a"}
    assert {source for _, source in seen} == {"10.244.1.2"}


def test_cluster_ip_from_a_node_is_masqueraded(servers: Servers) -> None:
    seen = {servers.send("node1", "10.96.7.8", 5353) for _ in range(40)}
    assert seen == {("pod1b", "10.244.1.1"), ("pod2a", "10.244.1.0")}


def test_node_port_from_the_other_node(servers: Servers) -> None:
    seen = {servers.send("node2", "192.168.50.11", 30053) for _ in range(40)}
    assert seen == {("pod1b", "10.244.1.1"), ("pod2a", "10.244.1.0")}


def test_node_port_from_a_pod(servers: Servers) -> None:
    seen = {servers.send("pod2b", "192.168.50.11", 30053)[0] for _ in range(40)}
    assert seen == {"pod1b", "pod2a"}


def test_external_address_from_the_other_node(servers: Servers) -> None:
    seen = {servers.send("node2", "192.168.50.99", 5357) for _ in range(40)}
    assert {name for name, _ in seen} == {"pod1b", "pod2a"}
    assert {source for _, source in seen} <= {"10.244.1.0", "10.244.1.1", "10.244.2.0", "10.244.2.1"}


def test_affinity_keeps_a_client_at_its_endpoint(servers: Servers) -> None:
    for client in ("pod1a", "pod2b"):
        assert len({servers.send(client, "10.96.7.9", 5354)[0] for _ in range(20)}) == 1


def test_local_policy_keeps_the_client_address(servers: Servers) -> None:
    assert {servers.send("node2", "192.168.50.11", 30056) for _ in range(20)} == {("pod1b", "192.168.50.12")}
    assert {servers.send("node1", "192.168.50.12", 30056) for _ in range(20)} == {("pod2a", "192.168.50.11")}


def test_hairpin_is_masqueraded(servers: Servers) -> None:
    """An endpoint that reaches itself by its service sees its bridge's address, or its answer would not come back the same way."""
    seen = {servers.send("pod1b", "10.96.7.8", 5353) for _ in range(40)}
    assert seen == {("pod1b", "10.244.1.1"), ("pod2a", "10.244.1.3")}


def test_a_service_without_endpoints_rejects(servers: Servers) -> None:
    with pytest.raises(ConnectionRefusedError):
        servers.send("pod1a", "10.96.7.10", 5355)
    # A sender on the node itself is told at once: its packet was refused on the way out.
    with pytest.raises(PermissionError):
        servers.send("node1", "10.96.7.10", 5355)


def test_the_state_tells_the_services(servers: Servers) -> None:
    found = {service["name"]: service for service in servers.lab.services}
    assert set(found) == {"web", "echo", "sticky", "noep", "local", "ext"}
    assert [endpoint["pod"] for endpoint in found["web"]["endpoints"]] == ["pod1b", "pod2a"]


def test_iptables_names_are_kube_proxys() -> None:
    """The names that a real kube-proxy 1.20 gave to this service."""
    text = services.iptables_rules([ECHO], pod_network="10.244.0.0/16", node="node1")
    comment = '-m comment --comment "default/echo:udp"'
    chain, first, second = "KUBE-SVC-UCRDNLWBZDD2OFJK", "KUBE-SEP-5HQEP5MAZOX4N4VR", "KUBE-SEP-WFJDL6N2PKNQEFN3"
    assert [line for line in text.splitlines() if "echo" in line] == [
        "-A KUBE-SERVICES ! -s 10.244.0.0/16 -d 10.96.7.8/32 -p udp -m comment --comment "
        '"default/echo:udp cluster IP" -m udp --dport 5353 -j KUBE-MARK-MASQ',
        "-A KUBE-SERVICES -d 10.96.7.8/32 -p udp -m comment --comment "
        f'"default/echo:udp cluster IP" -m udp --dport 5353 -j {chain}',
        f"-A KUBE-NODEPORTS -p udp {comment} -m udp --dport 30053 -j KUBE-MARK-MASQ",
        f"-A KUBE-NODEPORTS -p udp {comment} -m udp --dport 30053 -j {chain}",
        f"-A {chain} {comment} -m statistic --mode random --probability 0.50000000000 -j {first}",
        f"-A {chain} {comment} -j {second}",
        f"-A {first} -s 10.244.1.3/32 {comment} -j KUBE-MARK-MASQ",
        f"-A {first} -p udp {comment} -m udp -j DNAT --to-destination 10.244.1.3:7071",
        f"-A {second} -s 10.244.2.2/32 {comment} -j KUBE-MARK-MASQ",
        f"-A {second} -p udp {comment} -m udp -j DNAT --to-destination 10.244.2.2:7071",
    ]


def test_iptables_local_policy_without_a_local_endpoint() -> None:
    service = Service("local", "udp", "udp", "10.96.7.11", 5356, ECHO.endpoints, node_port=30056, local=True)
    text = services.iptables_rules([service], pod_network="10.244.0.0/16", node="node3")
    last = [line for line in text.splitlines() if line.startswith("-A KUBE-XLB-HV4SD6X26QXM4WF2")][-1]
    assert last.endswith('--comment "default/local:udp has no local endpoints" -j KUBE-MARK-DROP')


def test_nftables_names_are_kube_proxys() -> None:
    """The hashes and names that kube-proxy gives to such a service."""
    service = Service("svc1", "p80", "tcp", "172.30.0.41", 80, (Endpoint("x", "n", "10.180.0.1", 80),))
    # In its namespace ns1: our services are all in default, but the naming is one function of the path.
    assert services._named("service", "ns1/svc1/tcp/p80") == "service-ULMVA6XW-ns1/svc1/tcp/p80"
    assert services._named("endpoint", "ns1/svc1/tcp/p80__10.180.0.1/80") == "endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80"
    text = services.nftables_rules([service], pod_network="10.0.0.0/8", node="n", node_address="192.168.0.2")
    main, endpoint = (
        services._named("service", "default/svc1/tcp/p80"),
        services._named("endpoint", "default/svc1/tcp/p80__10.180.0.1/80"),
    )
    for line in (
        f"add rule ip kube-proxy {main} ip daddr 172.30.0.41 tcp dport 80 ip saddr != 10.0.0.0/8 jump mark-for-masquerade",
        f"add rule ip kube-proxy {main} numgen random mod 1 vmap {{ 0 : goto {endpoint} }}",
        f"add rule ip kube-proxy {endpoint} ip saddr 10.180.0.1 jump mark-for-masquerade",
        f"add rule ip kube-proxy {endpoint} meta l4proto tcp dnat to 10.180.0.1:80",
        f"add element ip kube-proxy service-ips {{ 172.30.0.41 . tcp . 80 : goto {main} }}",
        "add element ip kube-proxy cluster-ips { 172.30.0.41 }",
    ):
        assert line in text.splitlines()


def test_nftables_local_policy_without_a_local_endpoint_drops(lab_name: str) -> None:
    made = lab.up("flannel-hostgw", lab_name, nodes=3, services="nftables")
    with Space(made.node("node1").netns).socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        client.connect(("192.168.50.13", 30056))
        client.send(b"x")
        with pytest.raises(TimeoutError):
            client.recv(10)
        client.connect(("192.168.50.13", 30053))
        client.send(b"y")
        assert client.recv(10) == b"y"


def test_both_rule_sets_are_of_one_backend(lab_name: str) -> None:
    """Flannel's rules go where kube-proxy's are: with both backends in use each would see half."""
    made = lab.up("flannel-vxlan", lab_name, services="iptables-legacy")
    node = made.node("node1").netns
    assert rules(node, "iptables-nft") == {}
    nat = rules(node, "iptables-legacy")["nat"]
    order = [line.rsplit(" ", 1)[1] for line in nat if line.startswith("-A POSTROUTING")]
    assert order == ["KUBE-POSTROUTING", "FLANNEL-POSTRTG"]


def test_services_that_a_mode_cannot_have(lab_name: str) -> None:
    with pytest.raises(UsageError, match="no services"):
        lab.up("docker", lab_name, services="nftables")
    with pytest.raises(UsageError, match="iptables-nft, iptables-legacy, nftables or ipvs"):
        lab.up("bridge", lab_name, services="iptables")
