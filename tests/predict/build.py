"""Snapshots by hand, in few words: namespaces with devices, addresses, routes and what the kernel would add by itself.

net = Build()
pod, node = net.ns("pod"), net.ns("node", forward=True)
net.wire(pod, "eth0", node, "veth0")
pod.addr("eth0", "10.0.0.2/24").route("0.0.0.0/0", via="10.0.0.1", dev="eth0")
prediction = predict(net.snapshot(), pod.flow("10.9.9.9"))
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

from netpath.model.packet import Flow
from netpath.model.path import Path, Prediction
from netpath.model.snapshot import (
    Address,
    Bridge,
    BridgePort,
    BridgeVlan,
    ConntrackEntry,
    DeviceId,
    FdbEntry,
    IpTunnel,
    Link,
    Namespace,
    Neighbour,
    NextHop,
    NextHopObject,
    Route,
    Rule,
    Snapshot,
    Socket,
    Vxlan,
    Workload,
)
from netpath.predict import predict
from netpath.predict.engine import no_rules
from netpath.predict.host import EvaluatorFactory

UP = ("LOWER_UP", "UP")
KERNEL = "6.18.0"


class Ns:
    """One namespace being made. Methods return it, so that they can be strung together."""

    def __init__(self, net: Build, inode: int, name: str) -> None:
        self.net, self.inode, self.name = net, inode, name
        self.links: dict[str, Link] = {}
        self.addresses: list[Address] = []
        self.routes: list[Route] = []
        self.rules: list[Rule] = []
        self.neighbours: list[Neighbour] = []
        self.fdb_entries: list[FdbEntry] = []
        self.nexthops: list[NextHopObject] = []
        self.sockets: list[Socket] | None = None
        self.conntrack: list[ConntrackEntry] = []
        self.sysctls: dict[str, str] = {}
        self.more: dict[str, Any] = {}
        self.dev("lo", "loopback", mtu=65536, link_type="loopback", flags=("LOOPBACK", *UP), mac="00:00:00:00:00:00")
        self.addr("lo", "127.0.0.1/8", scope="host")
        self.addr("lo", "::1/128", scope="host")

    def dev(self, name: str, kind: str, **more: Any) -> Ns:
        ifindex = len(self.links) + 1
        mac = f"02:{self.inode & 0xFF:02x}:00:00:00:{ifindex:02x}"
        values: dict[str, Any] = {"mac": mac, "mtu": 1500, "flags": ("BROADCAST", "MULTICAST", *UP), **more}
        self.links[name] = Link(ifindex=ifindex, name=name, kind=kind, **values)
        return self

    def index(self, name: str) -> int:
        return self.links[name].ifindex

    def mac(self, name: str) -> str:
        mac = self.links[name].mac
        assert mac is not None
        return mac

    def change(self, name: str, **values: Any) -> Ns:
        self.links[name] = replace(self.links[name], **values)
        return self

    def down(self, name: str) -> Ns:
        return self.change(name, flags=("BROADCAST", "MULTICAST"))

    def addr(self, dev: str, text: str, scope: str = "global", flags: tuple[str, ...] = (), routes: bool = True) -> Ns:
        """An address, with the routes that the kernel makes for it."""
        held = ipaddress.ip_interface(text)
        family, ifindex = held.version, self.index(dev)
        self.addresses.append(Address(ifindex, family, str(held.ip), held.network.prefixlen, scope=scope, flags=flags))
        hop = (NextHop(ifindex),)
        bits = held.max_prefixlen
        if not routes:
            return self
        if family == 4:
            self.routes.append(
                Route(
                    4,
                    255,
                    f"{held.ip}/{bits}",
                    "local",
                    scope="host",
                    protocol="kernel",
                    preferred_source=str(held.ip),
                    nexthops=hop,
                )
            )
            if dev == "lo":
                self.routes.append(
                    Route(
                        4, 255, "127.0.0.0/8", "local", scope="host", protocol="kernel", preferred_source="127.0.0.1", nexthops=hop
                    )
                )
            elif held.network.prefixlen < bits:
                net = held.network
                self.routes.append(
                    Route(4, 254, str(net), scope="link", protocol="kernel", preferred_source=str(held.ip), nexthops=hop)
                )
                self.routes.append(
                    Route(4, 255, f"{net.broadcast_address}/32", "broadcast", scope="link", protocol="kernel", nexthops=hop)
                )
        else:
            mine = f"fe80::{self.inode:x}:{ifindex:x}"
            if dev != "lo" and not any(each.device == ifindex and each.address == mine for each in self.addresses):
                self.addresses.append(Address(ifindex, 6, mine, 64, scope="link"))
            self.routes.append(Route(6, 255, f"{held.ip}/128", "local", protocol="kernel", nexthops=hop))
            if dev != "lo" and held.network.prefixlen < bits:
                self.routes.append(Route(6, 254, str(held.network), metric=256, protocol="kernel", nexthops=hop))
        return self

    def route(
        self,
        destination: str,
        *,
        via: str | None = None,
        dev: str | None = None,
        onlink: bool = False,
        table: int = 254,
        hops: list[NextHop] | None = None,
        **more: Any,
    ) -> Ns:
        family = 6 if ":" in destination else 4
        flags = ("onlink",) if onlink else ()
        nexthops = (
            tuple(hops)
            if hops is not None
            else ((NextHop(self.index(dev) if dev else None, via, flags=flags),) if dev or via else ())
        )
        if family == 4 and via is None and nexthops and hops is None:
            more.setdefault("scope", "link")
        self.routes.append(Route(family, table, destination, nexthops=nexthops, **more))
        return self

    def rule(self, priority: int, family: int = 4, **more: Any) -> Ns:
        if not any(rule.family == family for rule in self.rules):
            self.rules += [Rule(family, 0, table=255), Rule(family, 32766, table=254)]
            if family == 4:
                self.rules.append(Rule(4, 32767, table=253))
        self.rules.append(Rule(family, priority, **more))
        return self

    def neigh(self, dev: str, address: str, mac: str | None, state: str = "REACHABLE", proxy: bool = False) -> Ns:
        self.neighbours.append(Neighbour(self.index(dev), 6 if ":" in address else 4, address, mac, state, proxy))
        return self

    def bridge(self, name: str, *ports: str, vlans: tuple[BridgeVlan, ...] = (), mtu: int = 1500, **attributes: Any) -> Ns:
        """A bridge over existing devices, with the local entries the kernel keeps for it."""
        self.dev(name, "bridge", bridge=Bridge(**attributes), vlans=vlans, mtu=mtu)
        for port in ports:
            self.plug(name, port)
        if not attributes.get("vlan_filtering"):
            self.fdb(name, self.mac(name), state="permanent", master=name)
        return self

    def plug(self, bridge: str, port: str, vlans: tuple[BridgeVlan, ...] = (), **attributes: Any) -> Ns:
        self.change(port, master=self.index(bridge), port=BridgePort(**attributes), vlans=vlans)
        for vid in [None, *(vlan.vid for vlan in vlans)]:
            self.fdb(port, self.mac(port), state="permanent", master=bridge, vlan=vid)
        return self

    def fdb(self, dev: str, mac: str, *, dst: str | None = None, master: str | None = None, **more: Any) -> Ns:
        flags = ("self",) if dst is not None or more.get("nexthop_id") else ()
        self.fdb_entries.append(
            FdbEntry(self.index(dev), mac, destination=dst, master=self.index(master) if master else None, flags=flags, **more)
        )
        return self

    def vxlan(self, name: str, vni: int, port: int = 8472, mtu: int = 1450, lower_nsid: int | None = None, **attributes: Any) -> Ns:
        return self.dev(name, "vxlan", vxlan=Vxlan(vni, port, **attributes), mtu=mtu, lower_nsid=lower_nsid)

    def tunnel(self, name: str, kind: str = "ipip", mtu: int = 1480, **attributes: Any) -> Ns:
        return self.dev(name, kind, tunnel=IpTunnel(**attributes), mtu=mtu, link_type="ipip", flags=("NOARP", *UP), mac=None)

    def vlan(self, name: str, parent: str, vid: int) -> Ns:
        return self.dev(name, "vlan", lower=self.index(parent), vlan_id=vid, vlan_protocol="802.1Q", mac=self.mac(parent))

    def listen(self, protocol: str, port: int, address: str = "0.0.0.0", **more: Any) -> Ns:
        self.sockets = [*(self.sockets or []), Socket(protocol, address, port, **more)]
        return self

    def sysctl(self, name: str, value: int | str) -> Ns:
        self.sysctls[name] = str(value)
        return self

    def flow(self, dst: str, protocol: str = "udp", **more: Any) -> Flow:
        ports: dict[str, Any] = {"sport": 40000, "dport": 7777} if protocol != "icmp" else {}
        return Flow(self.inode, dst, protocol, **{**ports, **more})

    def done(self) -> Namespace:
        return Namespace(
            inode=self.inode,
            name=self.name,
            names=(self.name,),
            links=tuple(self.links.values()),
            addresses=tuple(self.addresses),
            routes=tuple(self.routes),
            rules=tuple(self.rules),
            neighbours=tuple(self.neighbours),
            fdb=tuple(self.fdb_entries),
            nexthops=tuple(self.nexthops),
            sockets=tuple(self.sockets) if self.sockets is not None else None,
            conntrack=tuple(self.conntrack),
            sysctls=self.sysctls,
            **self.more,
        )


class Build:
    def __init__(self) -> None:
        self.namespaces: list[Ns] = []
        self.workloads: list[Workload] = []
        self.kernel = KERNEL

    def ns(self, name: str, *, forward: bool = False) -> Ns:
        made = Ns(self, 100 + len(self.namespaces), name)
        self.namespaces.append(made)
        if forward:
            made.sysctl("net.ipv4.ip_forward", 1).sysctl("net.ipv6.conf.all.forwarding", 1)
        return made

    def wire(self, a: Ns, left: str, b: Ns, right: str, mtu: int = 1500) -> None:
        a.dev(left, "veth", mtu=mtu)
        b.dev(right, "veth", mtu=mtu)
        a.change(left, peer=DeviceId(b.inode, b.index(right)))
        b.change(right, peer=DeviceId(a.inode, a.index(left)))

    def snapshot(self) -> Snapshot:
        return Snapshot(tuple(ns.done() for ns in self.namespaces), kernel=self.kernel, workloads=tuple(self.workloads))

    def predict(self, flow: Flow, evaluators: EvaluatorFactory = no_rules) -> Prediction:
        return predict(self.snapshot(), flow, evaluators=evaluators)

    def only(self, flow: Flow, evaluators: EvaluatorFactory = no_rules) -> Path:
        """The one path of the prediction."""
        (path,) = self.predict(flow, evaluators).paths
        return path


def hops(path: Path) -> list[str]:
    """``namespace.device.direction`` of every hop."""
    return [f"{hop.netns.name}.{hop.device.name}.{hop.direction}" for hop in path.hops]


class Overlay:
    """Two nodes with a pod each, joined by a VXLAN over a switch: what most tests start from and break."""

    def __init__(self, family: int = 4) -> None:
        self.net = Build()
        self.pod1, self.pod2 = self.net.ns("pod1"), self.net.ns("pod2")
        self.node1, self.node2 = self.net.ns("node1", forward=True), self.net.ns("node2", forward=True)
        self.fabric = self.net.ns("fabric")
        self.family = family
        six = family == 6
        bits, full, default = (64, 128, "::/0") if six else (24, 32, "0.0.0.0/0")
        subnets = ("fd01::", "fd02::") if six else ("10.1.0.", "10.2.0.")
        ends = ("fd0f::1", "fd0f::2") if six else ("10.1.0.0", "10.2.0.0")
        self.address1, self.address2 = f"{subnets[0]}2", f"{subnets[1]}2"
        nodes = ((self.node1, self.pod1), (self.node2, self.pod2))
        for number, (node, pod) in enumerate(nodes):
            self.net.wire(pod, "eth0", node, "veth0", mtu=1450)
            pod.addr("eth0", f"{subnets[number]}2/{bits}").route(default, via=f"{subnets[number]}1", dev="eth0")
            pod.listen("udp", 7777).listen("tcp", 7777).listen("udp", 7777, "::").listen("tcp", 7777, "::")
            node.bridge("br0", "veth0", mtu=1450).addr("br0", f"{subnets[number]}1/{bits}")
            self.net.wire(node, "up0", self.fabric, f"p{number}")
            node.addr("up0", f"192.168.7.{number + 1}/24")
            node.vxlan("vx1", 1, local=f"192.168.7.{number + 1}", learning=False).addr("vx1", f"{ends[number]}/{full}")
        self.fabric.bridge("sw0", "p0", "p1")
        for number, (node, _) in enumerate(nodes):
            other = nodes[1 - number][0]
            node.neigh("vx1", ends[1 - number], other.mac("vx1"), "PERMANENT")
            node.fdb("vx1", other.mac("vx1"), dst=f"192.168.7.{2 - number}", state="permanent")
            far = subnets[1 - number] + ("/64" if six else "0/24")
            node.route(far, via=ends[1 - number], dev="vx1", onlink=True)

    def path(self, **more: Any) -> Path:
        return self.net.only(self.pod1.flow(self.address2, **more))
