"""Sets as ``ipset save`` prints them, and whether a packet is in one. Types: ipset(8)."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from netpath.netfilter.types import HookContext, PacketState


@dataclass
class _Set:
    kind: str
    members: list[tuple[str, bool]] = field(default_factory=list)
    """(element as printed, nomatch)."""


class Sets:
    """All sets of a namespace."""

    def __init__(self, text: str | None) -> None:
        self._sets: dict[str, _Set] = {}
        for line in (text or "").splitlines():
            try:
                words = shlex.split(line)
            except ValueError:
                continue
            if len(words) >= 3 and words[0] == "create":
                self._sets[words[1]] = _Set(words[2])
            elif len(words) >= 3 and words[0] == "add" and words[1] in self._sets:
                self._sets[words[1]].members.append((words[2], "nomatch" in words[3:]))

    def holds(
        self, name: str, dimensions: Sequence[str], packet: PacketState, context: HookContext, outer: tuple[str, ...] = ()
    ) -> bool | str:
        """Whether the packet is in the set; a text says why that can't be told."""
        found = self._sets.get(name)
        if found is None:
            return f"the set {name} is not in the snapshot"
        if found.kind == "list:set":
            # ipset refuses lists of lists; a text that has them must not lead in a circle.
            inner = [member for member, _ in found.members if member not in (name, *outer)]
            answers = [self.holds(member, dimensions, packet, context, (name, *outer)) for member in inner]
            return True if True in answers else next((answer for answer in answers if isinstance(answer, str)), False)
        parts = found.kind.partition(":")[2].split(",")
        values = [_value(part, side, packet, context) for part, side in zip(parts, dimensions, strict=False)]
        if len(values) < len(parts) or any(value is None for value in values):
            return f"set {name} of type {found.kind} by {','.join(dimensions)}"
        best: tuple[int, bool] | None = None
        try:
            for member, nomatch in found.members:
                length = _matches(member, parts, [str(value) for value in values])
                # Of nets that overlap the longest decides, which is how `nomatch` carves exceptions out.
                if length is not None and (best is None or length > best[0]):
                    best = (length, nomatch)
        except ValueError:
            return f"an element of set {name}"
        return best is not None and not best[1]


def _value(part: str, side: str, packet: PacketState, context: HookContext) -> str | None:
    source = side.strip() == "src"
    if part in ("ip", "net"):
        return packet.src if source else packet.dst
    if part == "port":
        port = packet.sport if source else packet.dport
        if packet.protocol in ("icmp", "icmpv6"):
            # ip_set_get_ip_port: type and code stand for the port.
            port = (packet.icmp_type or 0) << 8 | (packet.icmp_code or 0)
        elif packet.protocol not in ("tcp", "udp", "sctp", "udplite"):
            port = 0
        return None if port is None else f"{packet.protocol}:{port}"
    if part == "iface":
        return context.in_device if source else context.out_device
    if part == "mark":
        return str(packet.mark)
    return None


def _matches(member: str, parts: Sequence[str], values: Sequence[str]) -> int | None:
    """The summed prefix length with which an element covers the values; None when it does not."""
    elements = member.split(",")
    if len(elements) != len(parts):
        return None
    total = 0
    for part, element, value in zip(parts, elements, values, strict=True):
        length = _covers(part, element, value)
        if length is None:
            return None
        total += length
    return total


def _covers(part: str, element: str, value: str) -> int | None:
    if part in ("ip", "net"):
        address = ipaddress.ip_address(value)
        low, dash, high = element.partition("-")
        if dash:
            return 0 if int(ipaddress.ip_address(low)) <= int(address) <= int(ipaddress.ip_address(high)) else None
        network = ipaddress.ip_network(element, strict=False)
        return network.prefixlen if address.version == network.version and address in network else None
    if part == "port":
        protocol, colon, ports = element.rpartition(":")
        mine, _, port = value.rpartition(":")
        if colon and protocol != mine:
            return None
        if not colon and mine not in ("tcp", "udp"):
            return None
        low, dash, high = ports.partition("-")
        return 0 if int(low) <= int(port) <= int(high if dash else low) else None
    if part == "mark":
        return 0 if int(element, 0) == int(value) else None
    return 0 if element == value else None
