"""Open vSwitch datapaths, as one opaque step: their flow tables are not read, and what they do is guessed from where a frame is wanted.

A port's frames go to the switch (net/openvswitch/vport-netdev.c, netdev_frame_hook), which sends them out by other ports: by the one
behind which the destination is, or by a VXLAN port in metadata mode, whose remote end the flow says, to a switch like it.
"""

from __future__ import annotations

from netpath.model.snapshot import DeviceId, Link
from netpath.predict import addresses as ip
from netpath.predict.engine import Engine, Walk
from netpath.predict.host import Host
from netpath.predict.packet import Encapsulated, Frame, Packet
from netpath.predict.segment import far_switches
from netpath.predict.tunnels import VXLAN_HEADER


class Switch(Engine):
    def switched(self, walk: Walk, host: Host, switch: Link, link: Link, frame: Frame) -> None:
        """A port of an Open vSwitch datapath received a frame."""
        walk.doubt(f"{switch.name} in {host.name} is an Open vSwitch, whose flows netpath does not read: one opaque step")
        near = [port for port in self._local_ports(host, switch) if port is not link and self._leads(host, port, frame)]
        walk.stage("other", switch=switch.name, opaque=True)
        if len(near) == 1:
            self.later(walk, lambda: self.transmit(walk, host, near[0], frame))
            return
        ways = [] if near or link.kind == "vxlan" else self._tunnelled(host, switch, frame)
        address = self.node_address(ways[0][1]) if len(ways) == 1 else None
        if address is None:
            self.end_unknown(walk, host, link)
            return
        tunnel = ways[0][0]
        assert tunnel.vxlan is not None
        self.hop(walk, host, tunnel, "tx", frame)
        outer = Packet(
            family=4,
            src="",
            dst=address,
            protocol="udp",
            sport=None,
            dport=tunnel.vxlan.port,
            ttl=host.default_ttl(4),
            inner=Encapsulated("vxlan", VXLAN_HEADER, frame=frame),
        )
        walk.stage("encap", outer.length - frame.packet.length, kind="vxlan", remote=address)
        self.scrub(walk, host, host)
        self.later(walk, lambda: self.send(walk, host, outer, source=None, tunnel=tunnel))

    def _local_ports(self, host: Host, switch: Link) -> list[Link]:
        return [port for port in host.ports[switch.ifindex] if port.kind != "vxlan"]

    def _leads(self, host: Host, port: Link, frame: Frame) -> bool:
        return bool(self.segment.hear(host, port, frame.dst or ip.BROADCAST_MAC, frame.src or "", frame.tags).devices)

    def _tunnelled(self, host: Host, switch: Link, frame: Frame) -> list[tuple[Link, Host]]:
        """The switch's tunnel ports, with the nodes behind which the destination is."""
        found: list[tuple[Link, Host]] = []
        for tunnel in host.ports[switch.ifindex]:
            for far in far_switches(self.index, DeviceId(host.inode, tunnel.ifindex)):
                other = self.host(far.netns)
                there = other.links.get(other.links[far.ifindex].master or 0) if other is not None else None
                if other is None or there is None:
                    continue
                if any(self._leads(other, port, frame) for port in self._local_ports(other, there)):
                    found.append((tunnel, other))
        return found
