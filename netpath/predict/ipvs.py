"""The kernel's load balancer: virtual servers, the backends they may choose, and the packet's way on.

Sources: net/netfilter/ipvs/ip_vs_core.c (ip_vs_in_hook, ip_vs_schedule), ip_vs_xmit.c (ip_vs_nat_xmit), ip_vs_rr.c and the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch

from netpath.model.index import canonical
from netpath.model.path import RuleRef
from netpath.model.snapshot import FlowTuple, IpvsBackend, Link, VirtualServer
from netpath.netfilter.types import Connection
from netpath.predict.engine import Engine, Walk
from netpath.predict.host import Host
from netpath.predict.packet import Packet
from netpath.predict.route import Choice, Lookup, Query, lookup

_BY_TURN = ("rr", "wrr")
"""Schedulers that give every backend its share whoever asks; rr knows no weights but 0."""
_BY_ADDRESS = ("sh", "dh", "mh", "lblc", "lblcr")

Deliver = Callable[[Walk, Packet], None]


class LoadBalancer(Engine):
    """`virtual_server`, which input and output ask after their rules."""

    # Of layer 3, which has what lies behind a choice
    def _query(self, host: Host, walk: Walk, packet: Packet, *, src: str | None, iif: int | None, oif: int | None) -> Query:
        raise NotImplementedError

    def _out_device(self, host: Host, found: Lookup, choice: Choice) -> Link | None:
        raise NotImplementedError

    def _mtu(self, host: Host, found: Lookup, link: Link) -> int:
        raise NotImplementedError

    def _too_big(self, walk: Walk, host: Host, link: Link, packet: Packet, mtu: int, how: str) -> None:
        raise NotImplementedError

    def _no_route(self, walk: Walk, host: Host, link: Link | None, packet: Packet, found: Lookup, reason: str) -> None:
        raise NotImplementedError

    def _post(self, walk: Walk, host: Host, link: Link, packet: Packet, found: Lookup, choice: Choice) -> None:
        raise NotImplementedError

    def virtual_server(self, walk: Walk, host: Host, link: Link | None, packet: Packet, hook: str, local: Deliver) -> bool:
        """Hand the packet to a virtual server that is asked for. False: none is, and it goes on as it would.

        `local` takes what a virtual server leaves in this namespace. Packets of a connection that was balanced before are not
        balanced again: conntrack's reply is translated back with the rulesets.
        """
        servers = host.namespace.ipvs
        if servers is None:
            self._unread(walk, host, packet)
            return False
        if not servers or packet.inner is not None or walk.asker is not None:
            return False
        found = find(servers, packet, walk.mark)
        if found is None or (packet.protocol == "tcp" and packet.flags != "S"):
            return False
        willing = [backend for backend in found.backends if backend.weight > 0]
        if not willing:
            self._nobody(walk, host, link, found, hook)
            return True
        self._judge(walk, found, willing)
        for share, backend in shares(found, willing):
            child = walk if len(willing) == 1 else walk.branch(share)
            self._to_backend(child, host, link, packet, hook, found, backend, local)
        return True

    def _unread(self, walk: Walk, host: Host, packet: Packet) -> None:
        wanted = canonical(packet.dst)
        for address in host.held.get(wanted, ()):
            device = host.links.get(address.device)
            if device is not None and device.kind == "dummy" and fnmatch(device.name, "kube-ipvs*"):
                walk.doubt(f"{packet.dst} is on {device.name}, and the virtual servers of {host.name} are not in the snapshot")

    def _nobody(self, walk: Walk, host: Host, link: Link | None, server: VirtualServer, hook: str) -> None:
        """ip_vs_leave: no backend to choose is answered with ICMP port unreachable."""
        self.end(
            walk,
            "rejected",
            host,
            link=link,
            reason="NETFILTER_DROP",
            cause=f"the virtual server {server.title} in {host.name} has no backend with a weight: it answers with ICMP port unreachable",
            remedy="give the service an endpoint: check its selector and whether its pods are ready",
            rule=_rule(server, None),
        )

    def _judge(self, walk: Walk, server: VirtualServer, willing: list[IpvsBackend]) -> None:
        if len(willing) < 2:
            return
        if "persistent" in server.flags:
            walk.doubt(
                f"{server.title} sends a client where it sent it before, for {server.timeout} s; the shares are of new clients"
            )
        if server.scheduler in _BY_ADDRESS:
            walk.doubt(f"{server.title} chooses by a hash of the client's or the server's address; the shares are over all of them")
        elif server.scheduler not in _BY_TURN:
            walk.doubt(f"{server.title} chooses by what each backend has to do now; the shares are by weight")

    def _to_backend(
        self,
        walk: Walk,
        host: Host,
        link: Link | None,
        packet: Packet,
        hook: str,
        server: VirtualServer,
        backend: IpvsBackend,
        local: Deliver,
    ) -> None:
        if backend.method == "local":
            local(walk, packet)
            return
        if backend.method != "masq":
            walk.doubt(f"{server.title} reaches {backend.address} by {backend.method}, which netpath does not follow")
            self.end_unknown(walk, host, link)
            return
        port = backend.port or packet.dport
        changed = replace(packet, dst=backend.address, dport=port)
        self._translated(walk, packet, changed, hook, _rule(server, backend))
        query = replace(self._query(host, walk, changed, src=None, iif=None, oif=None), mark=0)
        found = lookup(host, query)
        for reason in found.uncertain:
            walk.doubt(reason)
        if found.error is not None:
            self._no_route(walk, host, link, changed, found, "NETFILTER_DROP")
            return
        if found.type in ("local", "anycast"):
            local(walk, changed)
            return
        if changed.ttl <= 1:
            self.drop(
                walk,
                host,
                link,
                "NETFILTER_DROP",
                f"its TTL ran out at the virtual server {server.title} in {host.name} (ICMP time exceeded)",
                "send with a larger TTL, or look for a routing loop",
                _rule(server, backend),
            )
            return
        changed = replace(changed, ttl=changed.ttl - 1)
        for choice in found.choices:
            child = walk if len(found.choices) == 1 else walk.branch(choice.share)
            self._leave(child, host, changed, found, choice)

    def _leave(self, walk: Walk, host: Host, packet: Packet, found: Lookup, choice: Choice) -> None:
        """ip_vs_nat_send_or_cont: LOCAL_OUT's rules, then as any packet of the namespace's own, though its source may be foreign."""
        out = self._out_device(host, found, choice)
        if out is None:
            walk.doubt(f"the route of {host.name} to {packet.dst} names a device that the snapshot does not have")
            self.end_unknown(walk, host, None)
            return
        mtu = self._mtu(host, found, out)
        if packet.length > mtu and (packet.df or packet.family == 6):
            self._too_big(walk, host, out, packet, mtu, "ICMP fragmentation needed")
            return
        self.hook(walk, host, "output", packet, lambda child, seen: self._post(child, host, out, seen, found, choice), out_link=out)

    def _translated(self, walk: Walk, before: Packet, after: Packet, hook: str, rule: RuleRef) -> None:
        """The destination is rewritten, and conntrack's idea of the answer with it (ip_vs_update_conntrack)."""
        first = FlowTuple(before.src, before.dst, before.sport, before.dport)
        second = FlowTuple(after.src, after.dst, after.sport, after.dport)
        known = walk.connection is not None and walk.connection.known
        walk.rewrites.append(("ipvs", False, first, second, rule, hook, known, before.protocol))
        walk.stage("nat", hook=hook, kind="ipvs")
        connection = walk.connection or Connection(
            "new", before.protocol, first, FlowTuple(first.destination, first.source, first.dport, first.sport)
        )
        walk.connection = replace(
            connection,
            reply=replace(connection.reply, source=after.dst, sport=after.dport),
            # It takes the packet away before the source translations of INPUT (priority 98 to 100), which bind the connection.
            source_done=connection.source_done
            and not (hook == "input" and connection.state == "new" and connection.source_rule is None),
            destination_done=True,
            destination_rule=rule,
            destination_kind="ipvs",
        )


def find(servers: tuple[VirtualServer, ...], packet: Packet, mark: int) -> VirtualServer | None:
    """ip_vs_service_find: by the packet's mark, by address and port, by address and any port."""
    mine = [server for server in servers if server.family == packet.family]
    for server in mine:
        if server.fwmark is not None and server.fwmark == mark:
            return server
    wanted = canonical(packet.dst)
    named = [
        server
        for server in mine
        if server.fwmark is None
        and server.protocol == packet.protocol
        and server.address is not None
        and canonical(server.address) == wanted
    ]
    return next((server for server in named if server.port == packet.dport), None) or next(
        (server for server in named if server.port == 0), None
    )


def shares(server: VirtualServer, willing: list[IpvsBackend]) -> list[tuple[float, IpvsBackend]]:
    """What part of new connections each backend gets: round robin counts heads, all others weights."""
    if server.scheduler == "rr":
        return [(1 / len(willing), backend) for backend in willing]
    total = sum(backend.weight for backend in willing)
    return [(backend.weight / total, backend) for backend in willing]


def _rule(server: VirtualServer, backend: IpvsBackend | None) -> RuleRef:
    """The virtual server and the backend, in ipvsadm's words."""
    if backend is None:
        return RuleRef(server.title, "ipvs", None)
    shown = f"[{backend.address}]" if ":" in backend.address else backend.address
    method = {"masq": "Masq"}.get(backend.method, backend.method)
    return RuleRef(f"{server.title} -> {shown}:{backend.port} {method} {backend.weight}", "ipvs", None)
