"""Addresses, routes, policy rules, nexthop objects, neighbours and FDB entries, by rtnetlink (include/uapi/linux/rtnetlink.h)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from operator import itemgetter
from socket import inet_ntop
from typing import TypeVar

from netpath.discover.nl import AF_BRIDGE, Netlink, address, attributes, mac, network_number, number, text
from netpath.model.snapshot import Address, FdbEntry, Link, Neighbour, NextHop, NextHopObject, Route, Rule

T = TypeVar("T")

_RTM_GETADDR = 22
_RTM_GETROUTE = 26
_RTM_GETNEIGH = 30
_RTM_GETRULE = 34
_RTM_GETNEXTHOP = 106

_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")
_RULE = struct.Struct("=BBBBBBBBI")
_NHMSG = struct.Struct("=BBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_RTNH = struct.Struct("=HBBi")
_U32 = struct.Struct("=I")

FAMILIES: Mapping[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 6}
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
_TYPES = {
    0: "unspec", 1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable",
    8: "prohibit", 9: "throw", 10: "nat",
}  # fmt: skip
_PROTOCOLS = {
    0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated", 9: "ra", 10: "mrt", 11: "zebra", 12: "bird",
    13: "dnrouted", 14: "xorp", 15: "ntk", 16: "dhcp", 17: "mrouted", 18: "keepalived", 42: "babel", 186: "bgp", 187: "isis",
    188: "ospf", 189: "rip", 192: "eigrp",
}  # fmt: skip
"""Names that iproute2 has built in; other numbers stay numbers."""
_ROUTE_FLAGS = (
    (0x1, "dead"), (0x2, "pervasive"), (0x4, "onlink"), (0x8, "offload"), (0x10, "linkdown"), (0x20, "unresolved"), (0x40, "trap"),
    (0x4000, "rt_offload"), (0x8000, "rt_trap"),
)  # fmt: skip
_RTM_F_CLONED = 0x200
_ENCAPS = {1: "mpls", 2: "ip", 3: "ila", 4: "ip6", 5: "seg6", 6: "bpf", 7: "seg6local", 8: "rpl", 9: "ioam6", 10: "xfrm"}
_ACTIONS = {1: "table", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
_STATES = {
    0x00: "NONE", 0x01: "INCOMPLETE", 0x02: "REACHABLE", 0x04: "STALE", 0x08: "DELAY", 0x10: "PROBE", 0x20: "FAILED", 0x40: "NOARP",
    0x80: "PERMANENT",
}  # fmt: skip
_NTF_PROXY = 0x8
_FDB_FLAGS = ((0x2, "self"), (0x4, "master"), (0x10, "extern_learn"), (0x20, "offload"), (0x40, "sticky"), (0x80, "router"))
_ADDRESS_FLAGS = (
    (0x2, "nodad"), (0x4, "optimistic"), (0x8, "dadfailed"), (0x10, "home"), (0x20, "deprecated"), (0x40, "tentative"),
    (0x80, "permanent"), (0x100, "mngtmpaddr"), (0x200, "noprefixroute"), (0x400, "autojoin"), (0x800, "stable-privacy"),
)  # fmt: skip

Keyed = list[tuple[tuple[object, ...], T]]


def _in_order(found: Keyed[T]) -> tuple[T, ...]:
    """Sorted by key; what has the same key stays in the kernel's order, which decides between equals there too."""
    found.sort(key=itemgetter(0))
    return tuple(item for _, item in found)


def read_addresses(netlink: Netlink) -> tuple[Address, ...]:
    """Every address; those of a device in the kernel's order, in which it prefers them as sources. Raises OSError."""
    found: Keyed[Address] = []
    for _, body in netlink.dump(_RTM_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0)):
        raw_family, prefixlen, flags, scope, device = _IFADDR.unpack_from(body)
        family = FAMILIES.get(raw_family)
        table = attributes(body, _IFADDR.size)
        local = table.get(2, table.get(1))
        if family is None or local is None:
            continue
        if 8 in table:
            flags = number(table[8])
        words = [word for bit, word in _ADDRESS_FLAGS if flags & bit]
        if flags & 0x1:
            words.append("secondary" if family == 4 else "temporary")
        peer = table.get(1)
        found.append(
            (
                (device, family),
                Address(
                    device=device,
                    family=family,
                    address=address(local),
                    prefixlen=prefixlen,
                    scope=_SCOPES.get(scope, str(scope)),
                    peer=address(peer) if peer is not None and peer != local else None,
                    broadcast=address(table[4]) if 4 in table else None,
                    flags=tuple(sorted(words)),
                ),
            )
        )
    return _in_order(found)


def read_routes(netlink: Netlink, family: int) -> tuple[Route, ...]:
    """All routes of all tables of a family (AF_INET or AF_INET6), without cached exceptions. Raises OSError."""
    found: Keyed[Route] = []
    width = 4 if family == socket.AF_INET else 16
    any_address = bytes(width)
    words: dict[int, tuple[str, ...]] = {}
    for _, body in netlink.dump(_RTM_GETROUTE, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
        got_family, prefixlen, source_length, tos, table_id, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
        if flags & _RTM_F_CLONED or got_family != family:
            continue
        table = attributes(body, _RTMSG.size)
        raw = table.get(1, any_address)
        if 15 in table:
            table_id = _U32.unpack(table[15])[0]
        if flags not in words:
            words[flags] = tuple(sorted(word for bit, word in _ROUTE_FLAGS if flags & bit))
        nexthops: tuple[NextHop, ...] = ()
        if 9 in table:
            nexthops = _multipath(table[9])
        elif 4 in table or 5 in table or 18 in table:
            nexthops = (_nexthop(table, _U32.unpack(table[4])[0] if 4 in table else None, 1, words[flags]),)
        metric = _U32.unpack(table[6])[0] if 6 in table else 0
        mtu = attributes(table[8]).get(2) if 8 in table else None
        found.append(
            (
                (table_id, raw, prefixlen, tos, metric),
                Route(
                    FAMILIES[family],
                    table_id,
                    f"{inet_ntop(family, raw)}/{prefixlen}",
                    _TYPES.get(kind, str(kind)),
                    metric,
                    tos,
                    _SCOPES.get(scope) or str(scope),
                    _PROTOCOLS.get(protocol) or str(protocol),
                    address(table[7]) if 7 in table else None,
                    f"{address(table[2])}/{source_length}" if 2 in table and source_length else None,
                    nexthops,
                    number(table[30]) if 30 in table else None,
                    number(mtu) if mtu is not None else None,
                    () if nexthops else words[flags],
                ),
            )
        )
    return _in_order(found)


def _nexthop(table: Mapping[int, bytes], device: int | None, weight: int, flags: tuple[str, ...]) -> NextHop:
    gateway = None
    if 5 in table:
        gateway = address(table[5])
    elif 18 in table:
        gateway = address(table[18][2:])
    encap = None
    if 21 in table:
        encap_kind = number(table[21])
        encap = _ENCAPS.get(encap_kind, str(encap_kind)) if encap_kind else None
    return NextHop(device, gateway, weight, flags, encap)


def _multipath(value: bytes) -> tuple[NextHop, ...]:
    found: list[NextHop] = []
    offset = 0
    while offset + _RTNH.size <= len(value):
        length, flags, hops, device = _RTNH.unpack_from(value, offset)
        if length < _RTNH.size:
            break
        table = attributes(value[: offset + length], offset + _RTNH.size)
        words = tuple(sorted(word for bit, word in _ROUTE_FLAGS if flags & bit))
        found.append(_nexthop(table, device or None, hops + 1, words))
        offset += (length + 3) & ~3
    return tuple(found)


def read_rules(netlink: Netlink, family: int) -> tuple[Rule, ...]:
    """The policy rules of a family in the kernel's order. Raises OSError (EOPNOTSUPP: this kernel has none)."""
    found: Keyed[Rule] = []
    for _, body in netlink.dump(_RTM_GETRULE, _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
        got_family, dst_length, src_length, tos, table_id, _, _, action, flags = _RULE.unpack_from(body)
        if got_family != family:
            continue
        table = attributes(body, _RULE.size)

        def selector(kind: int, length: int, table: Mapping[int, bytes] = table) -> str | None:
            return f"{address(table[kind])}/{length}" if kind in table else None

        def pair(kind: int, layout: str, table: Mapping[int, bytes] = table) -> tuple[int, int] | None:
            if kind not in table:
                return None
            low, high = struct.unpack(layout, table[kind])
            return low, high

        marked = 10 in table or 16 in table
        suppress = struct.unpack("=i", table[14])[0] if 14 in table else -1
        ifgroup = struct.unpack("=i", table[13])[0] if 13 in table else -1
        priority = number(table.get(6, b""))
        found.append(
            (
                (priority,),
                Rule(
                    family=FAMILIES[family],
                    priority=priority,
                    action=_ACTIONS.get(action, str(action)),
                    table=number(table[15]) if 15 in table else table_id,
                    source=selector(2, src_length),
                    destination=selector(1, dst_length),
                    in_device=text(table[3]) if 3 in table else None,
                    out_device=text(table[17]) if 17 in table else None,
                    fwmark=number(table.get(10, b"")) if marked else None,
                    fwmask=number(table.get(16, b"\xff\xff\xff\xff")) if marked else None,
                    tos=number(table[25]) << 2 if 25 in table else tos,
                    invert=bool(flags & 0x2),
                    ip_protocol=number(table[22]) if 22 in table else None,
                    source_ports=pair(23, "=HH"),
                    destination_ports=pair(24, "=HH"),
                    uid_range=pair(20, "=II"),
                    suppress_prefixlength=suppress if suppress != -1 else None,
                    suppress_ifgroup=ifgroup if ifgroup != -1 else None,
                    l3mdev=number(table.get(19, b"")) != 0,
                    tunnel_id=network_number(table[12]) if 12 in table else None,
                    goto=number(table[4]) if 4 in table else None,
                ),
            )
        )
    return _in_order(found)


def read_nexthops(netlink: Netlink) -> tuple[NextHopObject, ...]:
    """Nexthop objects. Raises OSError (EOPNOTSUPP: this kernel has none)."""
    found: Keyed[NextHopObject] = []
    for _, body in netlink.dump(_RTM_GETNEXTHOP, _NHMSG.pack(0, 0, 0, 0, 0)):
        raw_family, _, _, _, flags = _NHMSG.unpack_from(body)
        table = attributes(body, _NHMSG.size)
        group = []
        members = table.get(2, b"")
        for offset in range(0, len(members) - 7, 8):
            member, low, high = struct.unpack_from("=IBB", members, offset)
            group.append((member, (low | high << 8) + 1))
        encap_kind = number(table.get(7, b""))
        identity = number(table[1])
        gateway = address(table[6]) if 6 in table else None
        found.append(
            (
                (identity,),
                NextHopObject(
                    id=identity,
                    device=number(table[5]) if 5 in table else None,
                    gateway=gateway,
                    family=FAMILIES.get(raw_family) if gateway is not None else None,
                    blackhole=4 in table,
                    group=tuple(group),
                    fdb=11 in table,
                    flags=tuple(sorted(word for bit, word in _ROUTE_FLAGS if flags & bit)),
                    resilient=2 in table and number(table.get(3, b"")) == 1,
                    encap=_ENCAPS.get(encap_kind, str(encap_kind)) if encap_kind else None,
                ),
            )
        )
    return _in_order(found)


def read_neighbours(netlink: Netlink, links: Mapping[int, Link]) -> tuple[Neighbour, ...]:
    """ARP and NDP entries and proxy entries. Raises OSError.

    The entries that the kernel keeps for itself where nothing is resolved (multicast, broadcast, devices without ARP) come and
    go with traffic and decide nothing; they are left out.
    """
    found: Keyed[Neighbour] = []
    for proxy in (False, True):
        for _, body in netlink.dump(_RTM_GETNEIGH, _NDMSG.pack(0, 0, 0, _NTF_PROXY if proxy else 0, 0)):
            raw_family, device, state, flags, kind = _NDMSG.unpack_from(body)
            family = FAMILIES.get(raw_family)
            table = attributes(body, _NDMSG.size)
            if family is None or 1 not in table or bool(flags & _NTF_PROXY) != proxy:
                continue
            if state == 0x40 and not proxy:
                link = links.get(device)
                if kind != 1 or link is None or "NOARP" in link.flags or "LOOPBACK" in link.flags:
                    continue
            raw = table[1]
            found.append(
                (
                    (device, family, raw, proxy),
                    Neighbour(
                        device=device,
                        family=family,
                        address=address(raw),
                        mac=mac(table[2]) if 2 in table and not proxy else None,
                        state=_STATES.get(state, hex(state)) if not proxy else "NONE",
                        proxy=proxy,
                    ),
                )
            )
    return _in_order(found)


def read_fdb(netlink: Netlink) -> tuple[FdbEntry, ...]:
    """Forwarding entries of bridges and of devices that have their own (VXLAN; multicast filters of the others). Raises OSError."""
    found: Keyed[FdbEntry] = []
    for _, body in netlink.dump(_RTM_GETNEIGH, _NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0)):
        raw_family, device, state, flags, _ = _NDMSG.unpack_from(body)
        table = attributes(body, _NDMSG.size)
        if raw_family != AF_BRIDGE or 2 not in table:
            continue
        entry = FdbEntry(
            device=device,
            mac=mac(table[2]),
            vlan=number(table[5]) if 5 in table else None,
            destination=address(table[1]) if len(table.get(1, b"")) in (4, 16) else None,
            port=network_number(table[6]) if 6 in table else None,
            vni=number(table[7]) if 7 in table else None,
            via=number(table[8]) if 8 in table else None,
            nexthop_id=number(table[13]) if 13 in table else None,
            state=_fdb_state(state),
            master=number(table[9]) if 9 in table else None,
            flags=tuple(sorted(word for bit, word in _FDB_FLAGS if flags & bit)),
        )
        found.append(((device, entry.mac, entry.vlan or 0, entry.destination or "", entry.flags), entry))
    return _in_order(found)


def _fdb_state(state: int) -> str:
    for bit, word in ((0x80, "permanent"), (0x40, "static"), (0x04, "stale"), (0x02, "")):
        if state & bit:
            return word
    return f"state={state:#x}" if state else ""
