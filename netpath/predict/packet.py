"""The packet on its way: what headers it has now, and how long it is. Immutable; every change makes a new one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from netpath.model.packet import Ethernet, Flow, Header, Headers, Icmp, Icmpv6, Ipv4, Ipv6, Opaque, Tcp, Udp, Vlan, VxlanHeader
from netpath.netfilter.types import Connection, PacketState

ETHERNET = 14
FRAGMENT_HEADER = 44
USER_SPACE = ("relay", "sleeve")
"""Kinds of encapsulation that processes do."""
VLAN = 4
_IP_HEADER = {4: 20, 6: 40}
_TRANSPORT = {"udp": 8, "tcp": 32, "icmp": 8, "icmpv6": 8}
"""A SYN and its answer carry 12 bytes of options (MSS, SACK permitted, window scale)."""
TPIDS = {"802.1Q": 0x8100, "802.1q": 0x8100, "802.1ad": 0x88A8, "802.1AD": 0x88A8}

Tags = tuple[tuple[int, int], ...]
"""VLAN tags, outermost first: (TPID, VLAN)."""


@dataclass(frozen=True, slots=True)
class Encapsulated:
    """What an outer packet carries: a frame (`frame` set) or an IP packet (`packet` set), behind a tunnel header."""

    kind: str
    """vxlan, ipip, sit, gre, or relay (the bare packet in a datagram that a process sent)."""
    header: int
    """Bytes of the tunnel's own header between the outer IP or UDP header and what is carried."""
    vni: int | None = None
    frame: Frame | None = None
    packet: Packet | None = None

    @property
    def length(self) -> int:
        if self.frame is not None:
            return self.header + ETHERNET + VLAN * len(self.frame.tags) + self.frame.packet.length
        return self.header + (self.packet.length if self.packet is not None else 0)


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet. `payload` is the bytes after the transport header unless it carries another packet."""

    family: int
    src: str
    dst: str
    protocol: str
    """udp, tcp, icmp, icmpv6, or the protocol's number as text."""
    sport: int | None = None
    dport: int | None = None
    flags: str = "S"
    icmp_type: int | None = None
    icmp_code: int = 0
    icmp_id: int | None = None
    ttl: int = 64
    tos: int = 0
    df: bool = False
    payload: int = 0
    inner: Encapsulated | None = None
    fragment: int | None = None
    """The IP length of its first fragment, once it travels in fragments; that one carries the headers and the probe's mark."""

    @property
    def header_length(self) -> int:
        """Bytes of the IP and transport headers."""
        return _IP_HEADER[self.family] + _TRANSPORT.get(self.protocol, 0)

    @property
    def length(self) -> int:
        whole = self.header_length + (self.inner.length if self.inner is not None else self.payload)
        return whole if self.fragment is None else min(whole, self.fragment)

    def fragmented(self, mtu: int) -> Packet:
        """As the first of the fragments that `mtu` allows (RFC 791, 2.3; RFC 8200, 4.5)."""
        fixed = _IP_HEADER[self.family] + (8 if self.family == 6 else 0)
        return replace(self, fragment=(mtu - fixed) // 8 * 8 + fixed)

    @property
    def innermost(self) -> Packet:
        if self.inner is None:
            return self
        carried = self.inner.packet
        if self.inner.frame is not None:
            carried = self.inner.frame.packet
        return carried.innermost if carried is not None else self

    def headers(self) -> tuple[Header, ...]:
        """From this IP header down to the probe."""
        network: Header
        if self.family == 4:
            cut = self.fragment is not None
            network = Ipv4(self.src, self.dst, ttl=self.ttl, length=self.length, df=self.df, tos=self.tos, fragment=cut)
        else:
            extensions = (FRAGMENT_HEADER,) if self.fragment is not None else ()
            network = Ipv6(self.src, self.dst, ttl=self.ttl, length=self.length, tos=self.tos, extensions=extensions)
        found: tuple[Header, ...] = (network,)
        if self.protocol == "udp":
            found += (Udp(self.sport, self.dport),)
        elif self.protocol == "tcp":
            found += (Tcp(self.sport, self.dport, flags=self.flags),)
        elif self.protocol == "icmp":
            found += (Icmp(self.icmp_type or 0, self.icmp_code, id=self.icmp_id),)
        elif self.protocol == "icmpv6":
            found += (Icmpv6(self.icmp_type or 0, self.icmp_code, id=self.icmp_id),)
        if self.inner is None:
            return found
        if self.inner.kind == "vxlan":
            found += (VxlanHeader(self.inner.vni or 0),)
        elif self.inner.header:
            found += (Opaque(self.inner.kind, self.inner.header),)
        if self.inner.frame is not None:
            return found + self.inner.frame.headers()
        return found + (self.inner.packet.headers() if self.inner.packet is not None else ())

    def state(self, mark: int, connection: Connection | None) -> PacketState:
        """What rules can match on."""
        return PacketState(
            family=self.family,
            src=self.src,
            dst=self.dst,
            protocol=self.protocol,
            sport=self.sport,
            dport=self.dport,
            tcp_flags=self.flags,
            icmp_type=self.icmp_type,
            icmp_code=self.icmp_code if self.icmp_type is not None else None,
            icmp_id=self.icmp_id,
            length=self.length,
            ttl=self.ttl,
            tos=self.tos,
            mark=mark,
            connection=connection,
        )

    def after(self, state: PacketState) -> Packet:
        """This packet with what a ruleset changed in it."""
        if (self.src, self.dst, self.sport, self.dport, self.ttl, self.tos) == (
            state.src,
            state.dst,
            state.sport,
            state.dport,
            state.ttl,
            state.tos,
        ):
            return self
        return replace(self, src=state.src, dst=state.dst, sport=state.sport, dport=state.dport, ttl=state.ttl, tos=state.tos)


@dataclass(frozen=True, slots=True)
class Frame:
    """A packet as a device carries it; MAC addresses are None where the device has no link-layer header."""

    packet: Packet
    src: str | None = None
    dst: str | None = None
    tags: Tags = ()

    def headers(self) -> Headers:
        return (Ethernet(self.src, self.dst), *(Vlan(vid, tpid) for tpid, vid in self.tags), *self.packet.headers())

    @property
    def length(self) -> int:
        """Bytes with the Ethernet header and tags."""
        return ETHERNET + VLAN * len(self.tags) + self.packet.length


def from_flow(flow: Flow, source: str) -> Packet:
    """The probe that `flow` asks about."""
    protocol = flow.protocol
    echo: int | None = None
    if protocol in ("icmp", "icmpv6"):
        protocol, echo = ("icmpv6", 128) if flow.family == 6 else ("icmp", 8)
    return Packet(
        family=flow.family,
        src=source,
        dst=flow.dst,
        protocol=protocol,
        sport=flow.sport,
        dport=flow.dport,
        icmp_type=echo,
        ttl=flow.ttl,
        df=flow.df,
        payload=flow.payload,
    )


def answer_to(packet: Packet, *, ttl: int = 64) -> Packet:
    """What the receiver of `packet` sends back: an echo reply, a SYN-ACK, the same payload."""
    return replace(
        packet,
        src=packet.dst,
        dst=packet.src,
        sport=packet.dport,
        dport=packet.sport,
        flags="SA" if packet.protocol == "tcp" else packet.flags,
        icmp_type={8: 0, 128: 129}.get(packet.icmp_type, packet.icmp_type) if packet.icmp_type is not None else None,
        ttl=ttl,
        tos=0,
    )
