"""What recognisers look at: one node with its pods, and the shapes in its state that several families share.

Shapes carry the weight and names only add to it, because a name is a default that people change, while a VNI, a route's protocol or
a rule's form is what the component programs.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from netpath.model.index import SnapshotIndex
from netpath.model.snapshot import DeviceId, Link, Namespace, Route, Snapshot, Workload

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

THRESHOLD = 0.5
"""Below this confidence a datapath is not named."""


@dataclass(frozen=True, slots=True)
class Datapath:
    """A datapath that a node runs: the component, how it is set up, how sure that is (0..1), and what was found."""

    cni: str
    mode: str
    confidence: float
    evidence: tuple[str, ...]


@dataclass(slots=True)
class Signs:
    """Evidence as it is gathered. Independent signs: each leaves open what the others did not settle."""

    doubt: float = 1.0
    lines: list[str] = field(default_factory=list)

    def add(self, weight: float, line: str) -> None:
        self.doubt *= 1 - weight
        self.lines.append(line)

    def add_if(self, condition: object, weight: float, line: str) -> None:
        if condition:
            self.add(weight, line)

    @property
    def confidence(self) -> float:
        return round(1 - self.doubt, 2)

    def datapath(self, cni: str, mode: str) -> tuple[Datapath, ...]:
        """The datapath, when there is enough for it."""
        return (Datapath(cni, mode, self.confidence, tuple(self.lines)),) if self.confidence >= THRESHOLD else ()


@dataclass(frozen=True)
class RoutedPod:
    """A pod behind a veth of its own: a route to its one address leads there."""

    link: Link
    route: Route


@dataclass(frozen=True)
class NodeView:
    """A node: the namespace that forwards, the namespaces behind its veths, its files."""

    snapshot: Snapshot
    index: SnapshotIndex
    node: Namespace
    pods: tuple[Namespace, ...]
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What one family found out and another one asks too."""

    # Names and files

    @cached_property
    def links(self) -> Mapping[int, Link]:
        return {link.ifindex: link for link in self.node.links}

    @cached_property
    def files(self) -> Mapping[str, str]:
        """The node's own files by their last part, and its pods' behind ``POD/``."""
        found: dict[str, str] = {}
        owners = {self.node.name: "", **{pod.name: f"{pod.name}/" for pod in self.pods}}
        for path, text in self.snapshot.files.items():
            base = path.rpartition("/")[2]
            if path.startswith("/"):
                # A live snapshot's files are the machine's, which is the node unless the nodes are namespaces of a lab.
                if self.node.name == "host" or len(self.snapshot.namespaces) == 1 + len(self.pods):
                    found[base] = text
                continue
            owner = path.rpartition("/")[0]
            if owner in owners:
                found[owners[owner] + base] = text
        return found

    @cached_property
    def workloads(self) -> tuple[Workload, ...]:
        inside = {self.node.inode, *(pod.inode for pod in self.pods)}
        return tuple(workload for workload in self.snapshot.workloads if workload.netns in inside)

    @cached_property
    def processes(self) -> frozenset[str]:
        """Names of the programs that hold sockets on the node."""
        return frozenset(socket.process for socket in self.node.sockets or () if socket.process)

    def listens(self, protocol: str, port: int) -> bool:
        return any(socket.protocol == protocol and socket.port == port for socket in self.node.sockets or ())

    # Rules

    @cached_property
    def rule_lines(self) -> tuple[str, ...]:
        """Lines ``-A ...`` of every xtables ruleset, without counters."""
        netfilter = self.node.netfilter
        found = []
        for table in netfilter.xtables if netfilter is not None else ():
            for line in table.text.splitlines():
                if line.startswith("["):
                    line = line.partition("] ")[2]
                if line.startswith("-A "):
                    found.append(line)
        return tuple(found)

    @cached_property
    def chains(self) -> frozenset[str]:
        """Names of xtables chains and of nft tables and chains (``FAMILY TABLE``, ``CHAIN``)."""
        netfilter = self.node.netfilter
        if netfilter is None:
            return frozenset()
        found = {
            line[1:].split()[0]
            for table in netfilter.xtables
            for line in table.text.splitlines()
            if line.startswith(":") and line[1:].split()
        }
        text = netfilter.nft or ""
        # A scan and not a parse: a document of 10,000 rules takes a second to parse, and only names are wanted.
        found.update(re.findall(r'"chain":\s*\{"family":\s*"\w+",\s*"table":\s*"[^"]*",\s*"name":\s*"([^"]*)"', text))
        found.update(
            f"{family} {name}" for family, name in re.findall(r'"table":\s*\{"family":\s*"(\w+)",\s*"name":\s*"([^"]*)"', text)
        )
        return frozenset(found)

    def chain(self, *prefixes: str) -> str | None:
        """A chain whose name begins so."""
        names = self._chains_in_order
        found = []
        for prefix in prefixes:
            at = bisect_left(names, prefix)
            found += [name for name in names[at : at + 1] if name.startswith(prefix)]
        return min(found, default=None)

    @cached_property
    def _chains_in_order(self) -> tuple[str, ...]:
        return tuple(sorted(self.chains))

    def rule(self, *parts: str) -> str | None:
        """A rule with all these parts in its text."""
        text, rarest = self._rule_text, max(parts, key=len)
        # Line by line in Python this takes most of a recognition where there are 10,000 rules.
        at = text.find(rarest)
        while at >= 0:
            end = text.index("\n", at)
            line = text[text.rfind("\n", 0, at) + 1 : end]
            if all(part in line for part in parts):
                return line
            at = text.find(rarest, end)
        return None

    @cached_property
    def _rule_text(self) -> str:
        return "".join(f"{line}\n" for line in self.rule_lines)

    # Routes and addresses

    @cached_property
    def main(self) -> tuple[Route, ...]:
        """Routes of the main table."""
        return tuple(route for route in self.node.routes if route.table == 254)

    def via(self, link: Link) -> tuple[Route, ...]:
        return tuple(route for route in self.main if any(hop.device == link.ifindex for hop in route.nexthops))

    def of_kind(self, *kinds: str) -> tuple[Link, ...]:
        return tuple(link for link in self.node.links if link.kind in kinds)

    def addresses(self, link: Link) -> tuple[str, ...]:
        """ADDRESS/LENGTH of a device, IPv4 first."""
        found = sorted((entry for entry in self.node.addresses if entry.device == link.ifindex), key=lambda entry: entry.family)
        return tuple(f"{entry.address}/{entry.prefixlen}" for entry in found)

    def holds(self, link: Link, network: Network | None) -> bool:
        """One of the device's addresses lies in a network."""
        return network is not None and any(inside(text, network) for text in self.addresses(link))

    def is_pod_veth(self, link: Link) -> bool:
        """A veth to one of the node's pods, or to a namespace that the snapshot does not have."""
        if link.kind != "veth":
            return False
        if link.peer is None:
            return link.lower_nsid is not None
        return link.peer.netns in {pod.inode for pod in self.pods}

    def ports(self, bridge: Link) -> tuple[Link, ...]:
        return tuple(link for link in self.node.links if link.master == bridge.ifindex)

    @cached_property
    def pod_bridges(self) -> tuple[Link, ...]:
        """Bridges that pods are attached to."""
        return tuple(bridge for bridge in self.of_kind("bridge") if any(self.is_pod_veth(port) for port in self.ports(bridge)))

    @cached_property
    def routed_pods(self) -> tuple[RoutedPod, ...]:
        """Pods reached by a route to their one address over a veth that is in no bridge."""
        found = []
        for route in self.main:
            if route.type != "unicast" or not route.destination.endswith(("/32", "/128")) or len(route.nexthops) != 1:
                continue
            link = self.links.get(route.nexthops[0].device or 0)
            # An uplink may be a veth with a route to its gateway's one address: a cloud's machine has that.
            if link is not None and self.is_pod_veth(link) and link.master is None and route.nexthops[0].gateway is None:
                found.append(RoutedPod(link, route))
        return tuple(found)

    def pod_of(self, link: Link) -> Namespace | None:
        return self.index.namespace(link.peer.netns) if link.peer is not None else None

    def proxies_arp(self, link: Link) -> bool:
        return self.node.sysctls.get(f"net.ipv4.conf.{sysctl_name(link.name)}.proxy_arp") == "1"

    def peer_in_pod(self, link: Link) -> Link | None:
        return self.index.link(DeviceId(link.peer.netns, link.peer.ifindex)) if link.peer is not None else None

    @cached_property
    def cni_types(self) -> Mapping[str, str]:
        """Plugin types named in CNI configuration files, each with the file that names it."""
        found: dict[str, str] = {}
        for name, text in self.files.items():
            if "/" in name or (not name.endswith((".conf", ".conflist")) and name != "cni.json"):
                continue
            for kind in re.findall(r'"type"\s*:\s*"([\w.-]+)"', text):
                found.setdefault(kind, name)
        return found

    def route_mode(self, routes: Iterable[Route]) -> tuple[tuple[Route, ...], tuple[Route, ...]]:
        """Routes over tunnels, and routes to a gateway on the underlay."""
        tunnels, direct = [], []
        for route in routes:
            for hop in route.nexthops:
                link = self.links.get(hop.device or 0)
                if link is None or (hop.gateway is None and link.kind not in ("tun",)):
                    continue
                if link.kind in ("vxlan", "ipip", "tun"):
                    tunnels.append(route)
                elif link.kind not in ("bridge",) and not self.is_pod_veth(link):
                    direct.append(route)
        return tuple(tunnels), tuple(direct)


def sysctl_name(device: str) -> str:
    """A device's name as a part of a sysctl's."""
    return device.replace(".", "/")


def inside(text: str, network: Network) -> bool:
    """Whether an address or prefix (``a.b.c.d[/len]``) lies in a network."""
    found = network_of(text)
    if found is None or found.version != network.version:
        return False
    return int(network.network_address) <= int(found.network_address) and int(found.broadcast_address) <= int(
        network.broadcast_address
    )


def network_of(text: str | None) -> Network | None:
    if text is None:
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def env(text: str | None) -> dict[str, str]:
    """KEY=VALUE lines."""
    return dict(line.strip().split("=", 1) for line in (text or "").splitlines() if "=" in line)
