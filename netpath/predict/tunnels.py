"""Tunnel devices of the kernel: what they wrap a packet in, where that goes, and who unwraps it.

Sources: drivers/net/vxlan/vxlan_core.c (vxlan_xmit, vxlan_rcv), net/ipv4/ipip.c, ip_tunnel.c, ip_gre.c; RFC 7348, RFC 2003.
"""

from __future__ import annotations

from dataclasses import dataclass
from shlex import quote

from netpath.model.snapshot import DeviceId, FdbEntry, Link, Vxlan
from netpath.predict import addresses as ip
from netpath.predict.checks import inside
from netpath.predict.engine import Engine, Walk
from netpath.predict.host import Host
from netpath.predict.packet import Encapsulated, Frame, Packet
from netpath.predict.route import Query, lookup
from netpath.predict.segment import Learned, Run

ZERO_MAC = "00:00:00:00:00:00"
VXLAN_HEADER = 8
_DEPTH = 3
_PROTOCOLS = {"ipip": ("4", 0), "gre": ("47", 4), "sit": ("41", 0)}


@dataclass(frozen=True, slots=True)
class Remote:
    """One destination of a VXLAN device's forwarding entry."""

    share: float
    address: str
    port: int
    vni: int
    via: int | None


class Tunnels(Engine):
    def encapsulate(self, walk: Walk, host: Host, link: Link, frame: Frame) -> None:
        if link.kind == "vxlan" and link.vxlan is not None:
            self._vxlan(walk, host, link, frame)
        elif link.kind in _PROTOCOLS and link.tunnel is not None and not link.tunnel.external:
            self._ip_tunnel(walk, host, link, frame)
        else:
            walk.doubt(f"{link.name} in {host.name} is a {link.kind} device, which netpath does not follow")
            self.end_unknown(walk, host, link)

    # VXLAN

    def _remotes(self, host: Host, link: Link, mac: str, learned: Learned) -> list[Remote]:
        """The remotes for a MAC: of its own entry, learned since, else the device's default ones (every one gets a copy)."""
        assert link.vxlan is not None
        entries = host.remote_entries(link.ifindex, mac)
        taught = learned.vteps.get((host.inode, link.ifindex, mac))
        if taught is not None and not any(entry.state in ("permanent", "static") for entry in entries):
            return [Remote(1.0, taught, link.vxlan.port, link.vxlan.vni, link.vxlan.link)]
        entries = entries or host.remote_entries(link.ifindex, ZERO_MAC)
        found: list[Remote] = []
        for entry in entries:
            found += self._expand(host, link, entry)
        if not found and not host.namespace.fdb and link.vxlan.remote:
            # No forwarding tables at all were read: the device's own setting stands for the entry that the kernel made of it.
            found = [Remote(1.0, link.vxlan.remote, link.vxlan.port, link.vxlan.vni, link.vxlan.link)]
        return found

    def _expand(self, host: Host, link: Link, entry: FdbEntry) -> list[Remote]:
        assert link.vxlan is not None
        port, vni, via = entry.port or link.vxlan.port, entry.vni or link.vxlan.vni, entry.via or link.vxlan.link
        if entry.nexthop_id is not None:
            item = host.nexthops.get(entry.nexthop_id)
            members = [(item, 1)] if item is not None and not item.group else []
            if item is not None and item.group:
                members = [(host.nexthops[number], weight) for number, weight in item.group if number in host.nexthops]
            total = sum(weight for _, weight in members) or 1
            return [Remote(weight / total, m.gateway, port, vni, via) for m, weight in members if m is not None and m.gateway]
        return [Remote(1.0, entry.destination, port, vni, via)] if entry.destination else []

    def _vxlan(self, walk: Walk, host: Host, link: Link, frame: Frame) -> None:
        vxlan = link.vxlan
        assert vxlan is not None
        if vxlan.external or vxlan.vni_filter:
            walk.doubt(
                f"{link.name} in {host.name} takes its destinations from routes or programs (external), which netpath does not follow"
            )
            self.end_unknown(walk, host, link)
            return
        under = self._underlay_host(host, link)
        if under is None:
            walk.doubt(f"the namespace below {link.name} in {host.name} is not in the snapshot")
            self.end_unknown(walk, host, link)
            return
        mac = frame.dst or ip.BROADCAST_MAC
        remotes = self._remotes(host, link, mac, walk.learned)
        if not remotes:
            self.drop(
                walk,
                host,
                link,
                self.no_target("VXLAN_NO_REMOTE"),
                f"{link.name} in {host.name} has no forwarding entry for {mac} and no default remote",
                inside(host, f"bridge fdb append {mac} dev {quote(link.name)} dst VTEP"),
            )
            return
        by_hash = all(remote.share < 1 for remote in remotes)
        if len(remotes) > 1 and not by_hash:
            remotes = self._taken(walk, host, link, under, frame, remotes)
        for remote in remotes:
            child = walk if len(remotes) == 1 else walk.branch(remote.share)
            self._wrap(child, host, link, under, frame, remote)

    def _taken(self, walk: Walk, host: Host, link: Link, under: Host, frame: Frame, remotes: list[Remote]) -> list[Remote]:
        """Of several remotes that all get a copy, the one whose copy finds a taker."""
        for remote in remotes:
            for device, _ in self._reached(host, link, under, remote):
                other = self.host(device.netns)
                there = other.links.get(device.ifindex) if other is not None else None
                if other is None or there is None:
                    continue
                if there.mac is not None and there.mac.lower() == frame.dst:
                    return [remote]
                heard = self._beyond(other, there, frame, walk)
                if heard:
                    return [remote]
        return remotes[:1]

    def _beyond(self, host: Host, link: Link, frame: Frame, walk: Walk) -> bool:
        """Whether a frame that comes out of a VXLAN device is taken by somebody on the bridge it is a port of."""
        run = Run(
            self.index, self.host, self.underlay, self.relayed, frame.dst or ip.BROADCAST_MAC, frame.src or "", walk.learned.copy()
        )
        run.receive(host, link, frame.tags, False)
        return bool(run.heard.devices)

    def _underlay_host(self, host: Host, link: Link) -> Host | None:
        if link.lower_nsid is None:
            return host
        inode = host.peer_namespace(link.lower_nsid)
        return self.host(inode) if inode is not None else None

    def _outer(self, host: Host, link: Link, frame: Frame, remote: Remote) -> Packet:
        vxlan = link.vxlan
        assert vxlan is not None
        inner = frame.packet
        df = vxlan.df == "set" or (vxlan.df == "inherit" and (inner.df or inner.family == 6))
        return Packet(
            family=ip.family_of(remote.address),
            src="",
            dst=remote.address,
            protocol="udp",
            sport=None,
            dport=remote.port,
            ttl=vxlan.ttl or host.default_ttl(ip.family_of(remote.address)),
            tos=0 if vxlan.tos == 1 else vxlan.tos,
            df=df,
            inner=Encapsulated("vxlan", VXLAN_HEADER, vni=remote.vni, frame=frame),
        )

    def _wrap(self, walk: Walk, host: Host, link: Link, under: Host, frame: Frame, remote: Remote) -> None:
        vxlan = link.vxlan
        assert vxlan is not None
        if ip.is_multicast(remote.address):
            walk.doubt(f"{link.name} in {host.name} sends it to the group {remote.address}, which netpath does not follow")
            self.end_unknown(walk, host, link)
            return
        outer = self._outer(under, link, frame, remote)
        walk.stage("encap", outer.length - frame.packet.length, kind="vxlan", vni=remote.vni, remote=remote.address)
        if remote.address in under.held:
            walk.doubt(f"the remote {remote.address} of {link.name} is {under.name}'s own address: the device passes it on inside")
        self.scrub(walk, host, under)
        local = vxlan.local if vxlan.local and not ip.is_zero(vxlan.local) else None
        self.send(walk, under, outer, source=local, oif=remote.via, tunnel=link if under is host else None)

    def _reached(self, host: Host, link: Link, under: Host, remote: Remote) -> list[tuple[DeviceId, str]]:
        if self.nested >= _DEPTH or ip.is_multicast(remote.address):
            return []
        walker = type(self)(self.index, self.evaluators, nested=self.nested + 1, underlays=self.underlays)
        carried = Packet(family=4, src="0.0.0.0", dst="0.0.0.0", protocol="255", payload=8)
        outer = self._outer(under, link, Frame(carried, (link.mac or "").lower(), ip.BROADCAST_MAC), remote)
        assert link.vxlan is not None
        local = link.vxlan.local if link.vxlan.local and not ip.is_zero(link.vxlan.local) else None
        walker.send(Walk(), under, outer, source=local, oif=remote.via, tunnel=link if under is host else None)
        walker.work()
        return walker.decapsulated

    def underlay(self, host: Host, link: Link, mac: str, learned: Learned) -> list[tuple[DeviceId, str]]:
        under = self._underlay_host(host, link)
        if under is None or link.vxlan is None or link.vxlan.external:
            return []
        found: list[tuple[DeviceId, str]] = []
        for remote in self._remotes(host, link, mac, learned):
            key = (host.inode, link.ifindex, remote)
            if key not in self.underlays:
                self.underlays[key] = []
                self.underlays[key] = self._reached(host, link, under, remote)
            found += [each for each in self.underlays[key] if each not in found]
        return found

    def _vxlans(self, host: Host) -> list[tuple[Host, Link]]:
        """VXLAN devices whose outer packets belong to `host`: its own, and those that were moved to other namespaces."""
        key = ("vxlans", self.evaluators)
        if key not in self.index.prepared:
            found: dict[int, list[tuple[Host, Link]]] = {}
            for namespace in self.index.snapshot.namespaces:
                other = self.host(namespace.inode)
                for link in namespace.links:
                    if link.kind == "vxlan" and other is not None:
                        under = self._underlay_host(other, link)
                        if under is not None:
                            found.setdefault(under.inode, []).append((other, link))
            self.index.prepared[key] = found
        table: dict[int, list[tuple[Host, Link]]] = self.index.prepared[key]
        return table.get(host.inode, [])

    def decapsulate_vxlan(self, walk: Walk, host: Host, link: Link | None, packet: Packet) -> bool:
        """vxlan_rcv. False: no VXLAN device here has this port, and the datagram is an ordinary one."""
        inner = packet.inner
        if inner is None or inner.kind != "vxlan" or inner.frame is None:
            return False
        family = [
            (other, each)
            for other, each in self._vxlans(host)
            if each.vxlan is not None and each.vxlan.port == packet.dport and each.up and _listens(each.vxlan, packet.family)
        ]
        if not family:
            return False
        # One in metadata mode takes every VNI: what it means is for whoever reads the metadata.
        fits = [
            (other, each)
            for other, each in family
            if each.vxlan is not None and (each.vxlan.external or each.vxlan.vni == inner.vni)
        ]
        match = next(iter(fits), None)
        if match is None:
            self.drop(
                walk,
                host,
                link,
                "VXLAN_VNI_NOT_FOUND",
                f"no VXLAN device of {host.name} with port {packet.dport} has VNI {inner.vni}",
                inside(host, "ip -d link show type vxlan"),
            )
            return True
        other, device = match
        if self.nested:
            self.decapsulated.append((DeviceId(other.inode, device.ifindex), packet.src))
            return True
        frame = inner.frame
        if frame.src is not None and device.mac is not None and device.mac.lower() == frame.src:
            self.drop(walk, other, device, "LOCAL_MAC", f"the frame's source MAC is {device.name}'s own")
            return True
        if device.vxlan is not None and device.vxlan.learning and frame.src is not None:
            walk.learned.vteps[(other.inode, device.ifindex, frame.src)] = packet.src
        walk.stage("decap", frame.packet.length - packet.length, kind="vxlan", vni=inner.vni)
        self.scrub(walk, host, other)
        mine = frame.dst is None or ip.is_group_mac(frame.dst) or (device.mac or "").lower() == frame.dst
        self.later(walk, lambda: self.receive(walk, other, device, frame, mine))
        return True

    # IP in IP, GRE

    def _ip_tunnel(self, walk: Walk, host: Host, link: Link, frame: Frame) -> None:
        tunnel = link.tunnel
        assert tunnel is not None
        protocol, header = _PROTOCOLS[link.kind]
        packet = frame.packet
        # A tunnel without a remote (Calico's tunl0) sends to the next hop that the route names.
        remote = tunnel.remote if tunnel.remote and not ip.is_zero(tunnel.remote) else self._next_hop(host, link, packet)
        if remote is None:
            self.drop(
                walk,
                host,
                link,
                "NOT_SPECIFIED",
                f"{link.name} in {host.name} has no remote for {packet.dst}",
                inside(host, f"ip route add {packet.dst} via VTEP dev {quote(link.name)} onlink"),
            )
            return
        under = self._underlay_host(host, link) or host
        outer = Packet(
            family=4,
            src="",
            dst=remote,
            protocol=protocol,
            ttl=tunnel.ttl or packet.ttl,
            tos=packet.tos,
            df=tunnel.pmtudisc or packet.df,
            inner=Encapsulated(link.kind, header, packet=packet),
        )
        walk.stage("encap", outer.length - packet.length, kind=link.kind, remote=remote)
        self.scrub(walk, host, under)
        local = tunnel.local if tunnel.local and not ip.is_zero(tunnel.local) else None
        self.send(walk, under, outer, source=local, oif=tunnel.link, tunnel=link if under is host else None)

    def _next_hop(self, host: Host, link: Link, packet: Packet) -> str | None:
        found = lookup(host, Query(family=packet.family, dst=packet.dst))
        hop = next((choice.nexthop for choice in found.choices if choice.device == link.ifindex), None)
        return hop.gateway if hop is not None and hop.gateway is not None and ":" not in hop.gateway else None

    def decapsulate_ip(self, walk: Walk, host: Host, link: Link | None, packet: Packet) -> bool:
        """ip_tunnel_lookup: the tunnel with both ends, then with one, then the one with none."""
        inner = packet.inner
        if inner is None or inner.packet is None or inner.kind not in _PROTOCOLS:
            return False
        best: tuple[int, Link] | None = None
        for each in host.namespace.links:
            if each.kind != inner.kind or each.tunnel is None or not each.up:
                continue
            score = 0
            for end, address in ((each.tunnel.local, packet.dst), (each.tunnel.remote, packet.src)):
                if end and not ip.is_zero(end):
                    score = score + 1 if end == address and score >= 0 else -9
            if score >= 0 and (best is None or score > best[0]):
                best = (score, each)
        if best is None:
            return False
        device, carried = best[1], inner.packet
        walk.stage("decap", carried.length - packet.length, kind=inner.kind)
        self.scrub(walk, host, host)
        self.later(walk, lambda: self.receive(walk, host, device, Frame(carried), True))
        return True


def _listens(vxlan: Vxlan, family: int) -> bool:
    """Whether a VXLAN device's socket takes outer packets of a family: its local address or default remote decides (VXLAN_F_IPV6)."""
    if vxlan.external:
        return True
    return (6 if ":" in (vxlan.local or vxlan.remote or "") else 4) == family
