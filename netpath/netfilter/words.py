"""Names that rulesets use for numbers: protocols, ICMP types, flags, states; and what comments and chain names tell of services.

Sources: the IANA registries, nft(8), include/uapi/linux/netfilter/nf_conntrack_common.h, kube-proxy's proxier.go.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from netpath.netfilter.types import HookContext, PacketState

PROTOCOLS: Mapping[str, int] = {
    "icmp": 1,
    "igmp": 2,
    "ipencap": 4,
    "ipip": 4,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "ipv6": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "ipv6-icmp": 58,
    "comp": 108,
    "sctp": 132,
    "udplite": 136,
}
TCP_FLAGS: Mapping[str, int] = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32, "E": 64, "C": 128}
CT_STATES: Mapping[str, int] = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}
_DSCP = {"be": 0, "ef": 46, "va": 44, "le": 1, "lephb": 1}
_DSCP |= {f"cs{number}": number * 8 for number in range(8)}
_DSCP |= {f"af{high}{low}": high * 8 + low * 2 for high in range(1, 5) for low in range(1, 4)}
ADDRESS_TYPES = ("unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit")
NAMES: Mapping[str, Mapping[str, int | str]] = {
    "l4proto": PROTOCOLS,
    "tcpflags": {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "cwr": 128},
    "ctstate": CT_STATES,
    "ctstatus": {"expected": 1, "seen-reply": 2, "assured": 4, "confirmed": 8, "snat": 16, "dnat": 32, "dying": 512},
    "ctdir": {"original": 0, "reply": 1},
    "nfproto": {"ipv4": 2, "ipv6": 10},
    "ether": {"ip": 0x0800, "ip6": 0x86DD, "arp": 0x0806, "vlan": 0x8100},
    "pkttype": {"loopback": "unicast", "host": "unicast", "unicast": "unicast", "broadcast": "broadcast", "multicast": "multicast"}
    | {"other": "other"},
    "fibtype": {name: name for name in ADDRESS_TYPES},
    "dscp": _DSCP,
    "icmp": {
        "echo-reply": 0,
        "destination-unreachable": 3,
        "source-quench": 4,
        "redirect": 5,
        "echo-request": 8,
        "router-advertisement": 9,
        "router-solicitation": 10,
        "time-exceeded": 11,
        "parameter-problem": 12,
        "timestamp-request": 13,
        "timestamp-reply": 14,
        "info-request": 15,
        "info-reply": 16,
        "address-mask-request": 17,
        "address-mask-reply": 18,
    },
    "icmpv6": {
        "destination-unreachable": 1,
        "packet-too-big": 2,
        "time-exceeded": 3,
        "parameter-problem": 4,
        "echo-request": 128,
        "echo-reply": 129,
        "mld-listener-query": 130,
        "mld-listener-report": 131,
        "mld-listener-done": 132,
        "mld-listener-reduction": 132,
        "nd-router-solicit": 133,
        "nd-router-advert": 134,
        "nd-neighbor-solicit": 135,
        "nd-neighbor-advert": 136,
        "nd-redirect": 137,
        "mld2-listener-report": 143,
    },
    "icmpcode": {
        "net-unreachable": 0,
        "host-unreachable": 1,
        "prot-unreachable": 2,
        "port-unreachable": 3,
        "frag-needed": 4,
        "net-prohibited": 9,
        "host-prohibited": 10,
        "admin-prohibited": 13,
    },
    "icmpv6code": {"no-route": 0, "admin-prohibited": 1, "addr-unreachable": 3, "port-unreachable": 4},
}
PAYLOAD_KINDS: Mapping[tuple[object, object], str] = {
    **{(family, name): "addr" for family in ("ip", "ip6") for name in ("saddr", "daddr")},
    ("ip", "protocol"): "l4proto",
    ("ip6", "nexthdr"): "l4proto",
    ("ip", "dscp"): "dscp",
    ("ip6", "dscp"): "dscp",
    **{(protocol, name): "port" for protocol in ("tcp", "udp", "th", "sctp", "dccp", "udplite") for name in ("sport", "dport")},
    ("tcp", "flags"): "tcpflags",
    ("icmp", "type"): "icmp",
    ("icmp", "code"): "icmpcode",
    ("icmpv6", "type"): "icmpv6",
    ("icmpv6", "code"): "icmpv6code",
}
META_KINDS: Mapping[object, str] = {
    "iifname": "iface",
    "oifname": "iface",
    "iif": "iface",
    "oif": "iface",
    "l4proto": "l4proto",
    "nfproto": "nfproto",
    "protocol": "ether",
    "pkttype": "pkttype",
}
CT_KINDS: Mapping[str, str] = {
    "state": "ctstate",
    "status": "ctstatus",
    "direction": "ctdir",
    "protocol": "l4proto",
    "l3proto": "nfproto",
    "proto-src": "port",
    "proto-dst": "port",
    **{f"{family}{name}": "addr" for family in ("", "ip ", "ip6 ") for name in ("saddr", "daddr")},
}
_SERVICE = re.compile(r"^([a-z0-9.-]+/[a-z0-9.-]+(?::[\w.-]*)?)(?: |$)")
"""kube-proxy's comments start with NAMESPACE/NAME:PORT (pkg/proxy/iptables/proxier.go)."""
_SERVICE_CHAIN = re.compile(
    r"^(?:service|endpoint|external|firewall)-\w+-([a-z0-9.-]+)/([a-z0-9.-]+)/(?:tcp|udp|sctp)/([\w.-]*?)(?:__|$)"
)
"""Its nftables mode puts the service into the chain's name: service-HASH-NAMESPACE/NAME/PROTOCOL/PORT (pkg/proxy/nftables/proxier.go)."""


def protocol(name: str) -> int:
    """An IP protocol's number; 255 (reserved) for a name that is none."""
    if name.isdigit():
        return int(name)
    return PROTOCOLS.get(name.lower(), 255)


def port(text: str) -> int | None:
    """A port by number or by its name in /etc/services."""
    if text.isdigit():
        return int(text)
    try:
        return socket.getservbyname(text)
    except (OSError, ValueError):
        return None


def service(comment: str | None) -> str | None:
    found = _SERVICE.match(comment) if comment else None
    return found[1] if found else None


def service_of_chain(name: str) -> str | None:
    found = _SERVICE_CHAIN.match(name)
    if found is None:
        return None
    return f"{found[1]}/{found[2]}" + (f":{found[3]}" if found[3] else "")


def packet_type(context: HookContext, packet: PacketState) -> str:
    """unicast, broadcast or multicast, as the receiving device would have marked it (skb->pkt_type)."""
    kind = context.address_type(packet.dst, None)
    return kind if kind in ("broadcast", "multicast") else "unicast"
