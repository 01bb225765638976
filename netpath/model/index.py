"""A snapshot by key: namespaces, devices, who holds an address, and which node and workload a namespace belongs to."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Any

from netpath.model.path import DeviceRef, NetnsRef
from netpath.model.snapshot import DeviceId, Link, Namespace, Snapshot

_ON = ("1", "2")


@lru_cache(maxsize=65536)
def canonical(address: str) -> str:
    """An address as the kernel prints it; text that is no address comes back as it is."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.IPv6Address(address.partition("%")[0]))
    except ValueError:
        return address


def forwards(namespace: Namespace) -> bool:
    """True when the namespace routes packets for others: IPv4 or IPv6 forwarding is on somewhere in it."""
    for name, value in namespace.sysctls.items():
        if value.strip() not in _ON:
            continue
        if name == "net.ipv4.ip_forward":
            return True
        if name.startswith(("net.ipv4.conf.", "net.ipv6.conf.")) and name.endswith(".forwarding"):
            part = name.split(".")[3]
            if part not in ("default", "lo"):
                return True
    return False


class SnapshotIndex:
    """Look-ups into one snapshot, each built once. `prepared` is room for what others derive from the same snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.prepared: dict[Any, Any] = {}
        self._namespaces: dict[int, Namespace] = {}
        self._links: dict[DeviceId, Link] = {}
        self._names: dict[tuple[int, str], Link] = {}
        self._reverse: dict[DeviceId, DeviceId] = {}
        self._holders: dict[str, list[DeviceId]] = {}
        for namespace in snapshot.namespaces:
            self._namespaces[namespace.inode] = namespace
            for link in namespace.links:
                here = DeviceId(namespace.inode, link.ifindex)
                self._links[here] = link
                self._names[(namespace.inode, link.name)] = link
                if link.kind == "veth" and link.peer is not None:
                    self._reverse.setdefault(link.peer, here)
            for address in namespace.addresses:
                held = self._holders.setdefault(canonical(address.address), [])
                device = DeviceId(namespace.inode, address.device)
                if device not in held:
                    held.append(device)
        self._workloads = {workload.netns: workload.reference for workload in snapshot.workloads}
        self._nodes: dict[int, str | None] = {}

    def namespace(self, inode: int) -> Namespace | None:
        return self._namespaces.get(inode)

    def link(self, device: DeviceId) -> Link | None:
        return self._links.get(device)

    def link_by_name(self, netns: int, name: str) -> Link | None:
        return self._names.get((netns, name))

    def peer(self, device: DeviceId) -> DeviceId | None:
        """The other end of a veth (or what a device's `Link.peer` names), when it is in the snapshot."""
        link = self._links.get(device)
        if link is None:
            return None
        found = link.peer if link.peer is not None else (self._reverse.get(device) if link.kind == "veth" else None)
        return found if found in self._links else None

    def is_tap(self, device: DeviceId) -> bool:
        """A veth without address or master whose other end is a bridge's port in its own namespace: made for a process that captures."""
        link, peer = self._links.get(device), self.peer(device)
        if link is None or link.kind != "veth" or link.master is not None or peer is None or peer.netns != device.netns:
            return False
        held = (address for address in self._namespaces[device.netns].addresses if address.device == device.ifindex)
        return self._links[peer].master is not None and not any(address.family == 4 for address in held)

    def holders(self, address: str) -> tuple[DeviceId, ...]:
        """All devices that hold `address`, in the order of the snapshot; several namespaces may."""
        return tuple(self._holders.get(canonical(address), ()))

    def is_node(self, inode: int) -> bool:
        """A node is a namespace that forwards.

        Forwarding is inherited by new namespaces, so that a pod may have it switched on without being able to forward:
        a workload (unless it lives in the node's own namespace), or a namespace with one device, is no node.
        """
        namespace = self._namespaces.get(inode)
        if namespace is None or not forwards(namespace):
            return False
        if inode in self._workloads and not any(link.kind in ("bridge", "vxlan", "physical") for link in namespace.links):
            return False
        devices = {link.ifindex for link in namespace.links if link.kind != "loopback"}
        addressed = {address.device for address in namespace.addresses}
        return len(devices) > 1 and bool(devices & addressed)

    def node_of(self, netns: int) -> str | None:
        """The name of the node that a namespace belongs to; its own where none is found. None: it isn't in the snapshot."""
        if netns not in self._nodes:
            self._nodes[netns] = self._find_node(netns)
        return self._nodes[netns]

    def _find_node(self, netns: int) -> str | None:
        namespace = self._namespaces.get(netns)
        if namespace is None:
            return None
        if self.is_node(netns):
            return namespace.name
        default = {
            nexthop.device
            for route in namespace.routes
            if route.destination in ("0.0.0.0/0", "::/0", "default")
            for nexthop in route.nexthops
        }
        switch = any(link.kind == "bridge" for link in namespace.links)
        if not switch:
            for link in sorted(namespace.links, key=lambda each: (each.ifindex not in default, each.ifindex)):
                peer = self.peer(DeviceId(netns, link.ifindex))
                if peer is not None and peer.netns != netns and self.is_node(peer.netns):
                    return self._namespaces[peer.netns].name
        return namespace.name

    def workload_of(self, netns: int) -> str | None:
        """The reference of the workload that runs in a namespace (``pod:default/web``)."""
        return self._workloads.get(netns)

    def netns_ref(self, netns: int) -> NetnsRef:
        namespace = self._namespaces.get(netns)
        return NetnsRef(netns, namespace.name if namespace is not None else f"netns:{netns}")

    def device_ref(self, device: DeviceId) -> DeviceRef:
        link = self._links.get(device)
        if link is None:
            return DeviceRef(f"ifindex:{device.ifindex}", device.ifindex, "unknown")
        return DeviceRef(link.name, link.ifindex, link.kind)
