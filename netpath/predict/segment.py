"""Who hears a frame: a walk over one layer-2 segment across veths, bridges, VLANs, VXLANs and capturing processes, without making hops.

It answers two questions of the walker: who gets an ARP request or neighbour solicitation, and which copy of a flooded
frame finds a taker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from netpath.model.index import SnapshotIndex
from netpath.model.snapshot import DeviceId, Link
from netpath.predict import addresses as ip
from netpath.predict import bridge as bridging
from netpath.predict.host import Host
from netpath.predict.packet import TPIDS, Tags


@dataclass
class Learned:
    """What bridges and VXLAN devices learn from the exchange itself, after the snapshot was taken."""

    ports: dict[tuple[int, int, int, str], int] = field(default_factory=dict)
    """(netns, bridge, VLAN, MAC) -> port."""
    vteps: dict[tuple[int, int, str], str] = field(default_factory=dict)
    """(netns, VXLAN device, MAC) -> the VTEP it came from."""

    def copy(self) -> Learned:
        return Learned(dict(self.ports), dict(self.vteps))


Underlay = Callable[[Host, Link, str, Learned], list[tuple[DeviceId, str]]]
"""(host, VXLAN device, destination MAC, learned) -> the VXLAN devices that get the frame, each with the sender's VTEP."""

Relay = Callable[[Host, Link], list[DeviceId]]
"""(host, a device that a process captures from) -> the devices by which its twins on other nodes inject."""


@dataclass
class Heard:
    """Devices with an IP stack behind them that a frame came to, and whether it left the snapshot's view somewhere."""

    devices: list[DeviceId] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


class Segment:
    """`hosts` gives the prepared namespace of an inode, None when it is not in the snapshot."""

    def __init__(self, index: SnapshotIndex, hosts: Callable[[int], Host | None], underlay: Underlay, relay: Relay) -> None:
        self._index = index
        self._hosts = hosts
        self._underlay = underlay
        self._relay = relay

    def hear(self, host: Host, link: Link, dst: str, src: str, tags: Tags = (), learned: Learned | None = None) -> Heard:
        """Everybody who gets a frame that `host` sends by `link`. A unicast frame is heard only by whom it is for."""
        known = learned if learned is not None else Learned()
        run = Run(self._index, self._hosts, self._underlay, self._relay, dst.lower(), src.lower(), known)
        run.send(host, link, tags)
        return run.heard


class Run:
    """One frame's spread over a segment."""

    def __init__(
        self,
        index: SnapshotIndex,
        hosts: Callable[[int], Host | None],
        underlay: Underlay,
        relay: Relay,
        dst: str,
        src: str,
        learned: Learned,
    ) -> None:
        self._index, self._hosts, self._underlay, self._relay = index, hosts, underlay, relay
        self._dst, self._src, self._learned = dst, src, learned
        self.heard = Heard()
        self._seen: set[tuple[int, int, str, Tags]] = set()

    def _fresh(self, host: Host, link: Link, direction: str, tags: Tags) -> bool:
        key = (host.inode, link.ifindex, direction, tags)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def send(self, host: Host, link: Link, tags: Tags) -> None:
        if not link.up or dark(link) or not self._fresh(host, link, "tx", tags):
            return
        if link.kind == "veth":
            self._to_peer(host, link, tags)
        elif link.kind == "bridge":
            decision = bridging.decide(host, link, None, self._dst, tags, self._learned.ports)
            if decision.refused is None:
                self._forward(host, link, None, decision)
        elif link.kind == "vlan" and link.vlan_id is not None:
            below = self._below(host, link)
            if below is not None:
                self.send(*below, ((TPIDS.get(link.vlan_protocol or "802.1Q", 0x8100), link.vlan_id), *tags))
        elif link.kind == "vxlan":
            for device, vtep in self._underlay(host, link, self._dst, self._learned):
                other = self._hosts(device.netns)
                there = other.links.get(device.ifindex) if other is not None else None
                if there is not None and there.vxlan is not None and there.vxlan.learning:
                    self._learned.vteps[(device.netns, device.ifindex, self._src)] = vtep
                self._arrive_at(device, tags)
        elif link.kind in ("macvlan", "macvtap"):
            below = self._below(host, link)
            if below is not None:
                self._macvlan_children(*below, tags, sender=DeviceId(host.inode, link.ifindex))
                self.send(*below, tags)
        elif link.kind in ("bond", "team"):
            slave = next((port for port in host.ports[link.ifindex] if port.up and port.carrier), None)
            if slave is not None:
                self.send(host, slave, tags)
        elif link.kind not in ("loopback", "dummy", "ifb", "vrf"):
            self.heard.outside.append(f"{link.name} in {host.name}")

    def _to_peer(self, host: Host, link: Link, tags: Tags) -> None:
        peer = self._index.peer(DeviceId(host.inode, link.ifindex))
        if peer is None:
            if link.lower is not None or link.peer is not None:
                self.heard.outside.append(f"{link.name} in {host.name}")
            return
        self._arrive_at(peer, tags)

    def _below(self, host: Host, link: Link) -> tuple[Host, Link] | None:
        if link.peer is not None:
            other = self._hosts(link.peer.netns)
            found = other.links.get(link.peer.ifindex) if other is not None else None
            return (other, found) if other is not None and found is not None else None
        found = host.links.get(link.lower) if link.lower is not None else None
        return (host, found) if found is not None else None

    def _arrive_at(self, device: DeviceId, tags: Tags) -> None:
        host = self._hosts(device.netns)
        link = host.links.get(device.ifindex) if host is not None else None
        if host is not None and link is not None:
            self.receive(host, link, tags, self._for(link))

    def _for(self, link: Link) -> bool:
        return ip.is_group_mac(self._dst) or (link.mac is not None and link.mac.lower() == self._dst)

    def receive(self, host: Host, link: Link, tags: Tags, mine: bool) -> None:
        if not link.up or not self._fresh(host, link, "rx", tags):
            return
        if tags:
            below = host.vlan_devices.get((link.ifindex, tags[0][1]))
            if below is not None:
                self.receive(host, below, tags[1:], mine or self._for(below))
                return
        master = host.links.get(link.master) if link.master is not None else None
        if master is not None and master.kind == "bridge":
            decision = bridging.decide(host, master, link, self._dst, tags, self._learned.ports)
            if decision.refused is not None or not master.up:
                return
            if link.port is None or link.port.learning:
                self._learned.ports[(host.inode, master.ifindex, decision.vid, self._src)] = link.ifindex
            self._forward(host, master, link, decision, mine)
            return
        if master is not None and master.kind in ("bond", "team"):
            self.receive(host, master, tags, mine or self._for(master))
            return
        if self._index.is_tap(DeviceId(host.inode, link.ifindex)):
            for device in self._relay(host, link):
                other = self._hosts(device.netns)
                if other is not None:
                    self.send(other, other.links[device.ifindex], tags)
        if master is not None and master.kind == "openvswitch":
            self._through_switch(host, master, link, tags)
            return
        self._macvlan_children(host, link, tags, sender=None)
        if not tags and mine:
            self.heard.devices.append(DeviceId(host.inode, link.ifindex))

    def _forward(self, host: Host, bridge: Link, port: Link | None, decision: bridging.Decision, mine: bool = False) -> None:
        targets = decision.flood if decision.port is None else (decision.port,)
        for target in targets:
            if bridging.refusal(bridge, port, target, decision.vid) is None:
                tags = bridging.leave(target, decision.vid, decision.tags)
                if tags is not None:
                    self.send(host, target, tags)
        if decision.local:
            tags = bridging.leave(bridge, decision.vid, decision.tags)
            if tags is not None:
                self.receive(host, bridge, tags, mine or self._for(bridge))

    def _through_switch(self, host: Host, switch: Link, link: Link, tags: Tags) -> None:
        """By all other ports: whom the switch's flows leave out is not known, nor where else they lead."""
        self.heard.outside.append(f"{switch.name} in {host.name}")
        for port in host.ports[switch.ifindex]:
            if port.kind != "vxlan" and port is not link:
                self.send(host, port, tags)
            elif link.kind != "vxlan":
                for device in far_switches(self._index, DeviceId(host.inode, port.ifindex)):
                    self._arrive_at(device, tags)

    def _macvlan_children(self, host: Host, link: Link, tags: Tags, *, sender: DeviceId | None) -> None:
        for device, child in macvlans_of(self._index, DeviceId(host.inode, link.ifindex)):
            if device == sender or (sender is not None and child.mode not in (None, "bridge")):
                continue
            if self._for(child):
                other = self._hosts(device.netns)
                if other is not None:
                    self.receive(other, child, tags, True)


def dark(link: Link) -> bool:
    """No carrier where carrier means something: what is sent meets the no-op qdisc (a bridge has one while a port has)."""
    return link.up and not link.carrier and link.kind in ("veth", "physical", "vlan", "macvlan", "bridge", "bond", "team")


def far_switches(index: SnapshotIndex, device: DeviceId) -> list[DeviceId]:
    """The VXLAN ports of other namespaces' Open vSwitch datapaths with the same UDP port: where the flows of this one may lead."""
    link = index.link(device)
    if link is None or link.vxlan is None or not link.vxlan.external:
        return []
    found: list[DeviceId] = []
    for namespace in index.snapshot.namespaces:
        for other in namespace.links if namespace.inode != device.netns else ():
            if other.vxlan is None or not other.vxlan.external or other.vxlan.port != link.vxlan.port or other.master is None:
                continue
            switch = index.link(DeviceId(namespace.inode, other.master))
            if switch is not None and switch.kind == "openvswitch":
                found.append(DeviceId(namespace.inode, other.ifindex))
    return found


def macvlans_of(index: SnapshotIndex, device: DeviceId) -> list[tuple[DeviceId, Link]]:
    """The macvlan devices on top of a device, in whatever namespace they are."""
    key = "macvlans"
    if key not in index.prepared:
        found: dict[DeviceId, list[tuple[DeviceId, Link]]] = {}
        for namespace in index.snapshot.namespaces:
            for link in namespace.links:
                if link.kind in ("macvlan", "macvtap"):
                    below = link.peer or (DeviceId(namespace.inode, link.lower) if link.lower is not None else None)
                    if below is not None:
                        found.setdefault(below, []).append((DeviceId(namespace.inode, link.ifindex), link))
        index.prepared[key] = found
    table: dict[DeviceId, list[tuple[DeviceId, Link]]] = index.prepared[key]
    return table.get(device, [])
