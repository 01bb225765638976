"""The kernel as oracle: random rulesets, loaded for real into a router, decide what the evaluator must say of each datagram and SYN."""

from __future__ import annotations

import errno
import ipaddress
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import pytest

from netpath.model.snapshot import Namespace, Netfilter, Xtables
from netpath.netfilter import evaluator
from netpath.netfilter.types import Evaluator, HookContext, HookOutcome, PacketState
from tests.netfilter import rulesets
from tests.netns import Netns, namespaces

ROUTER = {"cl": "10.1.0.1", "s1": "10.2.0.1", "s2": "10.3.0.1"}
NETWORKS = {"cl": "10.1.0.0/24", "s1": "10.2.0.0/24", "s2": "10.3.0.0/24"}
SILENCE = 0.03
"""Seconds without anything seen at any end after which a packet counts as dropped; what arrives does so within microseconds."""
RULESETS = 72
"""For each of the three languages."""
ICMP_CODES = {3: "icmp-port-unreachable", 1: "icmp-host-unreachable", 13: "icmp-admin-prohibited"}

pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Seen:
    """What happened to a packet: where it came out (s1, s2, cl, router), or reject / drop, and what it looked like."""

    where: str
    src: str | None = None
    dst: str | None = None
    sport: int | None = None
    dport: int | None = None
    how: str | None = None


class Bench:
    """Client, router and two servers; taps on the ends, sockets that receive on the servers and the router."""

    def __init__(self, router: Netns, client: Netns, servers: dict[str, Netns]) -> None:
        self.router, self.client = router, client
        for name in ("all", "default"):
            router.sysctl(f"net.ipv4.conf.{name}.send_redirects", 0)
        for device, netns in {"cl": client, **servers}.items():
            mac = f"02:00:00:00:00:{len(device):02x}"
            # Both ends have one MAC address and no ARP, so that no neighbour is ever asked for.
            router.batch(f"link add {device} address {mac} type veth peer e0 netns {netns.name} address {mac}")
            router.batch(f"link set {device} arp off up", f"addr add {ROUTER[device]}/24 dev {device}")
            own = [rulesets.CLIENT] if device == "cl" else list(rulesets.SERVERS[device])
            netns.batch(
                *(f"addr add {one}/24 dev e0" for one in own), "link set e0 arp off up", f"route add default via {ROUTER[device]}"
            )
        router.batch("route add 10.96.0.0/16 via 10.2.0.2")
        for netns in (router, *servers.values(), client):
            netns.sysctl("net.ipv4.conf.all.rp_filter", 0)
            netns.sysctl("net.ipv4.icmp_ratemask", 0)
        router.sysctl("net.ipv4.ip_forward", 1)
        self.taps = {name: self._tap(netns) for name, netns in {"cl": client, **servers}.items()}
        self.router_sockets = [self._receiver(router, port) for port in rulesets.PORTS]
        self.server_sockets = [self._receiver(netns, port) for netns in servers.values() for port in rulesets.PORTS]
        self.conntrack = router.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        self.sport = 20000

    def forget(self) -> None:
        """Flush the router's connections (IPCTNL_MSG_CT_DELETE): a tuple that is in use would change what NAT does."""
        self.conntrack.send(struct.pack("=LHHLL", 20, 0x102, 5, 1, 0) + bytes(4))
        answer = self.conntrack.recv(4096)
        assert struct.unpack("=l", answer[16:20])[0] == 0

    @staticmethod
    def _tap(netns: Netns) -> socket.socket:
        tap = netns.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        tap.bind(("e0", 0x0800))
        tap.setblocking(False)
        return tap

    @staticmethod
    def _receiver(netns: Netns, port: int) -> socket.socket:
        receiver = netns.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
        receiver.bind(("0.0.0.0", port))
        receiver.setblocking(False)
        return receiver

    def load(self, text: rulesets.Ruleset, language: str) -> Netfilter:
        """Replace all rules and sets of the router; what its own tools print of them is what the evaluator gets."""
        for tool in ("iptables-legacy-restore", "iptables-nft-restore"):
            flush = "".join(f"*{table}\nCOMMIT\n" for table in ("raw", "mangle", "nat", "filter"))
            self._feed(flush, tool)
        self._feed("flush ruleset\n", "nft", "-f", "-")
        self._feed("flush\ndestroy\n", "ipset", "restore")
        if language == "native":
            self._feed(text.nft, "nft", "-f", "-")
            return Netfilter(nft=self.router.run("nft", "-j", "list", "ruleset"))
        self._feed(text.ipset, "ipset", "restore")
        self._feed(text.xtables, f"iptables-{language}-restore")
        return Netfilter(
            xtables=(Xtables(4, language, self.router.run(f"iptables-{language}-save", "-c")),),
            nft=self.router.run("nft", "-j", "list", "ruleset"),
            ipset=self.router.run("ipset", "save"),
        )

    def _feed(self, text: str, *command: str) -> None:
        done = subprocess.run(
            ["nsenter", f"--net={self.router.path}", *command], input=text, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}\n{text}"

    def drain(self) -> None:
        for one in (*self.taps.values(), *self.router_sockets, *self.server_sockets):
            while True:
                try:
                    one.recv(2048)
                except BlockingIOError:
                    break

    def send(self, protocol: str, dst: str, dport: int) -> tuple[int, Seen, socket.socket]:
        """One datagram or SYN from the client: its source port, what became of it, and the socket it was sent by."""
        self.drain()
        self.forget()
        self.sport += 29
        sport = self.sport
        sender = self.client.socket(socket.AF_INET, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
        sender.setblocking(False)
        sender.bind((rulesets.CLIENT, sport))
        if protocol == "udp":
            sender.sendto(b"x" * 10, (dst, dport))
        else:
            assert sender.connect_ex((dst, dport)) in (errno.EINPROGRESS, errno.ECONNREFUSED, errno.EHOSTUNREACH, 0)
        return sport, self.observe(protocol, sport, "cl"), sender

    def answer(self, got: Seen) -> Seen | None:
        """The server's answer to a datagram that it got: what became of that; None if no socket of it received it."""
        for one in self.server_sockets:
            try:
                _, extra, _, peer = one.recvmsg(2048, 256)
            except BlockingIOError:
                continue
            self.drain()
            # From the address that was asked, whichever is the first of the server's (IP_PKTINFO).
            one.sendmsg([b"y" * 10], [(0, 8, struct.pack("=i4s4x", 0, extra[0][2][8:12]))], 0, peer)
            return self.observe("udp", got.sport or 0, got.where)
        return None

    def observe(self, protocol: str, sport: int, sender: str) -> Seen:
        """The first thing that happened. Anything of the packet at a server says more than an ICMP error at the client."""
        sources = [*self.taps.values(), *self.router_sockets]
        deadline = time.monotonic() + SILENCE
        answer: Seen | None = None
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select(sources, [], [], 0 if answer else left)
            for one in ready:
                seen = self._read(one, protocol, sport, sender)
                if seen is not None and seen.where != "reject":
                    return seen
                answer = answer or seen
            if answer and not ready:
                return answer
        return answer or Seen("drop")

    def _read(self, one: socket.socket, protocol: str, sport: int, sender: str) -> Seen | None:
        if one in self.router_sockets:
            _, extra, _, (src, port) = one.recvmsg(2048, 256)
            dst = next((socket.inet_ntoa(data[8:12]) for level, kind, data in extra if (level, kind) == (0, 8)), None)
            return Seen("router", src, dst, port, one.getsockname()[1])
        data, address = one.recvfrom(2048)
        if address[2] == 4:  # PACKET_OUTGOING: what this end sends itself
            return None
        where = next(name for name, tap in self.taps.items() if tap is one)
        header = (data[0] & 15) * 4
        src, dst = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
        if data[9] == 1 and where == sender:
            return Seen("reject", how=ICMP_CODES.get(data[header + 1], str(data[header + 1])))
        if data[9] != {"udp": 17, "tcp": 6}[protocol]:
            return None
        first, second = struct.unpack("!HH", data[header : header + 4])
        if protocol == "tcp" and data[header + 13] & 4:
            return Seen("reject", how="tcp-reset") if where == sender and second == sport else None
        if protocol == "tcp" and data[header + 13] & 0x12 != 2:
            return None
        return Seen(where, src, dst, first, second)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with namespaces(4) as (router, client, first, second):
        yield Bench(router, client, {"s1": first, "s2": second})


def context(hook: str, incoming: str | None, outgoing: str | None) -> HookContext:
    return HookContext(
        hook,
        incoming,
        outgoing,
        address_type=lambda address, device: "local" if address in ROUTER.values() else "unicast",
        masquerade_source=lambda device, destination: ROUTER.get(device),
        redirect_target=lambda device: ROUTER.get(device or ""),
    )


def device_to(address: str) -> str | None:
    if address in ROUTER.values():
        return None
    if address.startswith("10.96."):
        return "s1"
    return next(name for name, network in NETWORKS.items() if ipaddress.ip_address(address) in ipaddress.ip_network(network))


def through(rules: Evaluator, packet: PacketState, incoming: str) -> list[tuple[Seen, HookOutcome]]:
    """All that the evaluator says may become of a packet, hook by hook, as the router would go."""
    found: list[tuple[Seen, HookOutcome]] = []

    def ended(outcome: HookOutcome) -> bool:
        assert outcome.uncertain == (), outcome.uncertain
        if outcome.verdict == "accept":
            return False
        found.append((Seen(outcome.verdict, how=outcome.reject_with), outcome))
        return True

    for first in rules.run(packet, context("prerouting", incoming, None)):
        if ended(first):
            continue
        outgoing = device_to(first.packet.dst)
        if outgoing is None:
            for last in rules.run(first.packet, context("input", incoming, None)):
                if not ended(last):
                    after = last.packet
                    found.append((Seen("router", after.src, after.dst, after.sport, after.dport), last))
            continue
        for middle in rules.run(replace(first.packet, ttl=first.packet.ttl - 1), context("forward", incoming, outgoing)):
            if ended(middle):
                continue
            for last in rules.run(middle.packet, context("postrouting", None, outgoing)):
                if not ended(last):
                    after = last.packet
                    found.append((Seen(outgoing, after.src, after.dst, after.sport, after.dport), last))
    assert abs(sum(1 for _ in found)) >= 1
    return found


def answered(outcome: HookOutcome, got: Seen) -> PacketState:
    """The server's answer to a datagram as it reaches the router, with the connection that the router remembers."""
    connection = outcome.packet.connection
    if connection is not None and connection.state == "untracked":
        connection = None
    if connection is not None:
        # What was left to the kernel to choose is known now.
        reply = replace(connection.reply, dport=got.sport)
        connection = replace(connection, state="established", direction="reply", reply=reply)
    assert got.src is not None and got.dst is not None
    return PacketState(4, got.dst, got.src, "udp", got.dport, got.sport, length=38, connection=connection)


def agrees(predicted: Seen, seen: Seen) -> bool:
    """A port that only the kernel knows is None in the prediction, and any will do."""
    if predicted.where != seen.where or predicted.how != seen.how:
        return False
    pairs = zip((predicted.src, predicted.dst, predicted.dport), (seen.src, seen.dst, seen.dport), strict=True)
    return all(one == other for one, other in pairs) and predicted.sport in (None, seen.sport)


@pytest.mark.parametrize("language", ["native", "nft", "legacy"])
def test_random_rulesets(bench: Bench, language: str) -> None:
    """Each ruleset gets datagrams and SYNs to services, servers and the router, and the answers to what was delivered."""
    kinds: dict[str, int] = {}
    for seed in range(RULESETS):
        random = Random(f"{language} {seed}")
        text = rulesets.ruleset(random)
        loaded = bench.load(text, language)
        rules = evaluator(Namespace(1, "router", netfilter=loaded))
        shown = text.nft if language == "native" else text.xtables
        for _ in range(5):
            protocol = random.choice(("udp", "udp", "tcp"))
            dst = random.choice((rulesets.VIP, rulesets.VIP, *rulesets.SERVERS["s1"], *rulesets.SERVERS["s2"]))
            dst = random.choice((dst, "10.1.0.1")) if protocol == "udp" else dst
            dport = random.choice(rulesets.PORTS)
            sport, seen, sender = bench.send(protocol, dst, dport)
            with sender:
                packet = PacketState(4, rulesets.CLIENT, dst, protocol, sport, dport, length=38 if protocol == "udp" else 60)
                predicted = through(rules, packet, "cl")
                right = [outcome for one, outcome in predicted if agrees(one, seen)]
                said = [one for one, _ in predicted]
                assert right, f"{language} {seed}: {protocol} {sport} -> {dst}:{dport}: {seen}, predicted {said}\n{shown}"
                kinds[seen.where] = kinds.get(seen.where, 0) + 1
                changed = (seen.src, seen.dst, seen.dport) != (rulesets.CLIENT, dst, dport) and seen.src is not None
                if protocol == "udp" and seen.where in rulesets.SERVERS:
                    back = bench.answer(seen)
                    if back is not None:
                        ways = [one for outcome in right for one, _ in through(rules, answered(outcome, seen), seen.where)]
                        assert any(agrees(way, back) for way in ways), (
                            f"{language} {seed}: the answer to {seen}: {back}, predicted {ways}\n{shown}"
                        )
                        kinds["answered"] = kinds.get("answered", 0) + 1
                kinds["translated"] = kinds.get("translated", 0) + changed
    # A generator that only ever drops or only ever delivers would prove little.
    for wanted in ("s1", "s2", "router", "drop", "reject", "translated", "answered"):
        assert kinds.get(wanted, 0) >= 8, kinds
