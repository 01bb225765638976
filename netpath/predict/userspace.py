"""Tunnels that processes make: what a process reads from a device and sends to its twin on another node.

Nothing in the kernel says what such a process does. What identifies a tunnel here is the same process name with a UDP socket on
the same port at both ends: around a TUN device (Flannel's udp backend, which sends the bare packet and takes one from
its TTL on each side), or around a veth that a capture listens on (Weave's sleeve, whose frames carry 20 bytes of header).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from netpath.model.snapshot import DeviceId, Link, Socket
from netpath.predict import addresses as ip
from netpath.predict.engine import Engine, Walk
from netpath.predict.host import Host
from netpath.predict.packet import USER_SPACE, Encapsulated, Frame, Packet
from netpath.predict.route import Query, lookup, select_address

_SLEEVE_HEADER = 20
_OWN_PORTS = frozenset({53, 67, 68, 123, 5353})
"""Ports of services that every node runs; no tunnel uses them."""


@dataclass(frozen=True, slots=True)
class Twin:
    """The process at the other end, and the device it writes to."""

    host: Host
    device: Link
    local: Socket
    remote: Socket


class UserSpace(Engine):
    def user_space(self, walk: Walk, host: Host, link: Link, frame: Frame) -> None:
        bare = link.kind in ("tun", "tap") and link.link_type != "ether"
        twins = self._nearest(host, self._tun_twins(host, link, frame.packet) if bare else self._capture_twins(host, link, frame))
        places = {(self._address(each), each.remote.port): each for each in twins}
        if len(places) != 1:
            what = "several processes could be" if places else "no process is known that could be"
            walk.doubt(f"a process takes it from {link.name} in {host.name}; {what} at the other end")
            self.end_unknown(walk, host, link)
            return
        ((address, _), twin), *_ = places.items()
        if address is None:
            walk.doubt(f"the address of {twin.remote.process} in {twin.host.name} is not known")
            self.end_unknown(walk, host, link)
            return
        walk.stage("userspace", process=twin.local.process, device=link.name)
        if bare:
            if frame.packet.ttl <= 1:
                self.drop(walk, host, link, "NOT_SPECIFIED", f"its TTL ran out in {twin.local.process}")
                return
            inner = Encapsulated("relay", 0, packet=replace(frame.packet, ttl=frame.packet.ttl - 1))
        else:
            inner = Encapsulated("sleeve", _SLEEVE_HEADER, frame=frame)
        outer = Packet(
            family=ip.family_of(address),
            src="",
            dst=address,
            protocol="udp",
            sport=twin.local.port,
            dport=twin.remote.port,
            ttl=host.default_ttl(ip.family_of(address)),
            inner=inner,
        )
        walk.stage("encap", outer.length - frame.packet.length, kind=inner.kind, remote=address)
        self.remember(walk, host)
        walk.connection, walk.mark, walk.physical_in, walk.prerouted = None, 0, None, False
        bound = twin.local.address if twin.local.address not in ("0.0.0.0", "::", "*") else None
        self.later(walk, lambda: self.send(walk, host, outer, source=bound))

    def _sockets(self, host: Host) -> list[Socket]:
        return [
            item
            for item in host.namespace.sockets or ()
            if item.protocol == "udp"
            and item.process
            and item.port not in _OWN_PORTS
            and not item.connected
            and not ip.is_loopback(item.address)
        ]

    def _pairs(self, host: Host) -> list[tuple[Host, Socket, Socket]]:
        """Sockets here and in other namespaces of the same process name and port."""
        here = {(item.process, item.port): item for item in self._sockets(host)}
        found: list[tuple[Host, Socket, Socket]] = []
        for namespace in self.index.snapshot.namespaces:
            other = self.host(namespace.inode) if namespace.inode != host.inode else None
            if other is None:
                continue
            for item in self._sockets(other):
                mine = here.get((item.process, item.port))
                if mine is not None:
                    found.append((other, mine, item))
        return found

    def _tun_twins(self, host: Host, link: Link, packet: Packet) -> list[Twin]:
        """Nodes with a TUN device of the same process that reach the destination without it."""
        found: list[Twin] = []
        for other, local, remote in self._pairs(host):
            route = lookup(other, Query(family=packet.family, dst=packet.dst))
            devices = [other.links.get(choice.device) for choice in route.choices if choice.device is not None]
            here = route.type == "local"
            if route.error is not None or not (here or (devices and self._near(route.prefix_length))):
                continue
            for device in other.namespace.links:
                if device.kind == "tun" and (here or device not in devices):
                    found.append(Twin(other, device, local, remote))
        return found

    def _near(self, length: int) -> bool:
        """A default route reaches everything and says nothing."""
        return length > 0

    def _capture_twins(self, host: Host, link: Link, frame: Frame) -> list[Twin]:
        """Nodes with a captured veth of their own from which the destination's MAC is reached."""
        found: list[Twin] = []
        for other, local, remote in self._pairs(host):
            for device in other.namespace.links:
                if not self._captured(other, device):
                    continue
                heard = self.segment.hear(other, device, frame.dst or ip.BROADCAST_MAC, frame.src or "", frame.tags)
                if heard.devices and all(twin.device is not device for twin in found):
                    found.append(Twin(other, device, local, remote))
        return found

    def _captured(self, host: Host, link: Link) -> bool:
        raise NotImplementedError

    def _nearest(self, host: Host, twins: list[Twin]) -> list[Twin]:
        """Nodes of separate networks may have the same address: of those, the ones on a link with `host`, if any is.

        One with an address of `host`'s own is in another network: what is sent there stays here.
        """
        own = {item.address for item in host.namespace.addresses}
        by_address: dict[str | None, list[Twin]] = {}
        for twin in twins:
            if self._address(twin) in own:
                continue
            by_address.setdefault(self._address(twin), []).append(twin)
        found: list[Twin] = []
        for address, same in by_address.items():
            linked = self._linked(host, address) if address is not None and len(same) > 1 else frozenset()
            found += [twin for twin in same if twin.host.inode in linked] or same
        return found

    def _linked(self, host: Host, address: str) -> frozenset[int]:
        """The namespaces on the link by which `host` sends to an address; none when a router is between."""
        route = lookup(host, Query(family=ip.family_of(address), dst=address))
        choice = next(iter(route.choices), None)
        link = host.links.get(choice.device) if choice is not None and choice.device is not None else None
        if choice is None or link is None or (choice.nexthop is not None and choice.nexthop.gateway is not None):
            return frozenset()
        key = ("linked", host.inode, link.ifindex)
        if key not in self.index.prepared:
            self.index.prepared[key] = frozenset()  # for a link that is itself behind the process
            heard = self.segment.hear(host, link, ip.BROADCAST_MAC, link.mac or "")
            self.index.prepared[key] = frozenset(device.netns for device in heard.devices)
        found: frozenset[int] = self.index.prepared[key]
        return found

    def relayed(self, host: Host, link: Link) -> list[DeviceId]:
        twins = [
            Twin(other, device, local, remote)
            for other, local, remote in self._pairs(host)
            for device in other.namespace.links
            if self._captured(other, device)
        ]
        found: list[DeviceId] = []
        for twin in self._nearest(host, twins):
            place = DeviceId(twin.host.inode, twin.device.ifindex)
            if place not in found:
                found.append(place)
        return found

    def _address(self, twin: Twin) -> str | None:
        if twin.remote.address not in ("0.0.0.0", "::", "*"):
            return twin.remote.address
        return self.node_address(twin.host)

    def node_address(self, host: Host) -> str | None:
        found = lookup(host, Query(family=4, dst="0.0.0.0"))
        device = next((choice.device for choice in found.choices), None)
        if device is None:
            device = next(
                (d.ifindex for d in host.namespace.links if d.kind in ("veth", "physical") and host.on_device.get((d.ifindex, 4))),
                None,
            )
        return select_address(host, device, None, 0) if device is not None else None

    def unwrap(self, walk: Walk, host: Host, link: Link | None, packet: Packet) -> bool:
        inner = packet.inner
        if inner is None or inner.kind not in USER_SPACE:
            return False
        carried = inner.packet if inner.packet is not None else (inner.frame.packet if inner.frame is not None else None)
        assert carried is not None
        walk.stage("decap", carried.length - packet.length, kind=inner.kind)
        self.remember(walk, host)
        walk.connection, walk.mark, walk.physical_in, walk.prerouted = None, 0, None, False
        process = next((item.process for item in self._sockets(host) if item.port == packet.dport), None)
        walk.stage("userspace", process=process)
        if inner.kind == "relay":
            device = next((each for each in host.namespace.links if each.kind == "tun" and each.up), None)
            if device is None or carried.ttl <= 1:
                self.drop(
                    walk,
                    host,
                    device,
                    "NOT_SPECIFIED",
                    f"{process or 'the process'} in {host.name} has no TUN device to give it to",
                )
                return True
            older = Frame(replace(carried, ttl=carried.ttl - 1))
            self.later(walk, lambda: self.receive(walk, host, device, older, True))
            return True
        frame = inner.frame
        assert frame is not None
        out = next((each for each in host.namespace.links if self._captured(host, each)), None)
        if out is not None:
            self.later(walk, partial(self.transmit, walk, host, out, frame))
            return True
        self.drop(walk, host, link, "NOT_SPECIFIED", f"{process or 'the process'} in {host.name} has no device to give it to")
        return True
