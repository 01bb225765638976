"""What each kind of lab has: options it is built with, what it is, what its tunnel adds, and which flows there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from netpath.lab import Lab
from netpath.lab.modes.kubenet import OUTSIDE
from tests.topology import ECHO_PORT

SERVICE, NODE_PORT, HAIRPIN = "10.96.7.8:5353", 30053, "hairpin"
TCP_SERVICE = "10.96.7.7:80"


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of lab as it is tried here."""

    known: frozenset[tuple[str, str]]
    """(CNI, mode) of node1's datapaths."""
    added: int = 0
    """Bytes of the tunnel between nodes."""
    added6: int = 0
    """Bytes that it adds to IPv6 packets: Flannel's goes by the nodes' IPv6 addresses."""
    options: Mapping[str, Any] = field(default_factory=dict)
    outside: bool = True
    """Pods reach addresses outside the cluster: something masquerades them."""
    hairpin: bool = True
    """A pod gets back what its service balances to itself, on a way that can be predicted: IPVS's answer depends on a neighbour's
    age, and the ports of weave's bridge are not in hairpin mode."""
    docker: bool = False
    direct: tuple[str, str] | None = None
    """Two pods on different nodes between which this mode needs no tunnel."""
    far: str = "pod2a"
    """The pod on another node that the tunnel leads to."""


@dataclass(frozen=True, slots=True)
class Flow:
    """`source` and `destination` as netpath's command line takes them."""

    kind: str
    protocol: str
    source: str
    destination: str
    added: int = 0
    """Bytes that a tunnel adds on the way, and takes off again."""
    balanced: bool = False
    """To a service, whose endpoints are on either side of the tunnel."""


def _case(*known: tuple[str, str], **more: Any) -> Case:
    return Case(frozenset(known), **more)


IPTABLES, NFTABLES, IPVS = ("kube-proxy", "iptables"), ("kube-proxy", "nftables"), ("kube-proxy", "ipvs")
BY_NFT, BY_LEGACY, NATIVE = ({"services": name} for name in ("iptables-nft", "iptables-legacy", "nftables"))
DUAL = {"ipv6": True}

CASES: Mapping[str, Case] = {
    "flannel-vxlan": _case(("flannel", "vxlan"), IPTABLES, added=50, added6=70, options=BY_NFT | DUAL),
    "flannel-hostgw": _case(("flannel", "host-gw"), NFTABLES, options=NATIVE | DUAL),
    "flannel-udp": _case(("flannel", "udp"), IPTABLES, added=28, options=BY_LEGACY),
    "flannel-directrouting": _case(
        ("flannel", "vxlan+directrouting"), IPTABLES, added=50, options=BY_NFT, direct=("pod1a", "pod2a"), far="pod3a"
    ),
    "weave-sleeve": _case(("weave", "sleeve"), IPTABLES, added=62, options=BY_NFT, hairpin=False),
    "flannel-ipip": _case(("flannel", "ipip"), IPTABLES, added=20, options=BY_NFT),
    "kube-ipvs": _case(("flannel", "vxlan"), IPVS, added=50, hairpin=False),
    "bridge": _case(("bridge", "routed"), NFTABLES, options=NATIVE | DUAL, outside=False),
    "cni-bridge": _case(("bridge", "ipmasq"), NFTABLES, options=NATIVE | DUAL),
    "ptp": _case(("ptp", "routed"), IPTABLES, options=BY_NFT, outside=False),
    "kubenet": _case(("kubenet", "bridge"), IPTABLES, options=BY_NFT),
    "gke": _case(("gke", "ptp"), IPTABLES, options=BY_NFT),
    "calico-bgp": _case(("calico", "bgp"), IPTABLES, options=BY_NFT, outside=False),
    "calico-rr": _case(("calico", "bgp"), NFTABLES, options=NATIVE, outside=False),
    "calico-vxlan": _case(("calico", "vxlan"), NFTABLES, added=50, options=NATIVE, outside=False),
    "calico-crosssubnet": _case(
        ("calico", "vxlan+crosssubnet"),
        IPTABLES,
        added=50,
        options=BY_NFT | {"nodes": 3},
        outside=False,
        direct=("pod1a", "pod2a"),
        far="pod3a",
    ),
    "calico-ipip": _case(("calico", "ipip"), IPTABLES, added=20, options=BY_NFT, outside=False),
    "calico-ipip-crosssubnet": _case(
        ("calico", "ipip+crosssubnet"),
        IPTABLES,
        added=20,
        options=BY_NFT | {"nodes": 3},
        outside=False,
        direct=("pod1a", "pod2a"),
        far="pod3a",
    ),
    "canal": _case(("canal", "vxlan"), IPTABLES, added=50, options=BY_NFT),
    "docker": _case(("docker", "bridge"), ("docker", "user-defined"), docker=True),
    "flannel-docker": _case(("flannel", "vxlan+docker0"), ("docker", "bridge"), added=50),
}


def flows(made: Lab, case: Case) -> Iterator[Flow]:
    """The flows that a lab of this kind has, each once or with every protocol."""
    if case.docker:
        yield from _docker(made)
        return
    one, sibling, far = (f"{made.pod(name).label}" for name in ("pod1a", "pod1b", case.far))
    node, other = made.node("node1"), made.node(f"node{case.far[3]}")
    for protocol, port in (("udp", ":7777"), ("tcp", ":7070"), ("icmp", "")):
        yield Flow("other node", protocol, one, far + port, case.added)
        if case.direct is not None:
            yield Flow("same subnet", protocol, made.pod(case.direct[0]).label, made.pod(case.direct[1]).label + port)
    yield Flow("same node", "udp", one, f"{sibling}:7777")
    yield Flow("same node", "tcp", one, f"{sibling}:7070")
    yield Flow("pod to its host", "icmp", one, node.label)
    yield Flow("pod to another host", "icmp", one, other.label)
    yield Flow("host to its pod", "icmp", node.label, one)
    yield Flow("host to a pod elsewhere", "udp", node.label, f"{far}:7777", case.added)
    if case.options.get("ipv6"):
        for protocol, port in (("udp", ":7777"), ("tcp", ":7070"), ("icmp", "")):
            yield Flow("other node, IPv6", protocol, one, f"{far}@{_six(made.pod(case.far).addresses, port)}", case.added6)
        yield Flow("same node, IPv6", "icmp", one, f"{sibling}@{made.pod('pod1b').addresses[1]}")
    if made.services:
        yield Flow("service", "udp", one, SERVICE, case.added, balanced=True)
        yield Flow("service", "tcp", one, TCP_SERVICE, case.added, balanced=True)
        yield Flow("service from a host", "udp", node.label, SERVICE, case.added, balanced=True)
        yield Flow("node port", "udp", other.label, f"{node.label}@{node.address}:{NODE_PORT}", case.added, balanced=True)
        if case.hairpin:
            yield Flow(HAIRPIN, "udp", sibling, SERVICE)
    if case.outside:
        yield Flow("pod to outside", "icmp", one, f"netns:{made.name}-fabric@{OUTSIDE}")
        yield Flow("pod to outside", "udp", one, f"netns:{made.name}-fabric@{OUTSIDE}:{ECHO_PORT}")


def _six(addresses: tuple[str, ...], port: str) -> str:
    return f"[{addresses[1]}]{port}" if port else addresses[1]


def _docker(made: Lab) -> Iterator[Flow]:
    published = {name: f"netns:{made.name}-{name}@{made.node(name).address}" for name in ("node1", "node2")}
    for protocol, port in (("udp", ":12348"), ("tcp", ":12347")):
        yield Flow("published port of another node", protocol, "docker:c1", f"{published['node2']}{port}")
    for protocol, port in (("udp", ":12346"), ("tcp", ":12345")):
        yield Flow("published port of its own node", protocol, "docker:c2", f"{published['node1']}{port}")
        yield Flow("published port from a host", protocol, f"netns:{made.name}-node2", f"{published['node1']}{port}")
    yield Flow("published port on loopback", "udp", f"netns:{made.name}-node1", "127.0.0.1:12346")
    yield Flow("published port of another network", "udp", "docker:c2", f"{published['node1']}:12349")
    for protocol, port in (("udp", ":7071"), ("tcp", ":7070"), ("icmp", "")):
        yield Flow("same node", protocol, "docker:c2", f"docker:c1{port}")
    yield Flow("container to its host", "icmp", "docker:c2", published["node1"])
    yield Flow("container to another host", "icmp", "docker:c2", published["node2"])
    yield Flow("host to its container", "icmp", f"netns:{made.name}-node1", "docker:c2")
    yield Flow("container to outside", "icmp", "docker:c2", f"netns:{made.name}-fabric@{OUTSIDE}")
