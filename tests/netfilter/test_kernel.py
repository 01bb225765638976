"""The kernel as oracle: random rulesets, loaded for real into a router, decide what must be predicted for each datagram and SYN.

The whole of the prediction is asked: discovery reads the router as it stands, `predict` walks a packet through it, and
`predict_reply` the answer back.
"""

from __future__ import annotations

import errno
import re
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import pytest

from netpath import discover
from netpath.model.index import SnapshotIndex
from netpath.model.packet import Flow, Ipv4, Ipv6, Tcp, Udp
from netpath.model.path import Path
from netpath.model.snapshot import Snapshot
from netpath.predict import predict
from netpath.predict.walker import predict_reply
from tests.netfilter import rulesets
from tests.netns import Netns, namespaces

ROUTER = {"cl": "10.1.0.1", "s1": "10.2.0.1", "s2": "10.3.0.1"}
SILENCE = 0.03
"""Seconds without anything seen at any end after which a packet counts as dropped; what arrives does so within microseconds."""
RULESETS = 48
"""For each of the three languages in each family."""
PACKETS = 6
ICMP_CODES = {
    4: {(3, 3): "icmp-port-unreachable", (3, 1): "icmp-host-unreachable", (3, 13): "icmp-admin-prohibited"},
    6: {(1, 4): "icmp6-port-unreachable", (1, 3): "icmp6-addr-unreachable", (1, 1): "icmp6-adm-prohibited"},
}
WORDS = {
    "icmpx-admin-prohibited": "icmp-admin-prohibited",
    "icmp6-admin-prohibited": "icmp6-adm-prohibited",
    "icmp6-adm-prohibited": "icmp6-adm-prohibited",
}
"""nft's names for what iptables calls otherwise."""

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

    def __init__(self, family: int, router: Netns, client: Netns, servers: dict[str, Netns]) -> None:
        self.family = family
        self.ends = {"cl": client, **servers}
        self.router = router
        if family == 4:
            for name in ("all", "default"):
                router.sysctl(f"net.ipv4.conf.{name}.send_redirects", 0)
        late = " nodad" if family == 6 else ""
        for device, netns in self.ends.items():
            mac = f"02:00:00:00:00:{len(device):02x}"
            # Both ends have one MAC address and no ARP, so that no neighbour is ever asked for.
            router.batch(f"link add {device} address {mac} type veth peer e0 netns {netns.name} address {mac}")
            router.batch(f"link set {device} arp off up", f"addr add {self.text(f'{ROUTER[device]}/24')} dev {device}{late}")
            own = [rulesets.CLIENT] if device == "cl" else list(rulesets.SERVERS[device])
            netns.batch(
                *(f"addr add {self.text(f'{one}/24')} dev e0{late}" for one in own),
                "link set e0 arp off up",
                f"route add default via {self.text(ROUTER[device])} dev e0",
            )
        router.batch(f"route add {self.text('10.96.0.0/16')} via {self.text('10.2.0.2')} dev s1")
        for netns in (router, *self.ends.values()):
            netns.sysctl("net.ipv4.conf.all.rp_filter", 0)
            netns.sysctl("net.ipv4.icmp_ratemask", 0)
            netns.sysctl("net.ipv6.icmp.ratelimit", 0)
        router.sysctl("net.ipv4.ip_forward" if family == 4 else "net.ipv6.conf.all.forwarding", 1)
        self.taps = {name: self._tap(netns) for name, netns in self.ends.items()}
        self.router_sockets = [self._receiver(router, port) for port in rulesets.PORTS]
        self.server_sockets = [self._receiver(netns, port) for netns in servers.values() for port in rulesets.PORTS]
        self.conntrack = router.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        self.sport = 20000

    def text(self, text: str) -> str:
        """Something about IPv4 in the family of this bench."""
        return text if self.family == 4 else rulesets.six(text)

    @property
    def inodes(self) -> dict[int, str]:
        return {self.router.inode: "router", **{netns.inode: name for name, netns in self.ends.items()}}

    def forget(self) -> None:
        """Flush the router's connections (IPCTNL_MSG_CT_DELETE): a tuple that is in use would change what NAT does."""
        self.conntrack.send(struct.pack("=LHHLL", 20, 0x102, 5, 1, 0) + bytes(4))
        answer = self.conntrack.recv(4096)
        assert struct.unpack("=l", answer[16:20])[0] == 0

    def _tap(self, netns: Netns) -> socket.socket:
        kind = 0x0800 if self.family == 4 else 0x86DD
        tap = netns.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(kind))
        tap.bind(("e0", kind))
        tap.setblocking(False)
        return tap

    def _socket(self, netns: Netns, kind: int) -> socket.socket:
        made = netns.socket(socket.AF_INET if self.family == 4 else socket.AF_INET6, kind)
        made.setblocking(False)
        return made

    def _receiver(self, netns: Netns, port: int) -> socket.socket:
        receiver = self._socket(netns, socket.SOCK_DGRAM)
        if self.family == 4:
            receiver.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
        else:
            receiver.setsockopt(socket.IPPROTO_IPV6, 49, 1)  # IPV6_RECVPKTINFO
        receiver.bind(("", port))
        return receiver

    def load(self, rules: rulesets.Ruleset, language: str) -> None:
        """Replace all rules and sets of the router."""
        for tool in ("iptables-legacy-restore", "iptables-nft-restore"):
            flush = "".join(f"*{table}\nCOMMIT\n" for table in ("raw", "mangle", "nat", "filter"))
            self._feed(flush, tool if self.family == 4 else tool.replace("ip", "ip6", 1))
        self._feed("flush ruleset\n", "nft", "-f", "-")
        self._feed("flush\ndestroy\n", "ipset", "restore")
        if language == "native":
            self._feed(self.text(rules.nft), "nft", "-f", "-")
            return
        self._feed(self.text(rules.ipset), "ipset", "restore")
        tool = f"ip{'' if self.family == 4 else '6'}tables-{language}-restore"
        self._feed(self.text(rules.xtables), tool)

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

    def send(self, sender: str, protocol: str, dst: str, dport: int) -> tuple[int, Seen, socket.socket]:
        """One datagram or SYN from the client or the router: its source port, what became of it, and the socket it was sent by."""
        self.drain()
        self.forget()
        self.sport += 29
        own = self._socket(
            self.router if sender == "router" else self.ends[sender], socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
        )
        own.bind(("" if sender == "router" else self.text(rulesets.CLIENT), self.sport))
        try:
            if protocol == "udp":
                own.sendto(b"x" * 10, (dst, dport))
            else:
                code = own.connect_ex((dst, dport))
                refused = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES, errno.EPERM)
                assert code in (errno.EINPROGRESS, 0, *refused), code
        except PermissionError:
            # What the sender's own rules drop is an error of the call (nf_hook_slow).
            return self.sport, Seen("drop"), own
        return self.sport, self.observe(protocol, self.sport, sender), own

    def answer(self, got: Seen) -> Seen | None:
        """The server's answer to a datagram that it got: what became of that; None if no socket of it received it."""
        for one in self.server_sockets:
            try:
                _, extra, _, peer = one.recvmsg(2048, 256)
            except BlockingIOError:
                continue
            self.drain()
            # From the address that was asked, whichever is the first of the server's (IP_PKTINFO).
            asked = extra[0][2]
            own = (0, 8, struct.pack("=i4s4x", 0, asked[8:12])) if self.family == 4 else (41, 50, asked[:16] + bytes(4))
            one.sendmsg([b"y" * 10], [own], 0, peer)
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
            _, extra, _, peer = one.recvmsg(2048, 256)
            parts = (
                data[8:12] if self.family == 4 else data[:16] for level, kind, data in extra if (level, kind) in ((0, 8), (41, 50))
            )
            return Seen("router", peer[0], self._address(next(parts)), peer[1], one.getsockname()[1])
        data, address = one.recvfrom(2048)
        if address[2] == 4:  # PACKET_OUTGOING: what this end sends itself
            return None
        where = next(name for name, tap in self.taps.items() if tap is one)
        header = (data[0] & 15) * 4 if self.family == 4 else 40
        carried = data[9] if self.family == 4 else data[6]
        src, dst = (data[12:16], data[16:20]) if self.family == 4 else (data[8:24], data[24:40])
        if carried == {4: 1, 6: 58}[self.family] and where == sender:
            how = ICMP_CODES[self.family].get((data[header], data[header + 1]))
            return None if how is None else Seen("reject", how=how)
        if carried != {"udp": 17, "tcp": 6}[protocol]:
            return None
        first, second = struct.unpack("!HH", data[header : header + 4])
        if protocol == "tcp" and data[header + 13] & 4:
            return Seen("reject", how="tcp-reset") if where == sender and second == sport else None
        if protocol == "tcp" and data[header + 13] & 0x12 != 2:
            return None
        return Seen(where, self._address(src), self._address(dst), first, second)

    @staticmethod
    def _address(data: bytes) -> str:
        return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)

    def said(self, path: Path, flow: Flow) -> Seen:
        """A predicted path in the words of what can be seen."""
        names = self.inodes
        for hop in path.hops:
            if hop.netns.inode in names and names[hop.netns.inode] != "router" and hop.direction == "rx":
                ip = next(header for header in hop.headers if isinstance(header, Ipv4 | Ipv6))
                ports = next(header for header in hop.headers if isinstance(header, Udp | Tcp))
                return Seen(names[hop.netns.inode], ip.src, ip.dst, ports.sport, ports.dport)
        if path.outcome in ("dropped", "rejected"):
            if path.drop is not None and path.drop.reason == "NO_SOCKET":
                return Seen("reject", how="icmp-port-unreachable" if self.family == 4 else "icmp6-port-unreachable")
            refused = re.search(r"refuses it with (\S+) at", path.drop.cause if path.drop else "")
            return Seen("reject", how=WORDS.get(refused[1], refused[1])) if refused else Seen("drop")
        assert path.outcome == "delivered", path
        if not path.translations:
            return Seen("router", flow.src, flow.dst, flow.sport, flow.dport)
        last = path.translations[-1].after
        (src, sport), (dst, dport) = (_split(end) for end in (last.src, last.dst))
        return Seen("router", src, dst, sport, dport)


def _split(end: str) -> tuple[str, int | None]:
    address, _, port = end.rpartition(":")
    return address.strip("[]"), None if port == "*" else int(port)


@pytest.fixture(scope="module", params=[4, 6], ids=["ipv4", "ipv6"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with namespaces(4) as (router, client, first, second):
        yield Bench(request.param, router, client, {"s1": first, "s2": second})


def agrees(predicted: Seen, seen: Seen, sender: str, *, muted: bool) -> bool:
    """A port that only the kernel knows is None in the prediction, and any will do.

    `muted`: the router has rules for what it says itself, so that its refusals may not get out.
    """
    if muted and predicted.where == "reject" and seen.where == "drop":
        return True
    if sender == "router" and predicted.where in ("drop", "reject"):
        # What its own rules refuse the router is told by an error of a call, or not at all.
        return seen.where in ("drop", "reject")
    if predicted.where != seen.where or predicted.how != seen.how:
        return False
    pairs = [(predicted.src, seen.src), (predicted.dst, seen.dst), (predicted.dport, seen.dport)]
    if sender == "router" and predicted.src is None:
        del pairs[0]
    return all(one == other for one, other in pairs) and predicted.sport in (None, seen.sport)


def taken(bench: Bench) -> Snapshot:
    snapshot = discover.take(only=bench.inodes)
    assert not [problem for namespace in snapshot.namespaces for problem in namespace.problems]
    return snapshot


def _translating(where: str, to: str) -> tuple[str, ...]:
    """The command and the text that make a table translate what goes out by s1: iptables' (nft, legacy) or a native one."""
    if where in ("nft", "legacy"):
        return f"iptables-{where}-restore", "--noflush", f"*nat\n-A POSTROUTING -o s1 -j SNAT --to-source {to}\nCOMMIT\n"
    rule = f'type nat hook postrouting priority 100; oifname "s1" snat to {to};'
    return "nft", "-f", "-", f"table ip {where} {{ chain c {{ {rule} }}; }};\n"


@pytest.mark.parametrize(
    "order", [("a", "b"), ("b", "a"), ("nft", "a"), ("a", "nft"), ("legacy", "nft"), ("a", "legacy")], ids=" then ".join
)
def test_of_one_priority_the_newest_is_asked_first(bench: Bench, order: tuple[str, str]) -> None:
    """Unless netpath can't know which that is, and it matters: then it says so."""
    bench.load(rulesets.Ruleset("", "", ""), "native")
    for number, where in enumerate(order):
        *command, text = _translating(where, bench.text(f"10.2.0.{77 + number}"))
        bench._feed(bench.text(text), command[0] if bench.family == 4 else command[0].replace("ip", "ip6", 1), *command[1:])
    dst = bench.text("10.2.0.2")
    sport, seen, own = bench.send("cl", "udp", dst, 7777)
    with own:
        flow = Flow(bench.ends["cl"].inode, dst, "udp", bench.text(rulesets.CLIENT), sport, 7777, payload=10)
        (path,) = predict(taken(bench), flow).paths
        assert "legacy" in order or bench.said(path, flow) == seen
        assert bool(path.uncertain) == ("legacy" in order), path.uncertain
    assert seen.src in (bench.text("10.2.0.77"), bench.text("10.2.0.78"))


SOURCES = {
    "its own": "10.1.0.2",
    "of another side": "10.3.0.50",
    "of either side": "10.4.0.2",
    "of nowhere": "10.7.0.1",
    "refused": "10.5.0.1",
    "of the router": "10.2.0.1",
    "of this side by mark": "10.6.0.1",
}
"""Where the packets claim to come from that all come from the client."""
REVERSE_PATH = {
    "rpfilter": "-m rpfilter --invert",
    "not inverted": "-m rpfilter",
    "loose": "-m rpfilter --loose --invert",
    "mark": "-m rpfilter --validmark --invert",
    "local": "-m rpfilter --accept-local --invert",
    "loose local": "-m rpfilter --loose --accept-local --invert",
    "missing": "fib saddr . iif oif missing",
    "exists": "fib saddr . iif oif exists",
    "zero": "fib saddr . iif oif 0",
    "marked": "fib saddr . mark . iif oif missing",
    "any": "fib saddr oif missing",
    "other": 'fib saddr oifname != "cl"',
    "towards": 'fib daddr oif "s1"',
    "forth": 'fib daddr oifname "s2"',
}


@pytest.mark.parametrize("words", REVERSE_PATH.values(), ids=list(REVERSE_PATH))
def test_rules_that_ask_for_the_way_back(bench: Bench, reverse_path: None, words: str) -> None:
    """Dropped by the rule or not: the same as predicted, for sources whose way back is this device, another, either or none."""
    outcomes = set()
    for language in ("nft", "legacy") if words.startswith("-m") else ("native",):
        bench.load(_marking_and_dropping(words), language)
        snapshot = taken(bench)
        for what, four in SOURCES.items():
            src, dst = bench.text(four), bench.text("10.2.0.2")
            bench.drain()
            bench.sport += 29
            with bench._socket(bench.ends["cl"], socket.SOCK_DGRAM) as own:
                own.bind((src, bench.sport))
                own.sendto(b"x" * 10, (dst, 7777))
                seen = bench.observe("udp", bench.sport, "cl")
            flow = Flow(bench.ends["cl"].inode, dst, "udp", src, bench.sport, 7777, payload=10)
            paths = predict(snapshot, flow).paths
            assert not [path.uncertain for path in paths if path.uncertain], (what, language)
            # Only of an IPv6 route over either device it can't be told which.
            assert len(paths) == 1 or (bench.family == 6 and what == "of either side"), (what, language)
            assert seen in [bench.said(path, flow) for path in paths], (what, language, paths[0].drop)
            outcomes.add(seen.where)
    assert outcomes >= {"drop", "s1"} or words in CONSTANT


CONSTANT = (REVERSE_PATH["towards"], REVERSE_PATH["forth"])
"""What does not depend on the source."""


def _marking_and_dropping(words: str) -> rulesets.Ruleset:
    """One rule that gives packets from 10.6.0.0/16 a mark, and one that drops what `words` match."""
    return rulesets.Ruleset(
        f"*mangle\n-A PREROUTING -s 10.6.0.0/16 -j MARK --set-mark 6\n-A PREROUTING -i cl {words} -j DROP\nCOMMIT\n",
        "table ip t { chain c { type filter hook prerouting priority -150;"
        f'ip saddr 10.6.0.0/16 meta mark set 6; iifname "cl" {words} drop; }}; }};\n',
        "",
    )


@pytest.fixture(scope="module")
def reverse_path(bench: Bench) -> Iterator[None]:
    """Ways back over another device, over either of two, over none; one that only a mark leads to the client."""
    ip = ("ip",) if bench.family == 4 else ("ip", "-6")
    router, one = bench.router, bench.text
    router.run(
        *ip,
        "route",
        "add",
        one("10.4.0.0/16"),
        *f"nexthop via {one('10.3.0.2')} dev s2".split(),
        *f"nexthop via {one('10.1.0.2')} dev cl".split(),
    )
    router.run(*ip, "route", "add", "blackhole", one("10.5.0.0/16"))
    router.run(*ip, "route", "add", one("10.6.0.0/16"), "via", one("10.3.0.2"), "dev", "s2")
    router.run(*ip, "route", "add", one("10.6.0.0/16"), "via", one("10.1.0.2"), "dev", "cl", "table", "66")
    router.run(*ip, "rule", "add", "fwmark", "6", "lookup", "66", "priority", "66")
    router.sysctl("net.ipv4.conf.all.accept_local", 1)
    client = bench.ends["cl"]
    held = [one(f"{address}/32") for address in SOURCES.values() if address != rulesets.CLIENT]
    for address in held:
        client.run(*ip, "addr", "add", address, "dev", "lo", *(("nodad",) if bench.family == 6 else ()))
    yield
    for address in held:
        client.run(*ip, "addr", "del", address, "dev", "lo")
    router.run(*ip, "rule", "del", "priority", "66")


@pytest.mark.parametrize("language", ["native", "nft", "legacy"])
def test_random_rulesets(bench: Bench, language: str) -> None:
    """Each ruleset gets datagrams and SYNs to services, servers and the router, and the answers to what was delivered."""
    kinds: dict[str, int] = {}
    servers = [*rulesets.SERVERS["s1"], *rulesets.SERVERS["s2"]]
    for seed in range(RULESETS):
        random = Random(f"{language} {seed} {bench.family}")
        text = rulesets.ruleset(random)
        bench.load(text, language)
        snapshot = taken(bench)
        index = SnapshotIndex(snapshot)
        muted = "OUTPUT" in text.xtables
        shown = bench.text(text.nft if language == "native" else text.xtables)
        for _ in range(PACKETS):
            sender = random.choice(("cl", "cl", "cl", "router"))
            protocol = random.choice(("udp", "udp", "tcp"))
            four = random.choice((rulesets.VIP, rulesets.VIP, *servers))
            # To itself the router sends nothing: there a refusal could not be told from an answer.
            four = random.choice((four, ROUTER["cl"])) if protocol == "udp" and sender == "cl" else four
            dst, dport = bench.text(four), random.choice(rulesets.PORTS)
            sport, seen, own = bench.send(sender, protocol, dst, dport)
            with own:
                netns = bench.router.inode if sender == "router" else bench.ends[sender].inode
                src = None if sender == "router" else bench.text(rulesets.CLIENT)
                flow = Flow(netns, dst, protocol, src, sport, dport, payload=10 if protocol == "udp" else 0)
                paths = predict(snapshot, flow, index=index).paths
                if reasons := [reason for path in paths for reason in path.uncertain]:
                    # A rule may ask for the port that --random-fully took: nobody can tell. There is no other doubt.
                    assert all("port, which is not known" in reason or "port is not known" in reason for reason in reasons), reasons
                    kinds["undecidable"] = kinds.get("undecidable", 0) + 1
                    continue
                predicted = [(bench.said(path, flow), path) for path in paths]
                right = [path for one, path in predicted if agrees(one, seen, sender, muted=muted)]
                what = f"{language} {seed}: {protocol} {sender} {sport} -> {dst}:{dport}"
                assert right, f"{what}: {seen}, predicted {[one for one, _ in predicted]}\n{shown}"
                kinds[seen.where] = kinds.get(seen.where, 0) + 1
                changed = seen.src is not None and (seen.src, seen.dst, seen.dport) != (flow.src or seen.src, dst, dport)
                kinds["translated"] = kinds.get("translated", 0) + changed
                kinds["from the router"] = kinds.get("from the router", 0) + (sender == "router" and seen.where in rulesets.SERVERS)
                if sender == "router" or protocol == "tcp" or seen.where not in rulesets.SERVERS:
                    continue
                back = bench.answer(seen)
                # A port that only the kernel knew: rules that ask for it can't be evaluated on the way back.
                right = [path for path in right if bench.said(path, flow).sport is not None]
                if back is None or not right:
                    continue
                ways = [bench.said(way, flow) for path in right for way in predict_reply(snapshot, flow, path, index=index).paths]
                assert any(agrees(way, back, seen.where, muted=muted) for way in ways), (
                    f"{what}: the answer {back}, predicted {ways}\n{shown}"
                )
                kinds["answered"] = kinds.get("answered", 0) + 1
    # A generator that only ever drops or only ever delivers would prove little.
    for wanted in ("s1", "s2", "router", "drop", "reject", "translated", "answered", "from the router"):
        assert kinds.get(wanted, 0) >= 5, kinds
    assert kinds.get("undecidable", 0) <= RULESETS * PACKETS // 50, kinds
