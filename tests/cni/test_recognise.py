"""Which datapaths a node runs: on recordings of real ones, on the same with every name changed, and on nodes made by hand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from netpath import cni
from netpath.cni import Datapath
from netpath.discover import dump
from netpath.model.snapshot import (
    Address,
    Bridge,
    DeviceId,
    IpTunnel,
    Link,
    Namespace,
    Neighbour,
    Netfilter,
    NextHop,
    Route,
    Snapshot,
    Socket,
    Vxlan,
    Workload,
    Xtables,
)
from tests import recordings
from tests.recordings.rename import renamed

EXPECTED: dict[str, tuple[set[tuple[str, str]], set[tuple[str, str]]]] = {
    "calico-bgp": ({("calico", "bgp")},) * 2,
    "calico-vxlan": ({("calico", "vxlan")},) * 2,
    "cni-bridge-portmap-firewall": ({("bridge", "ipmasq")},) * 2,
    "docker": ({("docker", "bridge"), ("docker", "user-defined")}, {("docker", "bridge")}),
    "flannel-host-gw": ({("flannel", "host-gw")},) * 2,
    "flannel-udp": ({("flannel", "udp")},) * 2,
    "flannel-vxlan-kubeproxy-nft": ({("flannel", "vxlan"), ("kube-proxy", "iptables")},) * 2,
    "weave-sleeve": ({("weave", "sleeve")},) * 2,
}


def _kinds(datapaths: tuple[Datapath, ...]) -> set[tuple[str, str]]:
    return {(path.cni, path.mode) for path in datapaths}


@pytest.mark.parametrize("case", recordings.CASES)
def test_recordings(case: str) -> None:
    found = cni.recognise(dump.read(recordings.folder(case)))
    assert set(found) == {"fcn1", "fcn2"}
    assert (_kinds(found["fcn1"]), _kinds(found["fcn2"])) == EXPECTED[case]
    for datapath in (*found["fcn1"], *found["fcn2"]):
        assert 0.9 <= datapath.confidence <= 1.0
        assert len(datapath.evidence) >= 3


@pytest.mark.parametrize("case", recordings.CASES)
def test_recordings_with_every_device_and_chain_renamed(case: str, tmp_path: Path) -> None:
    found = cni.recognise(dump.read(renamed(recordings.folder(case), tmp_path / case)))
    assert (_kinds(found["fcn1"]), _kinds(found["fcn2"])) == EXPECTED[case]
    plain = cni.recognise(dump.read(recordings.folder(case)))
    assert all(path.confidence >= 0.5 for path in found["fcn1"])
    assert max(path.confidence for path in found["fcn1"]) <= max(path.confidence for path in plain["fcn1"])


# Nodes made by hand


@dataclass
class Scene:
    """A node that forwards; pods hang off it by veths."""

    links: list[Link] = field(default_factory=lambda: [_link(1, "lo", "loopback"), _link(2, "eth0", "physical")])
    addresses: list[Address] = field(default_factory=lambda: [Address(2, 4, "192.168.0.11", 24)])
    routes: list[Route] = field(default_factory=lambda: [_route("0.0.0.0/0", 2, "192.168.0.1")])
    neighbours: list[Neighbour] = field(default_factory=list)
    sockets: list[Socket] = field(default_factory=list)
    sysctls: dict[str, str] = field(default_factory=lambda: {"net.ipv4.ip_forward": "1"})
    rules: list[str] = field(default_factory=list)
    nft: str | None = None
    ipset: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    workloads: list[Workload] = field(default_factory=list)
    pods: list[Namespace] = field(default_factory=list)

    def add(self, link: Link, *addresses: str) -> int:
        self.links.append(link)
        for text in addresses:
            address, _, length = text.partition("/")
            self.addresses.append(Address(link.ifindex, 4, address, int(length)))
        return link.ifindex

    def pod(
        self, address: str, *, bridge: int | None = None, name: str = "", gateway: str = "10.244.1.1", routed: bool = False
    ) -> int:
        """A pod on a bridge, or routed to over its own veth."""
        number = 100 + len(self.pods)
        inode = 1000 + number
        host = _link(number, name or f"veth{number}", "veth", master=bridge, peer=DeviceId(inode, 2), lower=2, lower_nsid=number)
        self.links.append(host)
        self.pods.append(
            Namespace(
                inode,
                f"pod{number}",
                links=(_link(2, "eth0", "veth", peer=DeviceId(1, number), lower=number, lower_nsid=0),),
                addresses=(Address(2, 4, address, 24),),
                routes=(_route("0.0.0.0/0", 2, gateway),),
                sysctls={"net.ipv4.ip_forward": "0"},
            )
        )
        if routed:
            self.routes.append(_route(f"{address}/32", number, None))
        return number

    def recognise(self) -> tuple[Datapath, ...]:
        table = Xtables(4, "nft", "*nat\n" + "\n".join(self.rules) + "\nCOMMIT\n")
        node = Namespace(
            1, "n1", links=tuple(self.links), addresses=tuple(self.addresses), routes=tuple(self.routes),
            neighbours=tuple(self.neighbours), sockets=tuple(self.sockets), sysctls=self.sysctls,
            netfilter=Netfilter((table,), self.nft, self.ipset),
        )  # fmt: skip
        snapshot = Snapshot(
            (node, *self.pods), workloads=tuple(self.workloads), files={f"n1/{name}": text for name, text in self.files.items()}
        )
        found = cni.recognise(snapshot)
        assert set(found) == {"n1"}
        return found["n1"]


def _link(ifindex: int, name: str, kind: str, **more: object) -> Link:
    return replace(Link(ifindex, name, kind, None, 1500, ("LOWER_UP", "UP")), **more)  # type: ignore[arg-type]


def _route(
    destination: str,
    device: int | None,
    gateway: str | None,
    *,
    protocol: str = "boot",
    onlink: bool = False,
    kind: str = "unicast",
) -> Route:
    hops = (NextHop(device, gateway, flags=("onlink",) if onlink else ()),) if device is not None else ()
    return Route(4, 254, destination, kind, protocol=protocol, nexthops=hops)


def _bridge(scene: Scene, name: str, address: str) -> int:
    return scene.add(_link(10, name, "bridge", bridge=Bridge()), address)


def _flannel_vxlan(scene: Scene, *, name: str = "flannel.1", vni: int = 1, port: int = 8472) -> None:
    device = scene.add(_link(20, name, "vxlan", vxlan=Vxlan(vni, port, "192.168.0.11", learning=False)), "10.244.1.0/32")
    scene.routes.append(_route("10.244.2.0/24", device, "10.244.2.0", onlink=True))
    scene.neighbours.append(Neighbour(device, 4, "10.244.2.0", "02:00:00:00:00:02", "PERMANENT"))


ENV = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"


def test_flannel_vxlan_by_its_devices_alone() -> None:
    scene = Scene()
    _flannel_vxlan(scene, name="overlay")
    scene.pod("10.244.1.2", bridge=_bridge(scene, "pods", "10.244.1.1/24"))
    assert _kinds(scene.recognise()) == {("flannel", "vxlan")}


def test_flannel_with_direct_routing() -> None:
    scene = Scene(files={"subnet.env": ENV})
    _flannel_vxlan(scene)
    scene.routes.append(_route("10.244.3.0/24", 2, "192.168.0.13"))
    scene.pod("10.244.1.2", bridge=_bridge(scene, "cni0", "10.244.1.1/24"))
    assert _kinds(scene.recognise()) == {("flannel", "vxlan+directrouting")}


@pytest.mark.parametrize("mode", ["vxlan", "udp", "host-gw"])
def test_flannel_on_docker0(mode: str) -> None:
    """The articles' layout: dockerd's --bip is the node's subnet, so Docker's bridge is what Flannel's overlay leads to."""
    scene = Scene(
        files={"subnet.env": ENV}, rules=[":DOCKER - [0:0]", "-A POSTROUTING -s 10.244.1.0/24 ! -o docker0 -j MASQUERADE"]
    )
    if mode == "vxlan":
        _flannel_vxlan(scene)
    elif mode == "udp":
        device = scene.add(_link(20, "flannel0", "tun", mtu=1472, mode="tun", link_type="none"), "10.244.1.0/32")
        scene.routes.append(_route("10.244.0.0/16", device, None))
        scene.sockets.append(Socket("udp", "192.168.0.11", 8285, process="flanneld"))
    else:
        scene.routes.append(_route("10.244.2.0/24", 2, "192.168.0.12"))
    scene.pod("10.244.1.2", bridge=_bridge(scene, "docker0", "10.244.1.1/24"))
    scene.workloads.append(Workload("docker:web", "web", "f00", scene.pods[0].inode, runtime="docker"))
    assert _kinds(scene.recognise()) == {("flannel", f"{mode}+docker0"), ("docker", "bridge")}


def test_host_gw_needs_a_mark_of_flannel() -> None:
    """Static routes to subnets are nobody's mark."""
    scene = Scene()
    scene.routes.append(_route("10.244.2.0/24", 2, "192.168.0.12"))
    scene.pod("10.244.1.2", bridge=_bridge(scene, "br7", "10.244.1.1/24"))
    (unknown,) = scene.recognise()
    assert (unknown.cni, unknown.mode, unknown.confidence) == (cni.UNKNOWN, cni.UNKNOWN, 0.0)
    assert unknown.evidence == ("pods are attached to the bridge br7",)


def test_host_gw_by_its_rules_alone() -> None:
    """Without subnet.env the masquerade rules tell the network and the node's part of it."""
    comment = '-m comment --comment "flanneld masq"'
    scene = Scene(
        rules=[
            f"-A POSTROUTING {comment} -j FLANNEL-POSTRTG",
            f"-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.0.0/16 {comment} -j RETURN",
            f"-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.1.0/24 {comment} -j RETURN",
        ]
    )
    scene.routes.append(_route("10.244.2.0/24", 2, "192.168.0.12"))
    scene.pod("10.244.1.2", bridge=_bridge(scene, "cni0", "10.244.1.1/24"))
    assert _kinds(scene.recognise()) == {("flannel", "host-gw")}


def _calico(scene: Scene, protocol: str) -> None:
    for address in ("10.42.17.65", "10.42.17.66"):
        number = scene.pod(address, name=f"cali{address[-2:]}000000000", gateway="169.254.1.1", routed=True)
        scene.sysctls[f"net.ipv4.conf.cali{address[-2:]}000000000.proxy_arp"] = "1"
        assert number
    scene.routes.append(_route("10.42.17.64/26", None, None, protocol=protocol, kind="blackhole"))


@pytest.mark.parametrize("cross_subnet", [False, True])
def test_calico_ipip(cross_subnet: bool) -> None:
    scene = Scene()
    _calico(scene, "bird")
    device = scene.add(_link(20, "tunl0", "ipip", link_type="ipip", mtu=1480, tunnel=IpTunnel()), "10.42.17.64/32")
    scene.routes.append(_route("10.42.99.128/26", device, "192.168.9.12", protocol="bird", onlink=True))
    if cross_subnet:
        scene.routes.append(_route("10.42.50.0/26", 2, "192.168.0.13", protocol="bird"))
    assert _kinds(scene.recognise()) == {("calico", "ipip+crosssubnet" if cross_subnet else "ipip")}


def test_calico_vxlan_crosssubnet_with_policy() -> None:
    rule = '-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD'
    scene = Scene(rules=[":cali-FORWARD - [0:0]", rule])
    _calico(scene, "80")
    device = scene.add(_link(20, "vxlan.calico", "vxlan", vxlan=Vxlan(4096, 4789, learning=False)), "10.42.17.67/32")
    scene.routes.append(_route("10.42.99.128/26", device, "10.42.99.131", protocol="80", onlink=True))
    scene.routes.append(_route("10.42.50.0/26", 2, "192.168.0.13", protocol="80"))
    (datapath,) = scene.recognise()
    assert (datapath.cni, datapath.mode) == ("calico", "vxlan+crosssubnet")
    assert any("chain cali-FORWARD" in line for line in datapath.evidence)


def test_bird_without_pods_is_a_router() -> None:
    scene = Scene()
    scene.routes.append(_route("10.0.0.0/8", 2, "192.168.0.1", protocol="bird"))
    assert scene.recognise() == ()


def test_canal() -> None:
    """Flannel's device and subnet, Calico's veths: one datapath, not two."""
    scene = Scene(files={"subnet.env": ENV})
    _flannel_vxlan(scene)
    scene.pod("10.244.1.2", name="cali12345678901", gateway="169.254.1.1", routed=True)
    scene.sysctls["net.ipv4.conf.cali12345678901.proxy_arp"] = "1"
    assert _kinds(scene.recognise()) == {("canal", "vxlan")}


def test_canal_with_other_names() -> None:
    scene = Scene()
    _flannel_vxlan(scene, name="over")
    scene.pod("10.244.1.2", name="p1", gateway="169.254.1.1", routed=True)
    scene.sysctls["net.ipv4.conf.p1.proxy_arp"] = "1"
    assert _kinds(scene.recognise()) == {("canal", "vxlan")}


def test_docker_flannel_and_calico_on_one_node() -> None:
    scene = Scene(
        files={"subnet.env": ENV}, rules=[":DOCKER - [0:0]", "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"]
    )
    _flannel_vxlan(scene)
    scene.pod("10.244.1.2", bridge=_bridge(scene, "cni0", "10.244.1.1/24"))
    scene.pod(
        "172.17.0.2", bridge=scene.add(_link(11, "docker0", "bridge", bridge=Bridge()), "172.17.0.1/16"), gateway="172.17.0.1"
    )
    _calico(scene, "bird")
    scene.routes.append(_route("10.42.99.128/26", 2, "192.168.0.12", protocol="bird"))
    assert _kinds(scene.recognise()) == {("flannel", "vxlan"), ("calico", "bgp"), ("docker", "bridge")}


def test_weave_fast_datapath() -> None:
    scene = Scene(sockets=[Socket("udp", "0.0.0.0", 6783, process="weaver")])
    bridge = scene.add(_link(10, "weave", "bridge", bridge=Bridge()))
    scene.add(_link(11, "datapath", "openvswitch"))
    scene.add(_link(12, "vethwe-bridge", "veth", master=bridge, peer=DeviceId(1, 13), lower=13))
    scene.add(_link(13, "vethwe-datapath", "veth", master=11, peer=DeviceId(1, 12), lower=12))
    scene.add(_link(14, "vxlan-6784", "vxlan", vxlan=Vxlan(0, 6784, learning=False, external=True), master=11))
    scene.pod("10.32.0.1", bridge=bridge)
    assert _kinds(scene.recognise()) == {("weave", "fastdp")}


def test_kubenet() -> None:
    rule = (
        '-A POSTROUTING ! -d 10.0.0.0/8 -m comment --comment "kubenet: SNAT for outbound traffic from cluster"'
        " -m addrtype ! --dst-type LOCAL -j MASQUERADE"
    )
    scene = Scene(rules=[rule])
    scene.pod("10.244.1.2", bridge=_bridge(scene, "cbr0", "10.244.1.1/24"))
    assert _kinds(scene.recognise()) == {("kubenet", "bridge")}


def test_gke() -> None:
    scene = Scene(rules=[":IP-MASQ - [0:0]", '-A POSTROUTING -m comment --comment "ip-masq: ensure nat POSTROUTING" -j IP-MASQ'])
    scene.pod("10.8.0.5", name="gke4d1e6a4b5c6", routed=True)
    assert _kinds(scene.recognise()) == {("gke", "ptp")}


def test_ptp_plugin() -> None:
    scene = Scene(files={"10-ptp.conflist": '{"name": "net", "plugins": [{"type": "ptp", "ipMasq": true}]}'})
    number = scene.pod("10.1.1.2", routed=True)
    scene.addresses.append(Address(number, 4, "10.1.1.1", 32))
    assert _kinds(scene.recognise()) == {("ptp", "routed")}


def test_ptp_plugin_without_files() -> None:
    """By the routes that it leaves on both ends; a route of its own to a pod is not enough."""

    def scene(scope: str, detour: bool) -> Scene:
        made = Scene()
        made.pod("10.1.1.2", routed=True)
        made.routes[-1] = replace(made.routes[-1], scope=scope)
        if detour:
            near = replace(_route("10.1.1.0/24", 2, "10.1.1.1"), preferred_source="10.1.1.2")
            made.pods[-1] = replace(made.pods[-1], routes=(*made.pods[-1].routes, near))
        return made

    assert _kinds(scene("host", True).recognise()) == {("ptp", "routed")}
    assert _kinds(scene("link", True).recognise()) == {("ptp", "routed")}
    assert _kinds(scene("host", False).recognise()) == {("unknown", "unknown")}


def test_an_uplink_with_a_route_to_its_gateway_is_no_pod() -> None:
    """A cloud's machine may have a veth there, and its own address as a /32."""
    scene = Scene(files={"10-x.conflist": '{"type": "bridge"}'})
    scene.pod("10.1.1.2", bridge=_bridge(scene, "mybr", "10.1.1.1/24"))
    uplink = scene.add(_link(50, "eth0", "veth", peer=DeviceId(999, 7)), "192.168.0.11/32")
    scene.routes.append(_route("192.168.0.1/32", uplink, None))
    assert _kinds(scene.recognise()) == {("bridge", "routed")}


def test_bridge_plugin_without_masquerade() -> None:
    scene = Scene(files={"10-mynet.conf": '{"type": "bridge", "bridge": "mybr"}'})
    scene.pod("10.1.1.2", bridge=_bridge(scene, "mybr", "10.1.1.1/24"))
    assert _kinds(scene.recognise()) == {("bridge", "routed")}


def test_kube_proxy_in_each_mode() -> None:
    def node(**more: object) -> Scene:
        return replace(Scene(), **more)  # type: ignore[arg-type]

    iptables = node(rules=[":KUBE-SERVICES - [0:0]", ":KUBE-SVC-ABC - [0:0]"])
    assert _kinds(iptables.recognise()) == {("kube-proxy", "iptables")}
    nftables = node(nft='{"nftables": [{"table": {"family": "ip", "name": "kube-proxy", "handle": 3}}]}')
    assert _kinds(nftables.recognise()) == {("kube-proxy", "nftables")}
    ipvs = node(ipset="create KUBE-CLUSTER-IP hash:ip,port family inet\n", rules=[":KUBE-SERVICES - [0:0]"])
    ipvs.add(_link(30, "kube-ipvs0", "dummy"), "10.96.0.1/32", "10.96.0.10/32")
    assert _kinds(ipvs.recognise()) == {("kube-proxy", "ipvs")}


def test_a_machine_without_containers() -> None:
    """A workstation, a router: nothing to name, and nothing called unknown."""
    scene = Scene()
    _bridge(scene, "virbr0", "192.168.122.1/24")
    assert scene.recognise() == ()


def test_an_odd_overlay_stays_unknown() -> None:
    scene = Scene()
    bridge = _bridge(scene, "b", "10.9.0.1/24")
    scene.add(_link(20, "vx9", "vxlan", vxlan=Vxlan(77, 4444), master=bridge))
    scene.pod("10.9.0.2", bridge=bridge)
    (unknown,) = scene.recognise()
    assert unknown.cni == cni.UNKNOWN and "vx9 is a vxlan device" in unknown.evidence
