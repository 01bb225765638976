"""A packet as a stack of headers, outermost first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias


@dataclass(frozen=True, slots=True)
class Ethernet:
    """RFC 894 framing, 14 bytes."""

    proto: ClassVar[str] = "ethernet"
    src: str | None = None
    dst: str | None = None


@dataclass(frozen=True, slots=True)
class Vlan:
    """An IEEE 802.1Q or 802.1ad tag, 4 bytes."""

    proto: ClassVar[str] = "vlan"
    vid: int
    tpid: int = 0x8100


@dataclass(frozen=True, slots=True)
class Ipv4:
    """RFC 791. `length` is the total length in bytes, this header included."""

    proto: ClassVar[str] = "ipv4"
    src: str
    dst: str
    ttl: int | None = None
    length: int | None = None
    df: bool | None = None
    tos: int | None = None
    fragment: bool = False


@dataclass(frozen=True, slots=True)
class Ipv6:
    """RFC 8200. `length` counts this header of 40 bytes too, so that it compares with IPv4's."""

    proto: ClassVar[str] = "ipv6"
    src: str
    dst: str
    ttl: int | None = None
    length: int | None = None
    tos: int | None = None
    extensions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Udp:
    """RFC 768. A port that prediction can't know (a VXLAN's source port is a hash) is None."""

    proto: ClassVar[str] = "udp"
    sport: int | None
    dport: int | None


@dataclass(frozen=True, slots=True)
class Tcp:
    """RFC 9293. `flags` as letters in the order of the header's bits, lowest first: ``S``, ``SA``, ``R``."""

    proto: ClassVar[str] = "tcp"
    sport: int | None
    dport: int | None
    flags: str = "S"
    seq: int | None = None
    ack: int | None = None


@dataclass(frozen=True, slots=True)
class Icmp:
    """RFC 792 (`proto` icmp) or RFC 4443 (`proto` icmpv6); `id` and `sequence` of an echo only."""

    proto: ClassVar[str] = "icmp"
    type: int
    code: int = 0
    id: int | None = None
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Icmpv6(Icmp):
    """RFC 4443."""

    proto: ClassVar[str] = "icmpv6"


@dataclass(frozen=True, slots=True)
class VxlanHeader:
    """RFC 7348, 8 bytes."""

    proto: ClassVar[str] = "vxlan"
    vni: int


@dataclass(frozen=True, slots=True)
class Opaque:
    """Bytes between two headers that netpath knows, which it can't name (a sleeve's framing, an unknown protocol)."""

    proto: ClassVar[str] = "opaque"
    name: str
    length: int


Header: TypeAlias = Ethernet | Vlan | Ipv4 | Ipv6 | Udp | Tcp | Icmp | Icmpv6 | VxlanHeader | Opaque
Headers: TypeAlias = tuple[Header, ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """The packet that is asked about: what a verb's arguments come down to.

    `src` may be None: the kernel's source address choice decides. `payload` is bytes after the transport header (0 for a TCP
    SYN). `sport` None: ephemeral, so a rule that matches source ports can't be decided.
    """

    netns: int
    dst: str
    protocol: str
    """``udp``, ``tcp`` or ``icmp`` (ICMPv6 when `dst` is IPv6)."""
    src: str | None = None
    sport: int | None = None
    dport: int | None = None
    payload: int = 64
    df: bool = False
    ttl: int = 64
    mark: int = 0
    bound_device: str | None = None

    @property
    def family(self) -> int:
        return 6 if ":" in self.dst else 4
