"""IP: output, input and forwarding.

Sources: net/ipv4/route.c, ip_input.c, ip_forward.c, ip_output.c; net/ipv6/route.c, ip6_input.c, ip6_output.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from shlex import quote

from netpath.model.index import canonical
from netpath.model.snapshot import Link, NextHop
from netpath.predict import addresses as ip
from netpath.predict.checks import Refusal, inside, martian, setting, validate_source
from netpath.predict.engine import Then, Walk
from netpath.predict.host import Host
from netpath.predict.ipvs import LoadBalancer
from netpath.predict.packet import USER_SPACE, Frame, Packet
from netpath.predict.route import PROTOCOL_NUMBERS, Choice, Lookup, Query, describe_rule, lookup, source_for

_ERRORS = {
    "ENETUNREACH": "has no route to",
    "EHOSTUNREACH": "has an unreachable route for",
    "EACCES": "has a prohibit route for",
    "EINVAL": "has a blackhole route for",
}


def _in_reason(family: int, found: Lookup) -> str:
    """ip_error, ip6_pkt_drop: IPv4 has a reason for no route at all only, IPv6 has none for blackholes."""
    if family == 4:
        return "IP_INNOROUTES" if found.error == "ENETUNREACH" else "NOT_SPECIFIED"
    return "NOT_SPECIFIED" if found.error == "EINVAL" else "IP_INNOROUTES"


class Layer3(LoadBalancer):
    """`send`, `arrive`, and what lies between them and the devices."""

    def _query(self, host: Host, walk: Walk, packet: Packet, *, src: str | None, iif: int | None, oif: int | None) -> Query:
        whole = iif is None or packet.fragment is None
        number = PROTOCOL_NUMBERS.get(packet.protocol)
        if number is None and packet.protocol.isdigit():
            number = int(packet.protocol)
        return Query(
            family=packet.family,
            dst=packet.dst,
            src=src,
            iif=iif,
            oif=oif,
            mark=walk.mark,
            tos=packet.tos & 0xFC,
            protocol=number,
            # The flow dissector reads no ports in fragments, so that rules on ports don't match what is forwarded in pieces.
            sport=packet.sport if whole else 0,
            dport=packet.dport if whole else 0,
            output=iif is None,
        )

    # Output

    def send(
        self,
        walk: Walk,
        host: Host,
        packet: Packet,
        *,
        source: str | None,
        oif: int | None = None,
        tunnel: Link | None = None,
        announce: Then | None = None,
    ) -> None:
        if source is not None and not self._owns(host, source):
            self.drop(
                walk,
                host,
                tunnel,
                "IP_OUTNOROUTES",
                f"{host.name} does not hold the source address {source}",
                inside(host, f"ip addr add {source} dev DEVICE"),
            )
            return
        found = lookup(host, self._query(host, walk, packet, src=source, iif=None, oif=oif))
        for reason in found.uncertain:
            walk.doubt(reason)
        if found.error is not None:
            link = host.links.get(oif) if oif is not None else None
            if link is not None and link.up and packet.family == 4:
                # ip_route_output_key with a device given and no route: the destination is taken to be on that link.
                found = Lookup(choices=(Choice(1.0, NextHop(device=link.ifindex)),))
            else:
                self._no_route(walk, host, tunnel, packet, found, "IP_OUTNOROUTES")
                return
        for choice in found.choices:
            child = walk if len(found.choices) == 1 else walk.branch(choice.share)
            self._sent(child, host, packet, found, choice, source, oif, tunnel, announce)

    def _owns(self, host: Host, address: str) -> bool:
        if canonical(address) in host.held:
            return True
        table = host.table(ip.family_of(address), 255)
        if table is None:
            return False
        return any(routes[0].type == "local" for _, routes in table.matches(ip.number(address)))

    def _sent(
        self,
        walk: Walk,
        host: Host,
        packet: Packet,
        found: Lookup,
        choice: Choice,
        source: str | None,
        oif: int | None,
        tunnel: Link | None,
        announce: Then | None,
    ) -> None:
        source = source or source_for(host, found, choice, packet.dst)
        if source is None:
            self.drop(
                walk,
                host,
                tunnel,
                "IP_OUTNOROUTES",
                f"{host.name} has no source address to reach {packet.dst} with",
                inside(host, "ip addr add ADDRESS dev DEVICE"),
            )
            return
        packet = replace(packet, src=source)
        if announce is not None:
            announce(walk, packet)
        link = self._out_device(host, found, choice)
        if link is None:
            walk.doubt(f"the route of {host.name} to {packet.dst} names a device that the snapshot does not have")
            self.end_unknown(walk, host, tunnel)
            return
        if tunnel is not None and link.ifindex == tunnel.ifindex:
            self.drop(walk, host, tunnel, "RECURSION_LIMIT", f"the outer packet would go through {tunnel.name} again")
            return
        mtu = self._mtu(host, found, link)
        if packet.df and packet.length > mtu:
            self._too_big(walk, host, link, packet, mtu, "EMSGSIZE to the sender")
            return
        self._transform(walk, host, link, "output")
        before = (packet.src, packet.dst, packet.sport, packet.dport, packet.tos, walk.mark)

        def then(child: Walk, changed: Packet) -> None:
            local: Then = lambda each, seen: self._post(each, host, link, seen, found, choice)  # noqa: E731
            if self.virtual_server(child, host, None, changed, "output", local):
                return
            if (changed.src, changed.dst, changed.sport, changed.dport, changed.tos, child.mark) == before:
                self._post(child, host, link, changed, found, choice)
            else:
                self._reroute(child, host, changed, oif, tunnel)

        self.hook(walk, host, "output", packet, then, out_link=link)

    def _reroute(self, walk: Walk, host: Host, packet: Packet, oif: int | None, tunnel: Link | None) -> None:
        """ip_route_me_harder: the OUTPUT hook changed what the route was chosen by."""
        source = packet.src if self._owns(host, packet.src) else None
        found = lookup(host, self._query(host, walk, packet, src=source, iif=None, oif=oif))
        if found.error is not None:
            self._no_route(walk, host, tunnel, packet, found, "IP_OUTNOROUTES")
            return
        for choice in found.choices:
            child = walk if len(found.choices) == 1 else walk.branch(choice.share)
            link = self._out_device(host, found, choice)
            if link is None:
                self.end_unknown(child, host, tunnel)
                continue
            kept = packet.family == 4 and ip.is_loopback(packet.src) and link.kind != "loopback"
            if kept and not host.either(4, link.name, "route_localnet"):
                # __mkroute_output refuses it, and the hook drops what it can't route. A rewritten source would come too late.
                name = link.name.replace(".", "/")
                self.drop(
                    child,
                    host,
                    tunnel,
                    "NETFILTER_DROP",
                    f"{host.name} rewrote the destination to {packet.dst}, and a packet from {packet.src} must not leave by {link.name}"
                    f" (net.ipv4.conf.{name}.route_localnet=0)",
                    setting(host, f"net.ipv4.conf.{name}.route_localnet", 1),
                )
                continue
            self._post(child, host, link, packet, found, choice)

    def _out_device(self, host: Host, found: Lookup, choice: Choice) -> Link | None:
        if found.type in ("local", "anycast"):
            return host.loopback
        return host.links.get(choice.device) if choice.device is not None else None

    def _mtu(self, host: Host, found: Lookup, link: Link) -> int:
        return min(found.route.mtu, link.mtu) if found.route is not None and found.route.mtu else link.mtu

    def _too_big(self, walk: Walk, host: Host, link: Link, packet: Packet, mtu: int, how: str) -> None:
        self.drop(
            walk,
            host,
            link,
            "PKT_TOO_BIG",
            f"{packet.length} bytes are more than the MTU of {link.name} in {host.name} ({mtu}), and it must not be fragmented: {how}",
            inside(host, f"ip link set dev {quote(link.name)} mtu {packet.length}"),
        )

    def _no_route(self, walk: Walk, host: Host, link: Link | None, packet: Packet, found: Lookup, reason: str) -> None:
        what = _ERRORS.get(found.error or "", "has no route to")
        if found.error == "EINVAL":
            what = _ERRORS["EINVAL"]
        by = ""
        version = "-6 " if packet.family == 6 else ""
        remedy = inside(host, f"ip {version}route add {packet.dst} via GATEWAY")
        if found.route is not None:
            by = f" ({found.route.type} {found.route.destination} in table {found.route.table})"
            remedy = inside(host, f"ip {version}route del {found.route.type} {found.route.destination} table {found.route.table}")
        elif found.rule is not None:
            by = f" (policy rule {describe_rule(found.rule)})"
            remedy = inside(host, f"ip {version}rule del priority {found.rule.priority}")
        self.drop(walk, host, link, reason, f"{host.name} {what} {packet.dst}{by}", remedy)

    def _transform(self, walk: Walk, host: Host, link: Link, where: str) -> None:
        if host.namespace.xfrm_policies and not host.either(4, link.name, "disable_policy"):
            walk.doubt(f"{host.name} has IPsec policies, which may transform or drop it at {where}")
        if link.kind == "vrf" or (link.master is not None and self._is_vrf(host, link.master)):
            walk.doubt(f"{link.name} in {host.name} is part of a VRF, whose tables netpath does not consult")

    def _is_vrf(self, host: Host, ifindex: int) -> bool:
        master = host.links.get(ifindex)
        return master is not None and master.kind == "vrf"

    def _post(self, walk: Walk, host: Host, link: Link, packet: Packet, found: Lookup, choice: Choice) -> None:
        if choice.nexthop.encap is not None:
            walk.doubt(
                f"the route of {host.name} to {packet.dst} encapsulates ({choice.nexthop.encap}), which netpath does not evaluate"
            )
        gateway = choice.nexthop.gateway
        table = found.route.table if found.route is not None else 254
        walk.stage("route", 0, device=link.name, table=table, gateway=gateway)
        mtu = self._mtu(host, found, link)

        def then(child: Walk, changed: Packet) -> None:
            self._finish(child, host, link, changed, gateway, mtu)

        self.hook(walk, host, "postrouting", packet, then, out_link=link)

    def _finish(self, walk: Walk, host: Host, link: Link, packet: Packet, gateway: str | None, mtu: int) -> None:
        """ip_finish_output: fragments, the neighbour, the device."""
        if packet.length > mtu and link.kind != "loopback":
            # ip6_fragment: what a tunnel sends over IPv6 is not cut (its socket has not asked for that).
            tunnelled = packet.inner is not None and packet.inner.kind not in USER_SPACE
            if packet.df or (packet.family == 6 and tunnelled):
                how = "ICMPv6 packet too big" if packet.family == 6 else "ICMP fragmentation needed"
                self._too_big(walk, host, link, packet, mtu, how)
                return
            walk.remarks.append(f"{packet.length} bytes do not fit {link.name} (MTU {mtu}): sent as fragments, the first is shown")
            packet = packet.fragmented(mtu)
        target = gateway or packet.dst
        if link.kind == "loopback":
            self.transmit(walk, host, link, Frame(packet, "00:00:00:00:00:00", "00:00:00:00:00:00"))
            return
        if packet.family == 4 and gateway is None and (packet.dst == "255.255.255.255" or ip.is_multicast(packet.dst)):
            walk.doubt(f"{packet.dst} is for many receivers; one of them is shown")
        resolved = self.resolver.resolve(host, link, target, packet.src, walk.learned)
        if resolved.uncertain is not None:
            walk.doubt(resolved.uncertain)
        if resolved.cause is not None:
            if not link.up:
                self.transmit(walk, host, link, Frame(packet))
                return
            if resolved.uncertain is not None:
                self.end_unknown(walk, host, link)
                return
            self.drop(walk, host, link, "NEIGH_FAILED", resolved.cause, resolved.remedy)
            return
        source = (link.mac or "").lower() or None
        macs = (resolved.mac, *resolved.others)
        for mac in macs:
            child = walk if len(macs) == 1 else walk.branch(1 / len(macs))
            frame = Frame(packet, source if mac else None, mac)
            self.transmit(child, host, link, frame)

    # Input

    def arrive(self, walk: Walk, host: Host, link: Link, packet: Packet, mine: bool) -> None:
        if packet.family == 6 and host.conf(6, link.name, "disable_ipv6"):
            self.drop(
                walk,
                host,
                link,
                "IPV6DISABLED",
                f"IPv6 is disabled on {link.name} in {host.name}",
                setting(host, f"net.ipv6.conf.{link.name.replace('.', '/')}.disable_ipv6", 0),
            )
            return
        if link.kind == "loopback":
            # The packet still carries the route that output chose: local delivery.
            if walk.prerouted:
                self._local_in(walk, host, link, packet)
            else:
                self.hook(
                    walk, host, "prerouting", packet, lambda child, seen: self._local_in(child, host, link, seen), in_link=link
                )
            return
        if walk.prerouted:
            walk.prerouted = False
            self._route_in(walk, host, link, packet)
            return
        self.hook(walk, host, "prerouting", packet, lambda child, seen: self._route_in(child, host, link, seen), in_link=link)

    def _refuse(self, walk: Walk, host: Host, link: Link, refusal: Refusal) -> None:
        self.drop(walk, host, link, refusal.reason, refusal.cause, refusal.remedy)

    def _route_in(self, walk: Walk, host: Host, link: Link, packet: Packet) -> None:
        query = self._query(host, walk, packet, src=packet.src, iif=link.ifindex, oif=None)
        if packet.family == 6:
            self._route_in6(walk, host, link, packet, query)
            return
        wrong = martian(host, link, packet.src, packet.dst)
        if wrong is not None:
            self._refuse(walk, host, link, wrong)
            return
        if ip.is_multicast(packet.dst) or packet.dst == "255.255.255.255":
            self._local_in(walk, host, link, packet)
            return
        found = lookup(host, query)
        for reason in found.uncertain:
            walk.doubt(reason)
        forwarding = host.forwarding(4, link.name)
        if found.error is None and found.type in ("local", "broadcast"):
            refused = validate_source(host, link, query, None)
            if refused is not None:
                self._refuse(walk, host, link, refused)
            else:
                self._local_in(walk, host, link, packet)
            return
        if not forwarding:
            self._not_forwarding(walk, host, link, packet, "net.ipv4.ip_forward")
            return
        if found.error is not None:
            self._no_route(walk, host, link, packet, found, _in_reason(packet.family, found))
            return
        if found.type != "unicast":
            self.drop(walk, host, link, "IP_INVALID_DEST", f"{packet.dst} is a {found.type} address in {host.name}")
            return
        for choice in found.choices:
            child = walk if len(found.choices) == 1 else walk.branch(choice.share)
            refused = validate_source(host, link, query, choice.device)
            if refused is not None:
                self._refuse(child, host, link, refused)
                continue
            self._forward(child, host, link, packet, found, choice)

    def _not_forwarding(self, walk: Walk, host: Host, link: Link, packet: Packet, switch: str) -> None:
        name = switch
        if packet.family == 4 and host.number("net.ipv4.ip_forward"):
            name = f"net.ipv4.conf.{link.name.replace('.', '/')}.forwarding"
        self.drop(
            walk,
            host,
            link,
            "IP_INADDRERRORS",
            f"{packet.dst} is not an address of {host.name}, and forwarding is off there ({name}=0)",
            setting(host, name, 1),
        )

    def _route_in6(self, walk: Walk, host: Host, link: Link, packet: Packet, query: Query) -> None:
        if ip.is_multicast(packet.src) or (ip.is_loopback(packet.src) or ip.is_loopback(packet.dst)):
            self.drop(walk, host, link, "IP_INHDR", f"{packet.src} to {packet.dst} must not arrive on a wire")
            return
        if ip.is_multicast(packet.dst):
            self._local_in(walk, host, link, packet)
            return
        found = lookup(host, query)
        for reason in found.uncertain:
            walk.doubt(reason)
        if found.error is None and found.type in ("local", "anycast"):
            self._local_in(walk, host, link, packet)
            return
        if found.error is not None:
            self._no_route(walk, host, link, packet, found, _in_reason(packet.family, found))
            return
        if not host.forwarding(6, link.name):
            self._not_forwarding(walk, host, link, packet, "net.ipv6.conf.all.forwarding")
            return
        for choice in found.choices:
            child = walk if len(found.choices) == 1 else walk.branch(choice.share)
            self._forward(child, host, link, packet, found, choice)

    def _forward(self, walk: Walk, host: Host, link: Link, packet: Packet, found: Lookup, choice: Choice) -> None:
        out = self._out_device(host, found, choice)
        if out is None:
            walk.doubt(f"the route of {host.name} to {packet.dst} names a device that the snapshot does not have")
            self.end_unknown(walk, host, link)
            return
        self._transform(walk, host, out, "forward")
        if packet.ttl <= 1:
            self.drop(
                walk,
                host,
                link,
                "IP_INHDR",
                f"its TTL ran out at {host.name}: it would be forwarded with 0 (ICMP time exceeded)",
                "send with a larger TTL, or look for a routing loop",
            )
            return
        if packet.family == 6 and (ip.is_zero(packet.src) or ip.is_link_local(packet.src)):
            self.drop(walk, host, link, "IP_INADDRERRORS", f"{packet.src} must not be forwarded")
            return
        mtu = self._mtu(host, found, out)
        if packet.length > mtu and (packet.df or packet.family == 6):
            how = "ICMPv6 packet too big" if packet.family == 6 else "ICMP fragmentation needed"
            self._too_big(walk, host, out, packet, mtu, how)
            return
        older = replace(packet, ttl=packet.ttl - 1)
        step: Callable[[Walk, Packet], None] = lambda child, seen: self._post(child, host, out, seen, found, choice)  # noqa: E731
        self.hook(walk, host, "forward", older, step, in_link=link, out_link=out)

    def _local_in(self, walk: Walk, host: Host, link: Link, packet: Packet) -> None:
        packet = replace(packet, fragment=None)
        self._transform(walk, host, link, "input")

        def then(child: Walk, seen: Packet) -> None:
            local: Then = lambda each, changed: self.deliver(each, host, link, changed)  # noqa: E731
            if not self.virtual_server(child, host, link, seen, "input", local):
                local(child, seen)

        self.hook(walk, host, "input", packet, then, in_link=link)
