"""Devices: what happens to a frame below the IP stack.

Sources: net/core/dev.c (__dev_queue_xmit, __netif_receive_skb_core), drivers/net/veth.c, net/8021q, net/bridge,
net/bridge/br_netfilter_hooks.c, drivers/net/macvlan.c, loopback.c.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from shlex import quote

from netpath.model.index import canonical
from netpath.model.path import Delivery
from netpath.model.snapshot import DeviceId, Link
from netpath.predict import addresses as ip
from netpath.predict import bridge as bridging
from netpath.predict.checks import inside
from netpath.predict.engine import Engine, Walk
from netpath.predict.host import Host
from netpath.predict.packet import ETHERNET, TPIDS, VLAN, Frame, Packet
from netpath.predict.route import Query, lookup
from netpath.predict.segment import dark, macvlans_of

_CONNECTED = frozenset({"REACHABLE", "PERMANENT", "NOARP"})
_SINKS = ("dummy", "ifb", "nlmon")
_FRAME_SLACK = ETHERNET + VLAN
"""What is_skb_forwardable allows beyond the MTU: the Ethernet header and one tag."""


class Layer2(Engine):
    """From `transmit` to the next device's `receive`."""

    def transmit(self, walk: Walk, host: Host, link: Link, frame: Frame) -> None:
        if not link.up:
            self.drop(
                walk,
                host,
                link,
                "QDISC_DROP",
                f"{link.name} in {host.name} is down",
                inside(host, f"ip link set dev {quote(link.name)} up"),
            )
            return
        if dark(link):
            self.drop(
                walk, host, link, "QDISC_DROP", f"{link.name} in {host.name} has no carrier", self._carrier_remedy(host, link)
            )
            return
        self._programs(walk, host, link, "egress")
        self.hop(walk, host, link, "tx", frame)
        if link.kind == "veth":
            self._cross_veth(walk, host, link, frame)
        elif link.kind == "loopback":
            self._turn_around(walk, host, link, frame)
        elif link.kind == "bridge":
            self._from_bridge(walk, host, link, frame)
        elif link.kind == "vlan":
            self._onto_parent(walk, host, link, frame)
        elif link.kind in ("vxlan", "ipip", "sit", "gre", "gretap", "ip6tnl", "ip6gre", "geneve", "wireguard"):
            self.encapsulate(walk, host, link, frame)
        elif link.kind in ("macvlan", "macvtap", "ipvlan", "ipvtap"):
            self._from_macvlan(walk, host, link, frame)
        elif link.kind in ("bond", "team"):
            self._from_bond(walk, host, link, frame)
        elif link.kind in ("tun", "tap"):
            self.user_space(walk, host, link, frame)
        elif link.kind in _SINKS:
            self.drop(
                walk, host, link, "NOT_SPECIFIED", f"{link.name} in {host.name} is a {link.kind} device: it discards everything"
            )
        elif link.kind == "physical":
            walk.doubt(f"it leaves this machine by {link.name}; what lies beyond is not in the snapshot")
            self.end_unknown(walk, host, link, Delivery(self.index.netns_ref(host.inode), "wire"))
        else:
            walk.doubt(f"{link.name} is a {link.kind} device, which netpath does not follow")
            self.end_unknown(walk, host, link)

    def _carrier_remedy(self, host: Host, link: Link) -> str:
        peer = self.index.peer(DeviceId(host.inode, link.ifindex))
        other = self.host(peer.netns) if peer is not None else None
        down = next((port for port in host.ports[link.ifindex] if not port.up), None) if link.kind == "bridge" else None
        if down is not None:
            return inside(host, f"ip link set dev {quote(down.name)} up")
        if peer is None or other is None:
            return inside(host, f"ip link show dev {quote(link.name)}")
        there = other.links[peer.ifindex]
        return inside(other, f"ip link set dev {quote(there.name)} up")

    def _programs(self, walk: Walk, host: Host, link: Link, direction: str) -> None:
        for program in link.programs:
            if direction in program.hook or (direction == "ingress" and program.hook == "xdp") or program.hook == "netkit":
                walk.doubt(f"a program ({program.hook}: {program.name}) on {link.name} in {host.name} may redirect or change it")

    def _cross_veth(self, walk: Walk, host: Host, link: Link, frame: Frame) -> None:
        here = DeviceId(host.inode, link.ifindex)
        peer = self.index.peer(here)
        other = self.host(peer.netns) if peer is not None else None
        if peer is None or other is None:
            if link.peer is not None or link.lower is not None:
                walk.doubt(f"the peer of {link.name} in {host.name} is in a namespace that the snapshot does not have")
                self.end_unknown(walk, host, link)
            else:
                self.drop(walk, host, link, "NOT_SPECIFIED", f"the veth {link.name} in {host.name} has no peer")
            return
        there = other.links[peer.ifindex]
        if not there.up:
            self.drop(
                walk,
                host,
                link,
                "NOT_SPECIFIED",
                f"the other end of {link.name}, {there.name} in {other.name}, is down",
                inside(other, f"ip link set dev {quote(there.name)} up"),
            )
            return
        if frame.length > there.mtu + _FRAME_SLACK:
            self.drop(
                walk,
                host,
                link,
                "NOT_SPECIFIED",
                f"a frame of {frame.length} bytes is too long for {there.name} in {other.name} (MTU {there.mtu})",
                inside(other, f"ip link set dev {quote(there.name)} mtu {link.mtu}"),
            )
            return
        self.scrub(walk, host, other)
        walk.stage("veth")
        mine = self._mine(there, frame)
        self.later(walk, lambda: self.receive(walk, other, there, frame, mine))

    def _mine(self, link: Link, frame: Frame) -> bool:
        if frame.dst is None or link.link_type != "ether":
            return True
        return ip.is_group_mac(frame.dst) or (link.mac is not None and link.mac.lower() == frame.dst)

    def _turn_around(self, walk: Walk, host: Host, link: Link, frame: Frame) -> None:
        # loopback_xmit keeps the conntrack entry and the mark: the packet does not leave the stack.
        self.later(walk, lambda: self.receive(walk, host, link, frame, True))

    def _onto_parent(self, walk: Walk, host: Host, link: Link, frame: Frame) -> None:
        other, below = self._below(host, link)
        if other is None or below is None or link.vlan_id is None:
            walk.doubt(f"the device below {link.name} in {host.name} is not in the snapshot")
            self.end_unknown(walk, host, link)
            return
        tag = (TPIDS.get(link.vlan_protocol or "802.1Q", 0x8100), link.vlan_id)
        if other.inode != host.inode:
            self.remember(walk, host)
        tagged = replace(frame, tags=(tag, *frame.tags))
        self.later(walk, lambda: self.transmit(walk, other, below, tagged))

    def _below(self, host: Host, link: Link) -> tuple[Host | None, Link | None]:
        if link.peer is not None:
            other = self.host(link.peer.netns)
            return other, other.links.get(link.peer.ifindex) if other is not None else None
        return host, host.links.get(link.lower) if link.lower is not None else None

    def _from_bond(self, walk: Walk, host: Host, link: Link, frame: Frame) -> None:
        slaves = [port for port in host.ports[link.ifindex] if port.up and port.carrier]
        if not slaves:
            self.drop(walk, host, link, "NOT_SPECIFIED", f"{link.name} in {host.name} has no member that is up")
            return
        if len(slaves) > 1:
            walk.doubt(f"which member of {link.name} in {host.name} sends it depends on the bond's policy")
        slave = slaves[0]
        self.later(walk, lambda: self.transmit(walk, host, slave, frame))

    def _from_macvlan(self, walk: Walk, host: Host, link: Link, frame: Frame) -> None:
        other, below = self._below(host, link)
        if other is None or below is None:
            walk.doubt(f"the device below {link.name} in {host.name} is not in the snapshot")
            self.end_unknown(walk, host, link)
            return
        if link.kind.startswith("ipvlan"):
            walk.doubt(f"{link.name} is an {link.kind} device; only its way to the device below is followed")
        elif link.mode in (None, "bridge") and frame.dst is not None:
            for device, child in macvlans_of(self.index, DeviceId(other.inode, below.ifindex)):
                if child.mac is not None and child.mac.lower() == frame.dst and child.up and child.mode in (None, "bridge"):
                    target = self.host(device.netns)
                    if target is not None:
                        self.scrub(walk, host, target)
                        self.later(walk, partial(self.receive, walk, target, child, frame, True))
                        return
        self.later(walk, lambda: self.transmit(walk, other, below, frame))

    # Arriving

    def receive(self, walk: Walk, host: Host, link: Link, frame: Frame, mine: bool) -> None:
        note = None
        if link.kind == "vlan":
            note = "a VLAN device's own rx is not visible to the receive tracepoint"
        self._programs(walk, host, link, "ingress")
        self.hop(walk, host, link, "rx", frame, note)
        if frame.tags:
            below = host.vlan_devices.get((link.ifindex, frame.tags[0][1]))
            if below is not None and below.up:
                inner = replace(frame, tags=frame.tags[1:])
                self.receive(walk, host, below, inner, mine or self._mine(below, inner))
                return
        master = host.links.get(link.master) if link.master is not None else None
        if master is not None and master.kind == "bridge":
            self._enter_bridge(walk, host, master, link, frame, mine)
            return
        if master is not None and master.kind in ("bond", "team"):
            self.receive(walk, host, master, frame, mine or self._mine(master, frame))
            return
        if master is not None and master.kind == "openvswitch":
            self.switched(walk, host, master, link, frame)
            return
        if master is not None and master.kind == "vrf":
            walk.doubt(f"{link.name} in {host.name} is in the VRF {master.name}, whose table netpath does not consult")
        elif master is not None:
            walk.doubt(
                f"{link.name} in {host.name} belongs to {master.name}, a {master.kind} device, which netpath does not follow"
            )
            self.end_unknown(walk, host, link)
            return
        for device, child in macvlans_of(self.index, DeviceId(host.inode, link.ifindex)):
            if frame.dst is not None and child.mac is not None and child.mac.lower() == frame.dst and child.up and not frame.tags:
                target = self.host(device.netns)
                if target is not None:
                    self.scrub(walk, host, target)
                    self.receive(walk, target, child, frame, True)
                    return
        if frame.tags:
            tag = frame.tags[0][1]
            self.drop(
                walk,
                host,
                link,
                "UNHANDLED_PROTO",
                f"{link.name} in {host.name} has no device for VLAN {tag}",
                inside(host, f"ip link add link {quote(link.name)} name {quote(f'{quote(link.name)}.{tag}')} type vlan id {tag}"),
            )
            return
        if not mine:
            if self._captured(host, link):
                self.user_space(walk, host, link, frame)
                return
            self.drop(
                walk,
                host,
                link,
                "OTHERHOST",
                f"the frame is for {frame.dst}, not for {link.name} in {host.name} ({link.mac}): the sender's neighbour entry is stale",
                "ip neigh flush all  # where the frame was sent",
            )
            return
        self.arrive(walk, host, link, frame.packet, mine)

    def _captured(self, host: Host, link: Link) -> bool:
        return self.index.is_tap(DeviceId(host.inode, link.ifindex))

    # Bridges

    def _calls_iptables(self, host: Host, bridge: Link, packet: Packet) -> bool:
        if packet.family == 4:
            return host.bridge_calls_iptables or bool(bridge.bridge is not None and bridge.bridge.nf_call_iptables)
        return host.bridge_calls_ip6tables or bool(bridge.bridge is not None and bridge.bridge.nf_call_ip6tables)

    def _enter_bridge(self, walk: Walk, host: Host, bridge: Link, port: Link, frame: Frame, mine: bool) -> None:
        if not bridge.up:
            self.drop(
                walk,
                host,
                port,
                "NOT_SPECIFIED",
                f"the bridge {bridge.name} in {host.name} is down",
                inside(host, f"ip link set dev {quote(bridge.name)} up"),
            )
            return
        if port.port is not None and port.port.state not in ("forwarding", "learning"):
            self.drop(
                walk,
                host,
                port,
                "BRIDGE_INGRESS_STP_STATE",
                f"the bridge port {port.name} in {host.name} is in state {port.port.state}",
                inside(host, f"bridge link set dev {quote(port.name)} state 3"),
            )
            return
        if bridge.mac is not None and frame.dst == bridge.mac.lower():
            mine = True
        if not self._calls_iptables(host, bridge, frame.packet):
            self._bridge(walk, host, bridge, port, frame, mine)
            return
        walk.physical_in = port.name
        before = frame.packet

        def then(child: Walk, packet: Packet) -> None:
            child.prerouted = True
            changed = replace(frame, packet=packet)
            if packet.dst == before.dst:
                self._bridge(child, host, bridge, port, changed, mine)
            else:
                self._bridged_dnat(child, host, bridge, port, changed)

        self.hook(walk, host, "prerouting", before, then, in_link=bridge)

    def _bridged_dnat(self, walk: Walk, host: Host, bridge: Link, port: Link, frame: Frame) -> None:
        """br_nf_pre_routing_finish: where the new destination is on the same bridge, the frame is bridged on; else it is routed."""
        packet = frame.packet
        query = Query(family=packet.family, dst=packet.dst, src=packet.src, iif=bridge.ifindex, mark=walk.mark, tos=packet.tos)
        found = lookup(host, query)
        choice = found.choices[0] if found.error is None and found.type == "unicast" and found.choices else None
        if choice is None or choice.device != bridge.ifindex or not host.forwarding(packet.family, bridge.name):
            up = replace(frame, dst=(bridge.mac or "").lower())
            self._up(
                walk, host, bridge, port, up, bridging.decide(host, bridge, port, up.dst or "", frame.tags, walk.learned.ports)
            )
            return
        target = choice.nexthop.gateway or packet.dst
        entry = host.neighbours.get((bridge.ifindex, canonical(target)))
        if entry is not None and entry.state in _CONNECTED and entry.mac is not None:
            self._bridge(walk, host, bridge, port, replace(frame, dst=entry.mac.lower(), src=(bridge.mac or "").lower()), False)
            return
        resolved = self.resolver.resolve(host, bridge, target, packet.src, walk.learned)
        if resolved.mac is None:
            self.drop(walk, host, bridge, "NEIGH_FAILED", resolved.cause or "", resolved.remedy)
            return
        # neigh->output goes through the bridge device, which remembers the port the frame came in by.
        sent = replace(frame, dst=resolved.mac, src=(bridge.mac or "").lower())
        self.hop(walk, host, bridge, "tx", sent)
        self._bridge(walk, host, bridge, port, sent, False)

    def _bridge(self, walk: Walk, host: Host, bridge: Link, port: Link, frame: Frame, mine: bool) -> None:
        """br_handle_frame_finish."""
        decision = bridging.decide(host, bridge, port, frame.dst or ip.BROADCAST_MAC, frame.tags, walk.learned.ports)
        if decision.refused is not None:
            remedy = inside(host, decision.remedy) if decision.remedy else None
            self.drop(walk, host, port, "NOT_SPECIFIED", f"{decision.refused} (bridge {bridge.name} in {host.name})", remedy)
            return
        if frame.src is not None and (port.port is None or port.port.learning):
            walk.learned.ports[(host.inode, bridge.ifindex, decision.vid, frame.src)] = port.ifindex
        if decision.local and not decision.flood:
            self._up(walk, host, bridge, port, frame, decision, mine)
            return
        if decision.port is not None:
            refused = bridging.refusal(bridge, port, decision.port, decision.vid)
            if refused is not None:
                self.drop(
                    walk,
                    host,
                    port,
                    "NOT_SPECIFIED",
                    f"{refused[0]} (bridge {bridge.name} in {host.name})",
                    inside(host, refused[1]),
                )
                return
            self._out(walk, host, bridge, port, decision.port, frame, decision)
            return
        self._flood(walk, host, bridge, port, frame, decision, mine)

    def _up(
        self, walk: Walk, host: Host, bridge: Link, port: Link, frame: Frame, decision: bridging.Decision, mine: bool = True
    ) -> None:
        tags = bridging.leave(bridge, decision.vid, decision.tags)
        if tags is None:
            self.drop(
                walk,
                host,
                port,
                "NOT_SPECIFIED",
                f"the bridge {bridge.name} in {host.name} itself is not a member of VLAN {decision.vid}",
                inside(host, f"bridge vlan add dev {quote(bridge.name)} vid {decision.vid} self"),
            )
            return
        walk.stage("bridge", bridge=bridge.name)
        lifted = replace(frame, tags=tags)
        self.receive(walk, host, bridge, lifted, mine or self._mine(bridge, lifted))

    def _flood(
        self, walk: Walk, host: Host, bridge: Link, port: Link | None, frame: Frame, decision: bridging.Decision, mine: bool
    ) -> None:
        """A destination the bridge does not know: every port sends a copy; the walk follows the one that finds a taker."""
        takers: list[Link] = []
        outside: list[Link] = []
        for target in decision.flood:
            tags = bridging.leave(target, decision.vid, decision.tags)
            if tags is None:
                continue
            heard = self.segment.hear(host, target, frame.dst or ip.BROADCAST_MAC, frame.src or "", tags, walk.learned.copy())
            if heard.devices:
                takers.append(target)
            elif heard.outside or self._leads_to_capture(host, target):
                outside.append(target)
        group = ip.is_group_mac(frame.dst or ip.BROADCAST_MAC)
        if group:
            walk.doubt(f"{frame.packet.dst} is for many receivers; one of them is shown")
            if decision.local and port is not None and not takers:
                self._up(walk, host, bridge, port, frame, decision, mine)
                return
        chosen = next(iter(takers or outside), None)
        if chosen is None:
            self.drop(
                walk,
                host,
                port or bridge,
                "OTHERHOST" if decision.flood else self.no_target("NOT_SPECIFIED"),
                f"the bridge {bridge.name} in {host.name} has no entry for {frame.dst}"
                + (", and no port leads to it: its copies end unread" if decision.flood else ", and no port to flood it to"),
                inside(host, f"bridge fdb show br {quote(bridge.name)}"),
            )
            return
        if len(takers) > 1 and not group:
            walk.doubt(f"{frame.dst} is behind several ports of {bridge.name} in {host.name}: each gets a copy; one is shown")
        elif not takers and len(outside) > 1:
            walk.doubt(f"{bridge.name} in {host.name} floods it, and several ports lead beyond the snapshot; one is shown")
        self._out(walk, host, bridge, port, chosen, frame, decision)

    def _leads_to_capture(self, host: Host, port: Link) -> bool:
        peer = self.index.peer(DeviceId(host.inode, port.ifindex))
        return peer is not None and peer.netns == host.inode and self._captured(host, host.links[peer.ifindex])

    def _out(
        self, walk: Walk, host: Host, bridge: Link, port: Link | None, target: Link, frame: Frame, decision: bridging.Decision
    ) -> None:
        """br_forward, with FORWARD and POSTROUTING of the IP rulesets where br_netfilter calls them."""
        tags = bridging.leave(target, decision.vid, decision.tags)
        assert tags is not None
        walk.stage("bridge", bridge=bridge.name)
        out = replace(frame, tags=tags)

        def push(child: Walk, packet: Packet) -> None:
            final = replace(out, packet=packet)
            if final.length - VLAN * len(final.tags) > target.mtu + _FRAME_SLACK:
                self.drop(
                    child,
                    host,
                    port or bridge,
                    "NOT_SPECIFIED",
                    f"a frame of {final.length} bytes is too long for the bridge port {target.name} in {host.name} (MTU {target.mtu})",
                    inside(host, f"ip link set dev {quote(target.name)} mtu {final.packet.length}"),
                )
                return
            child.physical_in = None
            self.transmit(child, host, target, final)

        if port is None or not self._calls_iptables(host, bridge, frame.packet):
            push(walk, frame.packet)
            return

        def post(child: Walk, packet: Packet) -> None:
            self.hook(child, host, "postrouting", packet, push, out_link=bridge, physical_out=target.name, bridged=True)

        self.hook(
            walk, host, "forward", frame.packet, post, in_link=bridge, out_link=bridge, physical_out=target.name, bridged=True
        )

    def _from_bridge(self, walk: Walk, host: Host, bridge: Link, frame: Frame) -> None:
        """br_dev_xmit: what the host's own stack sends through the bridge device."""
        decision = bridging.decide(host, bridge, None, frame.dst or ip.BROADCAST_MAC, frame.tags, walk.learned.ports)
        if decision.refused is not None:
            remedy = inside(host, decision.remedy) if decision.remedy else None
            self.drop(walk, host, bridge, "NOT_SPECIFIED", f"{decision.refused} (in {host.name})", remedy)
            return
        if decision.port is None:
            self._flood(walk, host, bridge, None, frame, decision, False)
            return
        refused = bridging.refusal(bridge, None, decision.port, decision.vid)
        if refused is not None:
            self.drop(
                walk, host, bridge, "NOT_SPECIFIED", f"{refused[0]} (bridge {bridge.name} in {host.name})", inside(host, refused[1])
            )
            return
        self._out(walk, host, bridge, None, decision.port, frame, decision)
