"""A Snapshot with look-ups: by inode, by device, by address, by name. Pure, built once per snapshot."""

from __future__ import annotations

import ipaddress
from collections import defaultdict

from netpath.model.path import DeviceRef, NetnsRef
from netpath.model.snapshot import DeviceId, Link, Namespace, Snapshot


def canonical(address: str) -> str:
    """An address in its canonical text form; anything else comes back as it is."""
    try:
        return str(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return address


def forwards(namespace: Namespace) -> bool:
    """True when the namespace forwards IPv4 or IPv6 packets, which makes it a node."""
    sysctls = namespace.sysctls
    return any(
        sysctls.get(name) == "1" for name in ("net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding", "net.ipv6.conf.all.forwarding")
    )


class SnapshotIndex:
    """Look-ups over one Snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._namespaces = {namespace.inode: namespace for namespace in snapshot.namespaces}
        self._links: dict[DeviceId, Link] = {}
        self._by_name: dict[tuple[int, str], Link] = {}
        self._holders: dict[str, list[DeviceId]] = defaultdict(list)
        self._peers: dict[int, list[DeviceId]] = defaultdict(list)
        for namespace in snapshot.namespaces:
            for link in namespace.links:
                self._links[DeviceId(namespace.inode, link.ifindex)] = link
                self._by_name[namespace.inode, link.name] = link
                if link.kind == "veth" and link.peer is not None and link.peer.netns != namespace.inode:
                    self._peers[namespace.inode].append(link.peer)
            for address in namespace.addresses:
                self._holders[canonical(address.address)].append(DeviceId(namespace.inode, address.device))
        self._workloads: dict[int, str] = {}
        for workload in snapshot.workloads:
            self._workloads.setdefault(workload.netns, workload.reference)
        self._nodes: dict[int, str | None] = {}

    def namespace(self, inode: int) -> Namespace | None:
        return self._namespaces.get(inode)

    def link(self, device: DeviceId) -> Link | None:
        return self._links.get(device)

    def link_by_name(self, netns: int, name: str) -> Link | None:
        return self._by_name.get((netns, name))

    def holders(self, address: str) -> tuple[DeviceId, ...]:
        """The devices that hold an address, in snapshot order."""
        return tuple(self._holders.get(canonical(address), ()))

    def node_of(self, netns: int) -> str | None:
        """The name of the node that a namespace belongs to.

        A namespace that forwards is a node. Another one belongs to the forwarding namespace its veth pairs lead to, when they lead to
        one only; a segment between nodes (a fabric) leads to several and stands for itself. None for a namespace that is not there.
        """
        if netns not in self._nodes:
            self._nodes[netns] = self._find_node(netns)
        return self._nodes[netns]

    def _find_node(self, netns: int) -> str | None:
        namespace = self._namespaces.get(netns)
        if namespace is None:
            return None
        if forwards(namespace):
            return namespace.name
        nodes = {peer.netns for peer in self._peers[netns] if (there := self._namespaces.get(peer.netns)) and forwards(there)}
        if len(nodes) == 1:
            return self._namespaces[nodes.pop()].name
        return namespace.name

    def workload_of(self, netns: int) -> str | None:
        """The reference of the workload that runs in a namespace (the first, by the snapshot's order)."""
        return self._workloads.get(netns)

    def netns_ref(self, netns: int) -> NetnsRef:
        namespace = self._namespaces.get(netns)
        return NetnsRef(netns, namespace.name if namespace else f"netns:{netns}")

    def device_ref(self, device: DeviceId) -> DeviceRef:
        """A device as results show it. An interface that the snapshot doesn't hold is ``?`` of kind ``unknown``."""
        link = self._links.get(device)
        return DeviceRef(link.name, link.ifindex, link.kind) if link else DeviceRef("?", device.ifindex, "unknown")
