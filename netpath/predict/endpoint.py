"""Where a packet is received: the kernel's own responders, sockets, and processes that pass it on.

Sources: net/ipv4/udp.c, tcp_ipv4.c, icmp.c; net/ipv6/udp.c, icmp.c.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from netpath.model.index import canonical
from netpath.model.path import Delivery, RuleRef
from netpath.model.snapshot import FlowTuple, Link, Socket
from netpath.predict import addresses as ip
from netpath.predict.checks import inside, setting
from netpath.predict.engine import Engine, Relay, Walk
from netpath.predict.host import Host
from netpath.predict.packet import Packet, answer_to

_ANY = ("0.0.0.0", "::", "*")


@dataclass(frozen=True, slots=True)
class ProxyTarget:
    """Where a user-space proxy sends what it receives."""

    address: str
    port: int


def proxy_target(socket: Socket) -> ProxyTarget | None:
    """The container that a docker-proxy serves, from its command line."""
    if not socket.command or "docker-proxy" not in socket.command:
        return None
    try:
        words = shlex.split(socket.command)
    except ValueError:
        words = socket.command.split()
    options = {words[n].lstrip("-"): words[n + 1] for n in range(len(words) - 1) if words[n].startswith("-")}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name.startswith("-"):
            options[name.lstrip("-")] = value
    address, port = options.get("container-ip"), options.get("container-port", "")
    return ProxyTarget(address, int(port)) if address and port.isdigit() else None


def match_socket(host: Host, packet: Packet, link: Link | None) -> Socket | None:
    """The socket that takes the packet: the most specific one that is bound to its port."""
    best: tuple[int, Socket] | None = None
    for socket in host.namespace.sockets or ():
        if socket.protocol != packet.protocol or socket.port != packet.dport or socket.connected:
            continue
        if socket.device is not None and (link is None or socket.device != link.name):
            continue
        bound = socket.address.removeprefix("::ffff:") if packet.family == 4 else socket.address
        score = 2 if socket.device is not None else 0
        if bound in _ANY:
            if packet.family == 4 and bound == "::" and socket.v6only:
                continue
            if packet.family == 6 and bound == "0.0.0.0":
                continue
        elif canonical(bound) == canonical(packet.dst):
            score += 4
        else:
            continue
        if best is None or score > best[0]:
            best = (score, socket)
    return best[1] if best is not None else None


class Endpoint(Engine):
    def decapsulate_vxlan(self, walk: Walk, host: Host, link: Link | None, packet: Packet) -> bool:
        raise NotImplementedError

    def decapsulate_ip(self, walk: Walk, host: Host, link: Link | None, packet: Packet) -> bool:
        raise NotImplementedError

    def unwrap(self, walk: Walk, host: Host, link: Link | None, packet: Packet) -> bool:
        """A process that unwraps a relayed packet. False: it isn't one."""
        raise NotImplementedError

    def has_socket(self, host: Host, packet: Packet, link: Link | None) -> bool | None:
        return None if host.namespace.sockets is None else match_socket(host, packet, link) is not None

    def deliver(self, walk: Walk, host: Host, link: Link | None, packet: Packet) -> None:
        if packet.inner is not None:
            for unwrap in (self.decapsulate_vxlan, self.decapsulate_ip, self.unwrap):
                if unwrap(walk, host, link, packet):
                    return
        if self.nested:
            return
        if packet.protocol in ("icmp", "icmpv6"):
            self._icmp(walk, host, link, packet)
        elif packet.protocol in ("udp", "tcp"):
            self._transport(walk, host, link, packet)
        else:
            self.drop(walk, host, link, "IP_NOPROTO", f"nothing in {host.name} takes IP protocol {packet.protocol}")

    def _received(self, walk: Walk, host: Host, link: Link | None, packet: Packet, to: str, process: str | None = None) -> None:
        delivery = Delivery(self.index.netns_ref(host.inode), to, process)
        self.end(walk, "delivered", host, link=link, delivery=delivery, packet=packet)

    def _icmp(self, walk: Walk, host: Host, link: Link | None, packet: Packet) -> None:
        if packet.icmp_type in (0, 129):
            if walk.asker != host.inode:
                self.drop(walk, host, link, "NO_SOCKET", f"nobody in {host.name} waits for this echo reply")
                return
            self._received(walk, host, link, packet, "socket")
            return
        switch = "net.ipv4.icmp_echo_ignore_all" if packet.family == 4 else "net.ipv6.icmp.echo_ignore_all"
        if packet.icmp_type in (8, 128) and host.number(switch):
            self.drop(walk, host, link, "NOT_SPECIFIED", f"{host.name} ignores echo requests", setting(host, switch, 0))
            return
        self._received(walk, host, link, packet, "responder")

    def _transport(self, walk: Walk, host: Host, link: Link | None, packet: Packet) -> None:
        if walk.asker is not None and walk.relays and walk.relays[-1].netns == host.inode:
            self._answer_through(walk, host, packet)
            return
        if walk.asker == host.inode:
            self._received(walk, host, link, packet, "socket")
            return
        if host.namespace.sockets is None:
            self._received(walk, host, link, packet, "local")
            return
        socket = match_socket(host, packet, link)
        if socket is None:
            answer = "a TCP reset" if packet.protocol == "tcp" else "ICMP port unreachable"
            self.end(
                walk,
                "rejected",
                host,
                link=link,
                reason="NO_SOCKET",
                cause=f"nothing in {host.name} listens on {packet.protocol} port {packet.dport}: it answers with {answer}",
                remedy=inside(host, f"ss -ln{'t' if packet.protocol == 'tcp' else 'u'}p  # then start the service"),
            )
            return
        target = proxy_target(socket)
        if target is None:
            self._received(walk, host, link, packet, "socket", socket.process)
            return
        if packet.protocol == "tcp":
            # It connects to the container once the handshake is done; a SYN alone ends here.
            self._received(walk, host, link, packet, "proxy", socket.process)
            return
        self._proxy(walk, host, packet, socket, target)

    def _proxy(self, walk: Walk, host: Host, packet: Packet, socket: Socket, target: ProxyTarget) -> None:
        """docker-proxy: a process copies the payload into a connection of its own."""
        walk.relays.append(Relay(host.inode, packet, socket.address in _ANY))
        fresh = Packet(
            family=ip.family_of(target.address),
            src="",
            dst=target.address,
            protocol=packet.protocol,
            sport=None,
            dport=target.port,
            ttl=host.default_ttl(ip.family_of(target.address)),
            payload=packet.payload,
        )
        self._restart(walk, host, packet, fresh, None, socket.process or "docker-proxy", socket.command)

    def _restart(
        self, walk: Walk, host: Host, old: Packet, fresh: Packet, source: str | None, process: str, command: str | None
    ) -> None:
        self.remember(walk, host)
        walk.connection, walk.mark, walk.physical_in = None, 0, None
        walk.stage("userspace", process=process)
        position = len(walk.rewrites)

        def announce(child: Walk, sent: Packet) -> None:
            before = FlowTuple(old.src, old.dst, old.sport, old.dport)
            after = FlowTuple(sent.src, sent.dst, sent.sport, sent.dport)
            rule = RuleRef(command, None, None) if command else None
            child.rewrites.insert(position, ("proxy", child.asker is not None, before, after, rule, "output", False, old.protocol))

        self.later(walk, lambda: self.send(walk, host, fresh, source=source, announce=announce))

    def _answer_through(self, walk: Walk, host: Host, received: Packet) -> None:
        relay = walk.relays.pop()
        answer = answer_to(relay.packet, ttl=host.default_ttl(relay.packet.family))
        source: str | None = answer.src
        if relay.packet.protocol == "udp" and relay.wildcard:
            source = None
        self._restart(walk, host, received, replace(answer, src=source or ""), source, "docker-proxy", None)
