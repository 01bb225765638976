"""One node with cni0 and flannel.1, docker0 and cali* at once: each flow gets its own path, with its own translations."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from netpath import lab
from netpath.cni import recognise
from netpath.lab import Lab
from tests.netns import Netns, namespaces
from tests.topology import ECHO_PORT, echo
from tests.trace.nat import as_predicted, rewrites, trace

pytestmark = [pytest.mark.root, pytest.mark.ebpf, pytest.mark.timeout(300)]

CONTAINER, WORKLOAD, PUBLISHED = "172.17.0.2", "10.99.0.65", 12345
RULES = f"""*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p udp -m udp --dport {PUBLISHED} -j DNAT --to-destination {CONTAINER}:{ECHO_PORT}
COMMIT
"""


@dataclass(frozen=True)
class Mixed:
    lab: Lab
    container: Netns
    workload: Netns

    def source(self, name: str) -> str:
        own = {"container": self.container, "workload": self.workload}
        return f"netns:{own[name].name if name in own else f'{self.lab.name}-{name}'}"

    def destination(self, name: str) -> str:
        """Named by its namespace: other labs may hold the same addresses."""
        holder = "node1" if name == "published" else name
        known = {"container": CONTAINER, "workload": WORKLOAD}
        address = known.get(name) or (self.lab.pod(holder) if holder.startswith("pod") else self.lab.node(holder)).address
        return f"{self.source(holder)}@{address}:{PUBLISHED if name == 'published' else ECHO_PORT}"


@pytest.fixture(scope="module")
def mixed() -> Iterator[Mixed]:
    with lab.running("flannel-vxlan", f"npt{os.urandom(2).hex()}") as made, namespaces(2) as (container, workload):
        node, other = Netns(made.node("node1").netns), Netns(made.node("node2").netns)
        node.batch(
            "link add docker0 type bridge",
            "addr add 172.17.0.1/16 dev docker0",
            f"link add vethd0 master docker0 type veth peer eth0 netns {container.name}",
            "link set vethd0 up",
            "link set docker0 up",
            f"link add cali0 type veth peer eth0 netns {workload.name}",
            "link set cali0 up",
            f"route add {WORKLOAD}/32 dev cali0 scope link",
        )
        node.sysctl("net.ipv4.conf.cali0.proxy_arp", 1)
        node.sysctl("net.ipv4.neigh.cali0.proxy_delay", 0)
        container.batch(f"addr add {CONTAINER}/16 dev eth0", "link set eth0 up", "route add default via 172.17.0.1")
        workload.batch(
            f"addr add {WORKLOAD}/32 dev eth0",
            "link set eth0 up",
            "route add 169.254.1.1 dev eth0 scope link",
            "route add default via 169.254.1.1 dev eth0",
        )
        # As a mesh of Calico's nodes has it.
        other.ip("route", "add", f"{WORKLOAD}/32", "via", "192.168.50.11")
        words = ["nsenter", f"--net={node.path}", "iptables-nft-restore", "--noflush"]
        subprocess.run(words, input=RULES, text=True, check=True)
        with echo([(container, CONTAINER), (workload, WORKLOAD)]):
            yield Mixed(made, container, workload)


@pytest.mark.parametrize(
    ("source", "target", "devices", "translations"),
    [
        ("pod1a", "pod2a", {"cni0", "flannel.1", "eth0"}, []),
        ("pod1a", "pod1b", set(), []),
        ("pod1a", "container", {"cni0", "docker0"}, ["masquerade"]),
        ("pod1a", "workload", {"cni0", "cali0"}, ["masquerade"]),
        ("container", "pod1a", {"docker0", "cni0"}, ["masquerade"]),
        ("container", "pod2a", {"docker0", "flannel.1", "cni0", "eth0"}, ["masquerade"]),
        ("container", "workload", {"docker0", "cali0"}, ["masquerade"]),
        ("container", "node2", {"docker0", "eth0"}, ["masquerade"]),
        ("workload", "container", {"cali0", "docker0"}, []),
        ("workload", "pod1b", {"cali0", "cni0"}, []),
        ("workload", "pod2b", {"cali0", "flannel.1", "cni0", "eth0"}, ["masquerade"]),
        ("node1", "container", {"docker0"}, []),
        ("node1", "workload", {"cali0"}, []),
        ("pod2a", "published", {"cni0", "eth0", "docker0"}, ["masquerade", "dnat"]),
        ("node2", "published", {"eth0", "docker0"}, ["dnat"]),
    ],
)
def test_each_flow_takes_its_own_datapath(
    mixed: Mixed, source: str, target: str, devices: set[str], translations: list[str]
) -> None:
    protocol = "icmp" if target == "node2" else "udp"
    destination = mixed.destination(target)
    done = trace(mixed.source(source), destination.rpartition(":")[0] if protocol == "icmp" else destination, protocol)
    (forward,), (back,) = as_predicted(done)
    nodes = {f"{mixed.lab.name}-node1", f"{mixed.lab.name}-node2"}
    crossed = {hop.device.name for hop in forward.hops if hop.netns.name in nodes and not hop.device.name.startswith("veth")}
    assert crossed == devices
    assert [kind for kind, _ in rewrites(forward)] == translations
    assert sorted(kind for kind, _ in rewrites(back)) == sorted(translations)


def test_every_datapath_is_recognised_beside_the_others(mixed: Mixed) -> None:
    done = trace(mixed.source("pod1a"), mixed.destination("pod2a"), count=1)
    found = {(datapath.cni, datapath.mode) for datapath in recognise(done.snapshot, done.index)[f"{mixed.lab.name}-node1"]}
    assert found >= {("flannel", "vxlan"), ("docker", "bridge")}, found
