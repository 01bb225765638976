"""The bytes of a probe above IP, made with scapy.

UDP probes need none of this: their datagrams are made by the kernel from `netpath.model.nonce.pack`, so that they leave with
the checksum offload and the routing keys of an application's own packets.
"""

from __future__ import annotations

from netpath.model import nonce as layout


def preload() -> None:
    """Import what `tcp_syn` and `echo` need of scapy, without letting it read the machine's routes and interfaces.

    Reading them takes seconds on a node with thousands of either, and nothing here uses them.
    """
    from scapy.config import conf

    conf.route_autoload = False
    conf.route6_autoload = False
    import scapy.layers.inet
    import scapy.layers.inet6  # noqa: F401


def tcp_syn(src: str, dst: str, sport: int, dport: int, sequence_number: int) -> bytes:
    """A TCP SYN segment with the options of a Linux client (MSS, SACK permitted, window scale) and a right checksum."""
    preload()
    from scapy.layers.inet import IP, TCP
    from scapy.layers.inet6 import IPv6

    header = TCP(
        sport=sport,
        dport=dport,
        seq=sequence_number,
        flags="S",
        window=64240,
        options=[("MSS", 1440 if ":" in dst else 1460), ("SAckOK", b""), ("NOP", None), ("WScale", 7)],
    )
    # The checksum covers the IP addresses, so the segment is built under an IP header that is then left off: the kernel makes it.
    below = IPv6(src=src, dst=dst) if ":" in dst else IP(src=src, dst=dst, id=0)
    packet = bytes(below / header)
    return packet[40 if ":" in dst else 20 :]


def echo(family: int, identifier: int, nonce: int, sequence: int, size: int) -> bytes:
    """An ICMP or ICMPv6 echo request with `size` bytes of payload. The kernel fills ICMPv6's checksum in (RFC 3542, 3.1)."""
    preload()
    from scapy.layers.inet import ICMP
    from scapy.layers.inet6 import ICMPv6EchoRequest
    from scapy.packet import Raw

    payload = layout.pack(nonce, sequence, size)
    if family == 6:
        return bytes(ICMPv6EchoRequest(id=identifier, seq=sequence & 0xFFFF, data=payload, cksum=0))
    return bytes(ICMP(type=8, id=identifier, seq=sequence & 0xFFFF) / Raw(payload))
