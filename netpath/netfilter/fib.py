"""What rules ask the routing tables about a packet: iptables' ``rpfilter`` and nftables' ``fib ... oif``.

Sources: net/ipv4/netfilter/{ipt_rpfilter,nft_fib_ipv4}.c, net/ipv6/netfilter/{ip6t_rpfilter,nft_fib_ipv6}.c,
include/net/netfilter/nft_fib.h.
"""

from __future__ import annotations

import ipaddress

from netpath.netfilter.types import FibAnswer, FibQuestion, HookContext, PacketState


def passes_reverse_path(packet: PacketState, context: HookContext, *, loose: bool, use_mark: bool, accept_local: bool) -> bool:
    """Whether the way back to the packet's source leads through the device that it came in by (`loose`: through any)."""
    if context.in_device == context.loopback or _unconfigured(packet):
        return True
    device = context.in_device if packet.family == 6 and _link_local(packet.src) else None
    found = _ask(context, packet, packet.src, packet.dst, packet.mark if use_mark else 0, device)
    if found.type == "local":
        # For IPv6 a route to oneself is no matter of devices.
        return accept_local and (packet.family == 6 or loose or context.in_device in found.devices)
    return found.type == "unicast" and (loose or context.in_device in found.devices)


def route_device(
    packet: PacketState, context: HookContext, *, forward: bool, use_mark: bool, through: str | None
) -> list[tuple[float, str]]:
    """The name of the device by which the destination (`forward`) or else the source is reached, empty for none, and its share.

    `through`: only if it is that device. An IPv4 route uses all of its next hops (fib_info_nh_uses_dev), or names its first; of an
    IPv6 route the flow's own next hop is asked for, which its hash chooses (ip6_pol_route_lookup).
    """
    if (context.hook == "prerouting" and context.in_device == context.loopback) or _unconfigured(packet):
        return [(1.0, context.in_device or "")]
    towards, other = (packet.dst, packet.src) if forward else (packet.src, packet.dst)
    device = through if packet.family == 6 and _link_local(towards) else None
    found = _ask(context, packet, towards, other, packet.mark if use_mark else 0, device)
    if found.type != "unicast" or not found.devices:
        return [(1.0, "")]
    if packet.family == 6:
        return [(share, name if through in (None, name) else "") for share, name in found.chosen]
    if through is not None:
        return [(1.0, through if through in found.devices else "")]
    return [(1.0, found.devices[0])]


def _ask(context: HookContext, packet: PacketState, towards: str, source: str, mark: int, device: str | None) -> FibAnswer:
    if packet.family == 4:
        address = ipaddress.IPv4Address(source)
        # A source that no packet may have is no source (rpfilter_get_saddr, get_saddr).
        nobody = address.is_multicast or source == "255.255.255.255" or int(address) >> 24 == 0
        return context.fib(FibQuestion(towards, None if nobody else source, mark, packet.tos, device))
    return context.fib(FibQuestion(towards, source, mark, packet.tos, device))


def _unconfigured(packet: PacketState) -> bool:
    """From a host that has no address yet (RFC 1122, 3.2.1.3), to all."""
    if packet.family == 6 or not packet.src.startswith("0."):
        return False
    return packet.dst == "255.255.255.255" or packet.dst.startswith("224.0.0.")


def _link_local(address: str) -> bool:
    return ipaddress.ip_address(address).is_link_local
