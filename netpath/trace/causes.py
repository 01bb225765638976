"""What the kernel's drop reasons mean to an engineer, for drops that the prediction did not foresee.

Names and meanings: include/net/dropreason-core.h (Linux 5.17 and later). A reason that is not listed here is shown by its own name.
"""

from __future__ import annotations

import errno
import os

from netpath.trace.correlate import Leg

_REFUSED_SENDS: dict[int, tuple[str, str, str | None]] = {
    errno.EMSGSIZE: (
        "PKT_TOO_BIG",
        "larger than the MTU of the sender's own device, and it must not be fragmented",
        "send less, or without --df",
    ),
    errno.ENETUNREACH: ("IP_OUTNOROUTES", "the sender has no route to the destination", "ip route get ADDRESS"),
    errno.EHOSTUNREACH: ("IP_OUTNOROUTES", "the sender's route says that the destination is unreachable", "ip route get ADDRESS"),
    errno.EACCES: ("IP_OUTNOROUTES", "the sender's route prohibits the destination", "ip route get ADDRESS"),
    errno.EINVAL: ("IP_OUTNOROUTES", "the sender's route is a blackhole", "ip route get ADDRESS"),
    errno.EPERM: ("NETFILTER_DROP", "a rule in the sender's OUTPUT chains dropped it", "nft list ruleset, iptables-save -c"),
    errno.EADDRNOTAVAIL: ("IP_OUTNOROUTES", "the sender has no usable source address for the destination", "ip addr"),
}

_CAUSES: dict[str, tuple[str, str | None]] = {
    "NO_SOCKET": ("no socket listens on the destination port", "start the service, or ask for the port it listens on (ss -lntu)"),
    "NETFILTER_DROP": ("a firewall rule dropped it", "list the rules with their counters: nft list ruleset, iptables-save -c"),
    "NEIGH_FAILED": (
        "nobody answered ARP or NDP for the next hop",
        "check that the next hop is up and on that link: ip neigh, ip route get",
    ),
    "NEIGH_QUEUEFULL": ("too many packets waited for ARP or NDP of the next hop", "check that the next hop is up: ip neigh"),
    "QUEUE_PURGE": (
        "it waited, for ARP or NDP or in a socket or queue, and what it waited in was emptied: a device lost its carrier or went away",
        "ask again, and watch for changes meanwhile: ip monitor link neigh",
    ),
    "IP_RPFILTER": (
        "reverse path filtering: the reply would not go back the way it came",
        "check rp_filter and the route back to the source",
    ),
    "IP_INADDRERRORS": (
        "the destination is not local and forwarding is off, or the address is invalid",
        "sysctl net.ipv4.ip_forward",
    ),
    "IP_INNOROUTES": ("no route for a packet that came in", "ip route get ADDRESS from SOURCE iif DEVICE"),
    "IP_OUTNOROUTES": ("no route for a packet on its way out", "ip route get ADDRESS"),
    "PKT_TOO_BIG": (
        "larger than the MTU of the next device, and it must not be fragmented",
        "lower the sender's MTU, or send without --df",
    ),
    "OTHERHOST": ("the frame carried another host's MAC address", "the neighbour entry of the sender may be stale: ip neigh"),
    "UDP_CSUM": ("wrong UDP checksum", "a broken checksum offload may be to blame: ethtool -K DEVICE tx off"),
    "TCP_CSUM": ("wrong TCP checksum", "a broken checksum offload may be to blame: ethtool -K DEVICE tx off"),
    "IP_CSUM": ("wrong IP header checksum", None),
    "SOCKET_RCVBUFF": ("the receiving socket's buffer was full", "the service is too slow, or its buffer too small"),
    "SOCKET_FILTER": ("a filter on the receiving socket dropped it", None),
    "XFRM_POLICY": ("an IPsec policy forbade it", "ip xfrm policy"),
    "DEV_READY": ("the device was down", "ip link set DEVICE up"),
    "DEV_HDR": ("the device could not write its header", None),
    "QDISC_DROP": ("a queueing discipline dropped it", "tc -s qdisc show dev DEVICE"),
    "TC_INGRESS": ("a tc ingress filter dropped it", "tc filter show dev DEVICE ingress"),
    "TC_EGRESS": ("a tc egress filter dropped it", "tc filter show dev DEVICE egress"),
    "XDP": ("an XDP program dropped it", "bpftool net"),
    "TTL_EXPIRED": (
        "its TTL ran out: more routers than it allowed, or a routing loop",
        "send with a larger --ttl, or look for a loop",
    ),
    "VXLAN_NO_REMOTE": ("the VXLAN device knows no remote for the destination MAC", "bridge fdb show dev DEVICE"),
    "VXLAN_VNI_NOT_FOUND": ("no VXLAN device here has this VNI", "ip -d link show type vxlan"),
    "VXLAN_INVALID_HDR": ("the VXLAN header is invalid", None),
    "NOMEM": ("the kernel was out of memory for it", None),
    "UNHANDLED_PROTO": ("no protocol handler takes it", None),
    "IP_NOPROTO": ("no handler for the transport protocol", None),
    "NETFILTER_REJECT": ("a firewall rule refused it", "list the rules with their counters: nft list ruleset, iptables-save -c"),
}


def refused_send(code: int) -> tuple[str, str, str | None]:
    """(reason, cause, remedy) of a send that the sender's own kernel refused with errno `code`."""
    known = _REFUSED_SENDS.get(code)
    return known if known is not None else ("SEND_REFUSED", f"the sender's kernel refused it: {os.strerror(code)}", None)


def explain(reason: str, symbol: str | None, leg: Leg) -> tuple[str, str | None]:
    """(cause, remedy) for a drop reason; `symbol` is the kernel function that freed the packet, where known."""
    known = _CAUSES.get(reason)
    if known is not None:
        return known
    if leg.end is None:
        where = "before the first device" if not leg.hops else "after the last observed hop"
        return f"it was not seen again {where}; no hook reported a drop", None
    at = f" in {symbol}()" if symbol else ""
    if reason == "NOT_SPECIFIED":
        return f"the kernel freed it{at} without giving a reason", None
    return f"the kernel dropped it{at}: {reason}", None
