"""Network devices, as RTM_GETLINK and the bridge's VLAN dump tell them (include/uapi/linux/if_link.h, net/core/rtnetlink.c)."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from netpath.discover.nl import (
    AF_BRIDGE,
    Netlink,
    address,
    attribute,
    attributes,
    every_attribute,
    mac,
    network_number,
    number,
    text,
)
from netpath.model.snapshot import Bridge, BridgePort, BridgeVlan, IpTunnel, Link, Vxlan

_RTM_GETLINK = 18
_IFINFO = struct.Struct("=BxHiII")
_IFLA_EXT_MASK = 29
_RTEXT_FILTER_BRVLAN_COMPRESSED = 4
_RTEXT_FILTER_SKIP_STATS = 8

_FLAGS = (
    (0x1, "UP"), (0x2, "BROADCAST"), (0x4, "DEBUG"), (0x8, "LOOPBACK"), (0x10, "POINTOPOINT"), (0x20, "NOTRAILERS"),
    (0x80, "NOARP"), (0x100, "PROMISC"), (0x200, "ALLMULTI"), (0x400, "MASTER"), (0x800, "SLAVE"), (0x1000, "MULTICAST"),
    (0x2000, "PORTSEL"), (0x4000, "AUTOMEDIA"), (0x8000, "DYNAMIC"), (0x10000, "LOWER_UP"), (0x20000, "DORMANT"),
    (0x40000, "ECHO"),
)  # fmt: skip
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_OPERSTATES = ("UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP")
_LINK_TYPES = {
    1: "ether", 32: "infiniband", 512: "ppp", 519: "rawip", 768: "ipip", 769: "tunnel6", 772: "loopback", 776: "sit", 778: "gre",
    823: "gre6", 824: "netlink", 826: "vsockmon", 65534: "none",
}  # fmt: skip
_MACVLAN_MODES = {1: "private", 2: "vepa", 4: "bridge", 8: "passthru", 16: "source"}
_IPVLAN_MODES = {0: "l2", 1: "l3", 2: "l3s"}
_BOND_MODES = ("balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb")
_PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
_VXLAN_DF = ("unset", "set", "inherit")
_VLAN_PROTOCOLS = {0x8100: "802.1Q", 0x88A8: "802.1ad"}
_NO_LOWER = frozenset({"vxlan", "geneve", "wireguard", "gtp", "bareudp", "bridge", "tun", "dummy"})
"""Kinds that name themselves in IFLA_LINK when they were made in another namespace: they have no lower device."""
_IPTUN = frozenset({"ipip", "sit", "ip6tnl"})
_GRE = frozenset({"gre", "gretap", "erspan", "ip6gre", "ip6gretap", "ip6erspan"})
_VTI = frozenset({"vti", "vti6"})

IPV4_CONF: Mapping[str, int] = {
    "forwarding": 1, "proxy_arp": 3, "rp_filter": 8, "arp_filter": 13, "disable_xfrm": 15, "disable_policy": 16, "arp_announce": 18,
    "arp_ignore": 19, "accept_local": 23, "src_valid_mark": 24, "proxy_arp_pvlan": 25, "route_localnet": 26,
    "ignore_routes_with_linkdown": 29, "bc_forwarding": 32,
}  # fmt: skip
"""Settings under net.ipv4.conf that change forwarding, with their place in IFLA_INET_CONF, counted from 1 (linux/ip.h)."""
IPV6_CONF: Mapping[str, int] = {
    "forwarding": 0, "accept_ra": 3, "proxy_ndp": 22, "disable_ipv6": 26, "use_oif_addrs_only": 37,
    "ignore_routes_with_linkdown": 39, "seg6_enabled": 44, "disable_policy": 48, "force_forwarding": 59,
}  # fmt: skip
"""The same of net.ipv6.conf and IFLA_INET6_CONF, counted from 0 (linux/ipv6.h)."""


@dataclass(slots=True)
class Read:
    """What one dump of links held."""

    links: list[Link]
    sysctls: dict[str, str]
    """The settings of each device, which come with it in one message instead of dozens of files under /proc/sys."""
    raw_names: dict[int, bytes]
    xdp: dict[int, list[int]]
    """Program ids on devices that have XDP programs."""


def read(netlink: Netlink) -> Read:
    """All devices of the socket's namespace, without the VLANs of bridge ports, checksum offload and programs. Raises OSError."""
    found = Read([], {}, {}, {})
    request = _IFINFO.pack(0, 0, 0, 0, 0) + attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
    for _, body in netlink.dump(_RTM_GETLINK, request):
        _one(body, found)
    found.links.sort(key=lambda link: link.ifindex)
    return found


def _one(body: bytes, found: Read) -> None:
    _, arphrd, ifindex, flags, _ = _IFINFO.unpack_from(body)
    table = attributes(body, _IFINFO.size)
    info = attributes(table[18]) if 18 in table else {}
    data = attributes(info[2]) if 2 in info else {}
    link_type = _LINK_TYPES.get(arphrd, f"[{arphrd}]")
    kind = text(info[1]) if 1 in info else "loopback" if link_type == "loopback" else "physical"
    raw_name = table.get(3, b"").split(b"\0", 1)[0]
    name = text(raw_name)
    words = [word for bit, word in _FLAGS if flags & bit]
    if flags & _IFF_UP and not flags & _IFF_RUNNING:
        words.append("NO-CARRIER")
    lower = number(table[5]) if 5 in table else 0
    nsid = struct.unpack("=i", table[37])[0] if 37 in table else None
    if lower == ifindex and kind in _NO_LOWER:
        lower = 0
    operstate = number(table.get(16, b"\0"))
    port = attributes(info[5]) if info.get(4, b"").startswith(b"bridge\0") and 5 in info else None
    found.raw_names[ifindex] = raw_name
    found.links.append(
        Link(
            ifindex=ifindex,
            name=name,
            kind=kind,
            mac=mac(table[1]) if 1 in table and link_type in ("ether", "loopback") else None,
            mtu=number(table.get(4, b"")),
            flags=tuple(sorted(words)),
            operstate=_OPERSTATES[operstate] if operstate < len(_OPERSTATES) else str(operstate),
            link_type=link_type,
            master=number(table[10]) if 10 in table else None,
            lower=lower or None,
            lower_nsid=nsid if nsid is not None and nsid >= 0 else None,
            qdisc=text(table[6]) if 6 in table else "noqueue",
            gso_max_size=number(table[41]) if 41 in table else None,
            gso_max_segs=number(table[40]) if 40 in table else None,
            vlan_id=number(data[1]) if kind == "vlan" and 1 in data else None,
            vlan_protocol=_vlan_protocol(data.get(5)) if kind == "vlan" else None,
            vxlan=_vxlan(data) if kind == "vxlan" else None,
            tunnel=_tunnel(kind, data),
            bridge=_bridge(data) if kind == "bridge" else None,
            port=_port(port) if port is not None else None,
            mode=_mode(kind, data),
            vrf_table=number(data[1]) if kind == "vrf" and 1 in data else None,
        )
    )
    if 26 in table:
        _conf(table[26], name.replace(".", "/"), found.sysctls)
    if 43 in table:
        xdp = attributes(table[43])
        if number(xdp.get(2, b"")):
            programs = [number(xdp[kind]) for kind in (5, 6, 7) if kind in xdp] or ([number(xdp[4])] if 4 in xdp else [])
            found.xdp[ifindex] = sorted(programs)


def _conf(spec: bytes, name: str, sysctls: dict[str, str]) -> None:
    families = attributes(spec)
    if socket.AF_INET in families:
        block = attributes(families[socket.AF_INET]).get(1, b"")
        values = struct.unpack(f"={len(block) // 4}i", block)
        for setting, place in IPV4_CONF.items():
            if place <= len(values):
                sysctls[f"net.ipv4.conf.{name}.{setting}"] = str(values[place - 1])
    if socket.AF_INET6 in families:
        block = attributes(families[socket.AF_INET6]).get(2, b"")
        values = struct.unpack(f"={len(block) // 4}i", block)
        for setting, place in IPV6_CONF.items():
            if place < len(values):
                sysctls[f"net.ipv6.conf.{name}.{setting}"] = str(values[place])


def _known(value: bytes | None) -> str | None:
    """An address, or None when it is absent or unspecified."""
    return address(value) if value is not None and any(value) else None


def _index(value: bytes | None) -> int | None:
    return (number(value) or None) if value is not None else None


def _vlan_protocol(value: bytes | None) -> str:
    protocol = network_number(value) if value is not None else 0x8100
    return _VLAN_PROTOCOLS.get(protocol, hex(protocol))


def _vxlan(data: Mapping[int, bytes]) -> Vxlan:
    def flag(kind: int, default: bool) -> bool:
        # COLLECT_METADATA and its like are flags in requests but carry a byte in dumps.
        return (number(data[kind]) != 0 if data[kind] else True) if kind in data else default

    df = number(data.get(29, b""))
    return Vxlan(
        vni=number(data.get(1, b"")),
        port=network_number(data.get(15, b"\x21\x18")),
        local=_known(data.get(4)) or _known(data.get(17)),
        remote=_known(data.get(2)) or _known(data.get(16)),
        link=_index(data.get(3)),
        learning=flag(7, True),
        ttl=number(data.get(5, b"")),
        tos=number(data.get(6, b"")),
        df=_VXLAN_DF[df] if df < len(_VXLAN_DF) else str(df),
        udp_csum=flag(18, True),
        external=flag(25, False),
        vni_filter=flag(30, False),
        proxy=flag(11, False),
        l2miss=flag(13, False),
        l3miss=flag(14, False),
        rsc=flag(12, False),
    )


def _tunnel(kind: str, data: Mapping[int, bytes]) -> IpTunnel | None:
    if kind in _IPTUN:
        link, local, remote, ttl, pmtudisc, external = 1, 2, 3, 4, 10, 19
    elif kind in _GRE:
        link, local, remote, ttl, pmtudisc, external = 1, 6, 7, 8, 10, 18
    elif kind in _VTI:
        link, local, remote, ttl, pmtudisc, external = 1, 4, 5, -1, -1, -1
    else:
        return None
    return IpTunnel(
        local=_known(data.get(local)),
        remote=_known(data.get(remote)),
        ttl=number(data.get(ttl, b"")),
        link=_index(data.get(link)),
        external=external in data,
        pmtudisc=number(data[pmtudisc]) != 0 if pmtudisc in data else True,
    )


def _bridge(data: Mapping[int, bytes]) -> Bridge:
    def value(kind: int, default: int) -> int:
        return number(data[kind]) if kind in data else default

    return Bridge(
        vlan_filtering=value(7, 0) != 0,
        vlan_protocol=_vlan_protocol(data.get(8)),
        default_pvid=value(39, 1),
        stp=value(5, 0) != 0,
        nf_call_iptables=value(36, 0) != 0,
        nf_call_ip6tables=value(37, 0) != 0,
        mcast_snooping=value(23, 1) != 0,
        group_fwd_mask=value(9, 0),
    )


def _port(data: Mapping[int, bytes]) -> BridgePort:
    def flag(kind: int, default: bool) -> bool:
        return number(data[kind]) != 0 if kind in data else default

    state = number(data.get(1, b"\3"))
    return BridgePort(
        state=_PORT_STATES[state] if state < len(_PORT_STATES) else str(state),
        hairpin=flag(4, False),
        learning=flag(8, True),
        flood=flag(9, True),
        mcast_flood=flag(27, True),
        bcast_flood=flag(30, True),
        isolated=flag(33, False),
        neigh_suppress=flag(32, False),
        proxy_arp=flag(10, False),
        backup_device=_index(data.get(34)),
        locked=flag(39, False),
    )


def _mode(kind: str, data: Mapping[int, bytes]) -> str | None:
    if kind in ("macvlan", "macvtap") and 1 in data:
        return _MACVLAN_MODES.get(number(data[1]))
    if kind in ("ipvlan", "ipvtap") and 1 in data:
        return _IPVLAN_MODES.get(number(data[1]))
    if kind == "bond" and 1 in data:
        mode = number(data[1])
        return _BOND_MODES[mode] if mode < len(_BOND_MODES) else str(mode)
    if kind == "tun" and 3 in data:
        return {1: "tun", 2: "tap"}.get(number(data[3]))
    return None


def read_vlans(netlink: Netlink) -> dict[int, tuple[BridgeVlan, ...]]:
    """The VLANs that bridges and their ports are members of, by ifindex. Raises OSError."""
    found: dict[int, tuple[BridgeVlan, ...]] = {}
    request = _IFINFO.pack(AF_BRIDGE, 0, 0, 0, 0) + attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_BRVLAN_COMPRESSED))
    for _, body in netlink.dump(_RTM_GETLINK, request):
        spec = attributes(body, _IFINFO.size).get(26)
        if spec is None:
            continue
        members: list[BridgeVlan] = []
        first = 0
        for kind, value in every_attribute(spec):
            if kind != 2 or len(value) != 4:
                continue
            flags, vid = struct.unpack("=HH", value)
            if flags & 0x8:
                first = vid
                continue
            start = first if flags & 0x10 else vid
            members.extend(BridgeVlan(each, bool(flags & 0x2), bool(flags & 0x4)) for each in range(start, vid + 1))
        found[_IFINFO.unpack_from(body)[2]] = tuple(sorted(members, key=lambda member: member.vid))
    return found


_SIOCETHTOOL = 0x8946
_ETHTOOL_GTXCSUM = 0x16


def checksum_offload(raw_names: Mapping[int, bytes]) -> dict[int, bool]:
    """Which devices of the calling thread's namespace leave transport checksums of sent packets to be filled in later.

    By the ethtool ioctl, whose answer is one word; the netlink family has to be looked up by name first and answers in bitsets.
    Devices that can't say, or are gone, are left out.
    """
    found: dict[int, bool] = {}
    value = (ctypes.c_uint32 * 2)()
    where = ctypes.addressof(value)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        for ifindex, name in raw_names.items():
            value[0], value[1] = _ETHTOOL_GTXCSUM, 0
            try:
                fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", name, where))
            except OSError:
                continue
            found[ifindex] = value[1] != 0
    return found
