"""Conntrack entries of a flow, by ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h).

A busy node has hundreds of thousands of entries. They are dumped as bytes, and only those in which one of the flow's addresses
occurs are decoded.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping

from netpath.discover.nl import NETLINK_NETFILTER, Netlink, address, attributes, network_number, number
from netpath.model.packet import Flow
from netpath.model.snapshot import ConntrackEntry, FlowTuple

_GET = 1 << 8 | 1
_NFGENMSG = 4
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 58: "icmpv6", 132: "sctp", 136: "udplite"}
_TCP_STATES = (
    "NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2",
)  # fmt: skip
_ROUNDS = 4
"""How many translations in a row are followed from namespace to namespace."""


def dump() -> list[bytes]:
    """All entries of the calling thread's namespace as the kernel sends them. Raises OSError."""
    with Netlink(NETLINK_NETFILTER) as netlink:
        try:
            return [body for _, body in netlink.dump(_GET, struct.pack("=BBH", 0, 0, 0))]
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
                return []  # this kernel has no conntrack, so it tracks nothing
            raise


def of_flow(raw: Mapping[int, list[bytes]], flow: Flow) -> dict[int, tuple[ConntrackEntry, ...]]:
    """By namespace, the entries that involve an address of the flow, or one that a translation of the flow leads to."""
    addresses = {_packed(text) for text in (flow.src, flow.dst) if text is not None}
    protocol = {"icmp": "icmpv6" if flow.family == 6 else "icmp"}.get(flow.protocol, flow.protocol)
    taken: dict[int, dict[bytes, ConntrackEntry]] = {inode: {} for inode in raw}
    for _ in range(_ROUNDS):
        more: set[bytes] = set()
        for inode, messages in raw.items():
            for message in messages:
                if message in taken[inode] or not any(each in message for each in addresses):
                    continue
                entry = decode(message)
                if entry is None or entry.protocol != protocol or not addresses & _ends(entry):
                    continue
                taken[inode][message] = entry
                if _is_translated(entry) and _may_be(entry, flow):
                    more |= _ends(entry)
        if more <= addresses:
            break
        addresses |= more
    return {inode: tuple(sorted(entries.values(), key=_order)) for inode, entries in taken.items()}


def _order(entry: ConntrackEntry) -> tuple[object, ...]:
    def tuple_order(one: FlowTuple) -> tuple[object, ...]:
        return one.source, one.destination, one.sport or 0, one.dport or 0

    return entry.family, entry.protocol, entry.zone, tuple_order(entry.original), tuple_order(entry.reply)


def _packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def _ends(entry: ConntrackEntry) -> set[bytes]:
    both = (entry.original, entry.reply)
    return {_packed(text) for one in both for text in (one.source, one.destination)}


def _is_translated(entry: ConntrackEntry) -> bool:
    one, other = entry.original, entry.reply
    return (one.source, one.destination, one.sport, one.dport) != (other.destination, other.source, other.dport, other.sport)


def _may_be(entry: ConntrackEntry, flow: Flow) -> bool:
    """Whether the entry can be this flow's, as far as the flow's ends are known."""
    pairs = ((flow.src, entry.original.source), (flow.dst, entry.original.destination), (flow.sport, entry.original.sport),
             (flow.dport, entry.original.dport))  # fmt: skip
    return all(asked is None or asked == got for asked, got in pairs)


def decode(message: bytes) -> ConntrackEntry | None:
    """An entry, or None when it lacks what every entry has."""
    table = attributes(message, _NFGENMSG)
    original, reply = _tuple(table.get(1)), _tuple(table.get(2))
    if original is None or reply is None:
        return None
    protocol = original[0]
    status = network_number(table.get(3, b""))
    flags = [word for bit, word in ((4, "assured"), (0x4000, "offload")) if status & bit]
    if not status & 2:
        flags.append("unreplied")
    state = None
    if protocol == 6 and 4 in table:
        value = number(attributes(attributes(table[4]).get(1, b"")).get(1, b""))
        state = _TCP_STATES[value] if value < len(_TCP_STATES) else str(value)
    return ConntrackEntry(
        family=6 if ":" in original[1].source else 4,
        protocol=_PROTOCOLS.get(protocol, str(protocol)),
        original=original[1],
        reply=reply[1],
        state=state,
        flags=tuple(sorted(flags)),
        mark=network_number(table.get(8, b"")),
        zone=network_number(table.get(18, b"")),
        timeout=network_number(table[7]) if 7 in table else None,
    )


def _tuple(value: bytes | None) -> tuple[int, FlowTuple] | None:
    if value is None:
        return None
    table = attributes(value)
    ends, upper = attributes(table.get(1, b"")), attributes(table.get(2, b""))
    source, destination = ends.get(1, ends.get(3)), ends.get(2, ends.get(4))
    if source is None or destination is None or 1 not in upper:
        return None
    # ICMP has its identifier in the place of both ports.
    identifier = upper.get(4, upper.get(7))
    sport, dport = (upper.get(2), upper.get(3)) if identifier is None else (identifier, identifier)
    return number(upper[1]), FlowTuple(
        address(source),
        address(destination),
        network_number(sport) if sport is not None else None,
        network_number(dport) if dport is not None else None,
    )
