"""Bytes into headers: the stack of protocols at the front of a packet, as far as the bytes go. Pure, and never raises.

Formats: RFC 791, 8200, 768, 9293, 792, 4443, 7348, 2003; IEEE 802.1Q.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Mapping

from netpath.model.packet import Ethernet, Header, Headers, Icmp, Icmpv6, Ipv4, Ipv6, Opaque, Tcp, Udp, Vlan, VxlanHeader

ETHERTYPE_IPV4, ETHERTYPE_IPV6 = 0x0800, 0x86DD
ETHERTYPE_VLAN = (0x8100, 0x88A8)
EXTENSION_HEADERS = (0, 43, 60)
"""Hop-by-hop, routing and destination options: all of the form (next header, length in 8 bytes less one)."""
FRAGMENT, AUTHENTICATION = 44, 51
MAXIMUM_HEADERS = 24
SLEEVE_BYTES = 20
"""An unencrypted sleeve's headers: the sender's name, then origin, target and length of a frame (weave, router/crypto.go)."""
TCP_FLAGS = "FSRPAUEC"
QUOTING = {"icmp": (3, 5, 11, 12), "icmpv6": (1, 2, 3, 4)}


def parse(data: bytes, l3: int, protocol: int, tunnel_ports: Mapping[int, str]) -> tuple[Headers, int]:
    """(headers, length of the outermost IP packet in bytes; 0 when there is none).

    `l3` is where the network header starts in `data`, with a link-layer header before it unless it is 0; -1: an Ethernet header
    starts at 0. `protocol` is the EtherType at `l3`. `tunnel_ports` are the UDP ports of tunnels (``vxlan``, ``ip`` or ``sleeve``).
    """
    headers: list[Header] = []
    position, number, layer = 0, protocol, "ethertype"
    if l3 < 0:
        layer = "ethernet"
    elif l3 >= 14:
        headers.append(_ethernet(data, l3 - 14))
        position = l3
    else:
        position = l3
    while len(headers) < MAXIMUM_HEADERS:
        rest = len(data) - position
        if layer == "ethernet":
            if rest < 14:
                break
            headers.append(_ethernet(data, position))
            (number,) = struct.unpack_from(">H", data, position + 12)
            position, layer = position + 14, "ethertype"
        elif layer == "ethertype":
            if number in ETHERTYPE_VLAN and rest >= 4:
                tag, following = struct.unpack_from(">HH", data, position)
                headers.append(Vlan(tag & 0xFFF, number))
                position, number = position + 4, following
            elif number in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
                layer = "ip"
            else:
                break
        elif layer == "ip":
            step = _ip(data, position, headers)
            if step is None:
                break
            position, number = step
            layer = "transport"
        else:
            step_to = _transport(data, position, number, headers, tunnel_ports)
            if step_to is None:
                break
            position, layer, number = step_to
    outermost = next((header for header in headers if isinstance(header, Ipv4 | Ipv6)), None)
    return tuple(headers), (outermost.length or 0) if outermost is not None else 0


def _mac(data: bytes) -> str:
    return data.hex(":")


def _ethernet(data: bytes, position: int) -> Ethernet:
    return Ethernet(src=_mac(data[position + 6 : position + 12]), dst=_mac(data[position : position + 6]))


def _ip(data: bytes, position: int, headers: list[Header]) -> tuple[int, int] | None:
    """Append an IP header; (where its payload starts, the payload's protocol) or None when it ends here."""
    rest = len(data) - position
    version = data[position] >> 4 if rest > 0 else 0
    if version == 4 and rest >= 20:
        length, fragment = struct.unpack_from(">H2xH", data, position + 2)
        size = (data[position] & 15) * 4
        later = bool(fragment & 0x1FFF)
        headers.append(
            Ipv4(
                src=socket.inet_ntoa(data[position + 12 : position + 16]),
                dst=socket.inet_ntoa(data[position + 16 : position + 20]),
                ttl=data[position + 8],
                length=length,
                df=bool(fragment & 0x4000),
                tos=data[position + 1],
                fragment=later or bool(fragment & 0x2000),
            )
        )
        return None if later or size < 20 else (position + size, data[position + 9])
    if version == 6 and rest >= 40:
        return _ipv6(data, position, headers)
    return None


def _ipv6(data: bytes, position: int, headers: list[Header]) -> tuple[int, int] | None:
    start = position
    (length,) = struct.unpack_from(">H", data, position + 4)
    number, position = data[position + 6], position + 40
    extensions: list[int] = []
    whole = True
    while len(extensions) < 8 and len(data) - position >= 8:
        if number in EXTENSION_HEADERS:
            size = (data[position + 1] + 1) * 8
        elif number == FRAGMENT:
            size = 8
            whole = not struct.unpack_from(">H", data, position + 2)[0] & 0xFFF8
        elif number == AUTHENTICATION:
            size = (data[position + 1] + 2) * 4
        else:
            break
        extensions.append(number)
        number, position = data[position], position + size
        if not whole:
            break
    headers.append(
        Ipv6(
            src=str(ipaddress.IPv6Address(data[start + 8 : start + 24])),
            dst=str(ipaddress.IPv6Address(data[start + 24 : start + 40])),
            ttl=data[start + 7],
            length=length + 40,
            tos=(data[start] & 15) << 4 | data[start + 1] >> 4,
            extensions=tuple(extensions),
        )
    )
    return (position, number) if whole else None


def _transport(
    data: bytes, position: int, number: int, headers: list[Header], tunnel_ports: Mapping[int, str]
) -> tuple[int, str, int] | None:
    """Append a transport or tunnel header; (where the next one starts, its layer, its number) or None at the end."""
    rest = len(data) - position
    if number in (4, 41):
        return position, "ip", number
    if number == 17 and rest >= 8:
        sport, dport = struct.unpack_from(">HH", data, position)
        headers.append(Udp(sport, dport))
        tunnel = tunnel_ports.get(dport)
        if tunnel == "vxlan" and rest >= 16 and data[position + 8] & 0x08:
            headers.append(VxlanHeader(int.from_bytes(data[position + 12 : position + 15], "big")))
            return position + 16, "ethernet", 0
        if tunnel == "ip" and rest >= 28 and data[position + 8] >> 4 in (4, 6):
            return position + 8, "ip", 0
        if tunnel == "sleeve" and rest >= 8 + SLEEVE_BYTES + 14:
            headers.append(Opaque("sleeve", SLEEVE_BYTES))
            return position + 8 + SLEEVE_BYTES, "ethernet", 0
        return None
    if number == 6 and rest >= 8:
        sport, dport, seq = struct.unpack_from(">HHI", data, position)
        # An ICMP error quotes eight bytes at least, which leave the rest of the header unknown.
        ack = struct.unpack_from(">I", data, position + 8)[0] if rest >= 12 else None
        bits = data[position + 13] if rest >= 14 else 0
        flags = "".join(letter for index, letter in enumerate(TCP_FLAGS) if bits >> index & 1)
        headers.append(Tcp(sport, dport, flags, seq, ack if "A" in flags else None))
        return None
    if number in (1, 58) and rest >= 8:
        kind = Icmp if number == 1 else Icmpv6
        message, code = data[position], data[position + 1]
        echo = message in ((0, 8) if number == 1 else (128, 129))
        identifier, sequence = struct.unpack_from(">HH", data, position + 4)
        headers.append(kind(message, code, identifier if echo else None, sequence if echo else None))
        quotes = message in QUOTING[kind.proto] and not any(isinstance(header, Icmp) for header in headers[:-1])
        return (position + 8, "ip", 0) if quotes else None
    return None
