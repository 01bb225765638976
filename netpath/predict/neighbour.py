"""From the next hop's address to a MAC: the neighbour table, else who would answer ARP (RFC 826) or NDP (RFC 4861).

Sources: net/core/neighbour.c, net/ipv4/arp.c (arp_constructor, arp_process, arp_ignore), net/ipv6/ndisc.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from shlex import quote

from netpath.model.index import canonical
from netpath.model.snapshot import DeviceId, Link
from netpath.predict import addresses as ip
from netpath.predict.checks import inside, martian, validate_source
from netpath.predict.host import Host, scope_number
from netpath.predict.route import Query, lookup, select_address
from netpath.predict.segment import Learned, Segment

_USABLE = frozenset({"PERMANENT", "REACHABLE", "STALE", "DELAY", "PROBE", "NOARP"})


@dataclass(frozen=True, slots=True)
class Resolved:
    """`mac` None with `cause` None: the device has no link layer. `cause` set: it can't be resolved."""

    mac: str | None = None
    cause: str | None = None
    remedy: str | None = None
    uncertain: str | None = None
    state: str | None = None
    """NUD_* of the entry that was used; None when the address would be resolved now."""
    others: tuple[str, ...] = ()
    """Further MACs that answer for the same address."""


class Resolver:
    def __init__(self, segment: Segment, hosts: Callable[[int], Host | None]) -> None:
        self._segment = segment
        self._hosts = hosts

    def resolve(self, host: Host, link: Link, target: str, source: str, learned: Learned) -> Resolved:
        """The MAC for `target` on `link`; `source` is the packet's own source address."""
        if link.link_type not in ("ether", "loopback"):
            return Resolved()
        if ip.is_multicast(target):
            return Resolved(ip.multicast_mac(target), state="NOARP")
        if target == "255.255.255.255" or self._is_broadcast(host, link, target):
            return Resolved(ip.BROADCAST_MAC, state="NOARP")
        entry = host.neighbours.get((link.ifindex, canonical(target)))
        if entry is not None and entry.state in _USABLE and entry.mac:
            return Resolved(entry.mac.lower(), state=entry.state)
        if "NOARP" in link.flags or link.kind == "loopback":
            return Resolved((link.mac or "00:00:00:00:00:00").lower(), state="NOARP")
        return self._ask(host, link, target, source, learned)

    def _is_broadcast(self, host: Host, link: Link, target: str) -> bool:
        if ":" in target:
            return False
        table = host.table(4, 255)
        if table is None:
            return False
        for _, routes in table.matches(ip.number(target)):
            return any(route.type == "broadcast" and any(hop.device == link.ifindex for hop in route.nexthops) for route in routes)
        return False

    def _ask(self, host: Host, link: Link, target: str, source: str, learned: Learned) -> Resolved:
        four = ":" not in target
        word = "ARP" if four else "neighbour solicitations"
        show = inside(host, f"ip neigh show {target} dev {quote(link.name)}")
        asker = self._asker4(host, link, target, source) if four else self._asker6(host, link, source)
        if asker is None:
            return Resolved(
                cause=f"{link.name} in {host.name} has no address to send neighbour solicitations from",
                remedy=inside(host, f"ip -6 addr add fe80::1/64 dev {quote(link.name)}"),
            )
        mac = (link.mac or "").lower()
        group = (
            ip.BROADCAST_MAC
            if four
            else ip.multicast_mac(f"ff02::1:ff{ip.number(target) >> 16 & 0xFF:02x}:{ip.number(target) & 0xFFFF:x}")
        )
        heard = self._segment.hear(host, link, group, mac, learned=learned)
        answers: list[str] = []
        deaf: list[str] = []
        for device in heard.devices:
            other = self._hosts(device.netns)
            there = other.links.get(device.ifindex) if other is not None else None
            if other is None or there is None or device == DeviceId(host.inode, link.ifindex):
                continue
            if not (self._answers4(other, there, target, asker) if four else self._answers6(other, there, target)):
                continue
            if not self._comes_back(other, there, mac, DeviceId(host.inode, link.ifindex), learned):
                deaf.append(f"{there.name} in {other.name}")
                continue
            answer = (there.mac or "").lower()
            if answer and answer not in answers:
                answers.append(answer)
        if answers:
            uncertain = f"several devices answer for {target} on {link.name} in {host.name}" if len(answers) > 1 else None
            return Resolved(answers[0], uncertain=uncertain, others=tuple(answers[1:]))
        if heard.outside:
            return Resolved(
                cause=f"nothing in the snapshot answers {word} for {target}, but the segment goes on beyond it at {heard.outside[0]}",
                remedy=show,
                uncertain=f"who has {target} can't be told: the segment goes on beyond the snapshot at {heard.outside[0]}",
            )
        if deaf:
            return Resolved(cause=f"{deaf[0]} has {target}, but its answer does not come back to {link.name}", remedy=show)
        return Resolved(
            cause=f"nobody answers {word} for {target} on {link.name} in {host.name}",
            remedy=inside(host, f"ip neigh replace {target} lladdr MAC dev {quote(link.name)}"),
        )

    def _comes_back(self, host: Host, link: Link, mac: str, asker: DeviceId, learned: Learned) -> bool:
        return asker in self._segment.hear(host, link, mac, (link.mac or "").lower(), learned=learned).devices

    def _asker4(self, host: Host, link: Link, target: str, source: str) -> str:
        """arp_solicit: the packet's source if it is ours (arp_announce 0), else an address of the device."""
        announce = host.highest(4, link.name, "arp_announce")
        if source in host.held and announce == 0:
            return source
        if (
            source in host.held
            and announce == 1
            and any(
                ip.same_subnet(target, held.address, held.prefixlen)
                for held in host.on_device.get((link.ifindex, 4), ())
                if ip.same_subnet(source, held.address, held.prefixlen)
            )
        ):
            return source
        return select_address(host, link.ifindex, target, scope_number("link")) or "0.0.0.0"

    def _asker6(self, host: Host, link: Link, source: str) -> str | None:
        own = host.on_device.get((link.ifindex, 6), ())
        if any(canonical(address.address) == canonical(source) for address in own):
            return source
        for address in own:
            if ip.is_link_local(address.address) and "tentative" not in address.flags and "dadfailed" not in address.flags:
                return address.address
        return None

    def _answers4(self, host: Host, link: Link, target: str, asker: str) -> bool:
        if "NOARP" in link.flags or link.kind == "loopback":
            return False
        if ip.is_multicast(target) or (ip.is_loopback(target) and not host.either(4, link.name, "route_localnet")):
            return False
        if asker != "0.0.0.0" and martian(host, link, asker, target) is not None:
            return False
        query = Query(family=4, dst=target, src=asker, iif=link.ifindex)
        found = lookup(host, query)
        if found.error is not None:
            return False
        if found.type == "local":
            if asker != "0.0.0.0" and validate_source(host, link, query, None) is not None:
                return False
            return not self._ignores(host, link, target, asker)
        if asker == "0.0.0.0" or found.type != "unicast" or not host.forwarding(4, link.name) or not found.choices:
            return False
        out = found.choices[0].device
        if validate_source(host, link, query, out) is not None or out == link.ifindex:
            return False
        return host.either(4, link.name, "proxy_arp") or (link.ifindex, target) in host.proxied

    def _ignores(self, host: Host, link: Link, target: str, asker: str) -> bool:
        """arp_ignore, and arp_filter."""
        own = host.on_device.get((link.ifindex, 4), ())
        mode = host.highest(4, link.name, "arp_ignore")
        holder = next((address for address in own if address.address == target), None)
        if mode in (1, 2) and holder is None:
            return True
        if mode == 2 and asker != "0.0.0.0" and holder is not None and not ip.same_subnet(asker, target, holder.prefixlen):
            return True
        if mode == 3 and any(scope_number(address.scope) >= 253 for address in host.held.get(target, ())):
            return True
        if mode == 8:
            return True
        if host.either(4, link.name, "arp_filter") and asker != "0.0.0.0":
            back = lookup(host, Query(family=4, dst=asker, src=target, output=True))
            return back.error is not None or link.ifindex not in {choice.device for choice in back.choices}
        return False

    def _answers6(self, host: Host, link: Link, target: str) -> bool:
        if host.conf(6, link.name, "disable_ipv6"):
            return False
        wanted = canonical(target)
        for address in host.on_device.get((link.ifindex, 6), ()):
            if canonical(address.address) == wanted:
                return "tentative" not in address.flags and "dadfailed" not in address.flags
        return (
            host.either(6, link.name, "proxy_ndp")
            and bool(host.conf(6, "all", "forwarding"))
            and (link.ifindex, wanted) in host.proxied
        )
