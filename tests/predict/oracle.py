"""Builds a plan in the kernel, sends its packet, and reports what every device and the receiver saw, beside the prediction.

Run in worker processes (`python -m tests.predict.oracle`): one seed a line in, one JSON result a line out.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import select
import socket
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from netpath.model.index import SnapshotIndex
from netpath.model.packet import Flow
from netpath.model.path import Path as Way
from netpath.model.snapshot import Snapshot
from netpath.predict import predict
from netpath.predict.route import Query
from tests.netns import Netns
from tests.predict import topologies
from tests.predict.topologies import PORT, Plan

ETH_P_ALL = 3
PACKET_OUTGOING = 4
ETH_IPV4, ETH_IPV6, FRAGMENT = 0x0800, 0x86DD, 44
VXLAN_FLAGS = b"\x08\0\0\0"
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 10, 23
PMTUDISC_DONT, PMTUDISC_DO = 0, 2
SO_TIMESTAMPNS = 35
QUIET_SECONDS = 0.08
"""Longer than a lost neighbour solicitation costs under `_QUICK`."""
ARRIVE_SECONDS = 3.0
READY_SECONDS = 8.0

_QUICK = [
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.all.accept_dad", "0"),
]
"""Addresses are usable at once."""


def _hasty(lines: list[str]) -> list[str]:
    """A neighbour that does not answer on a new device has failed after 60 ms rather than 3 s."""
    found: list[str] = []
    for line in lines:
        words = line.split()
        if words[:2] == ["link", "set"] and "up" in words:
            found += [f"ntable change name {table} dev {words[2]} retrans 20" for table in ("arp_cache", "ndisc_cache")]
        found.append(line)
    return found


@dataclass
class Observation:
    seen: dict[int, list[tuple[int, str]]]
    """Per namespace, in order: (ifindex, direction)."""
    delivered: bool
    refused: bool
    """The sender got ICMP port unreachable."""
    send_error: str | None


@dataclass
class Report:
    """What came of one seed. Empty `problems`: the prediction was right."""

    seed: int
    features: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    delivered: bool = False
    outcome: str = ""
    problems: list[str] = field(default_factory=list)
    routes_compared: int = 0
    seconds: float = 0.0


def _batch(tool: str, netns: str | None, lines: list[str], *options: str) -> None:
    if not lines:
        return
    where = ["-n", netns] if netns else []
    words = [tool, *options, *where, "-batch", "-"]
    done = subprocess.run(words, input="\n".join(lines) + "\n", text=True, capture_output=True, check=False)
    if done.returncode or done.stderr.strip():
        raise AssertionError(f"{tool} in {netns}: {done.stderr.strip()}\n" + "\n".join(lines))


class Stage:
    """A plan that stands in the kernel until the block ends."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.netns: dict[str, Netns] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Stage:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _build(self) -> None:
        plan = self.plan
        roles = sorted({role for wire in plan.wires for role in (wire[0], wire[2])})
        token = secrets.token_hex(4)
        for role in roles:
            self.netns[role] = Netns(f"npt{token}{role.lower()}")
        names = [netns.name for netns in self.netns.values()]
        self._stack.callback(_batch_delete, names)
        _batch("ip", None, [f"netns add {name}" for name in names])
        for netns in self.netns.values():
            netns.call(lambda: _write(_QUICK))
        by_role: dict[str, list[str]] = {}
        for a, left, b, right, mtu in plan.wires:
            by_role.setdefault(a, []).append(
                f"link add {left} mtu {mtu} type veth peer name {right} mtu {mtu} netns {self.netns[b].name}"
            )
        for role in roles:
            _batch("ip", self.netns[role].name, ["link set lo up", *by_role.get(role, [])])
        for role in roles:
            _batch("ip", self.netns[role].name, _hasty(plan.ip.get(role, [])))
        for role in roles:
            _batch("bridge", self.netns[role].name, plan.bridge.get(role, []))
        for role in roles:
            if plan.late.get(role):
                wanted = plan.late[role]
                self.netns[role].call(lambda wanted=wanted: _write(wanted))  # type: ignore[misc]
        for role in roles:
            lines = plan.late_ip.get(role, [])
            _batch("ip", self.netns[role].name, [line for line in lines if not line.startswith("-6 ")])
            _batch("ip", self.netns[role].name, [line[3:] for line in lines if line.startswith("-6 ")], "-6")

    def inodes(self) -> dict[str, int]:
        return {role: netns.inode for role, netns in self.netns.items()}

    def snapshot(self) -> Snapshot:
        """Once carriers and bridge ports have settled (the kernel does that in a work queue)."""
        from netpath import discover

        deadline = time.monotonic() + READY_SECONDS
        inodes = set(self.inodes().values())
        while True:
            snapshot = discover.take(only=inodes)
            if _settled(snapshot) or time.monotonic() > deadline:
                return snapshot
            select.select([], [], [], 0.01)


def _settled(snapshot: Snapshot) -> bool:
    index = SnapshotIndex(snapshot)
    for namespace in snapshot.namespaces:
        for link in namespace.links:
            if link.kind == "veth" and link.peer is not None:
                peer = index.link(link.peer)
                both = link.up and peer is not None and peer.up
                if link.up and link.carrier != both:
                    return False
                if both and (link.operstate != "UP" or (link.port is not None and link.port.state != "forwarding")):
                    return False
                if (
                    link.up
                    and not both
                    and (
                        link.operstate not in ("LOWERLAYERDOWN", "DOWN")
                        or (link.port is not None and link.port.state != "disabled")
                    )
                ):
                    return False
            if link.kind == "vlan" and link.up and link.operstate not in ("UP", "LOWERLAYERDOWN"):
                return False
        if any("tentative" in address.flags for address in namespace.addresses):
            return False
        # IPv6's own chatter may be resolving a neighbour: the probe would wait behind it.
        if any(neighbour.state == "INCOMPLETE" for neighbour in namespace.neighbours):
            return False
    return True


def _write(settings: list[tuple[str, str]]) -> None:
    for name, value in settings:
        Path("/proc/sys", *name.split(".")).write_text(value)


def _batch_delete(names: list[str]) -> None:
    subprocess.run(
        ["ip", "-force", "-batch", "-"],
        input="\n".join(f"netns del {name}" for name in names),
        text=True,
        capture_output=True,
        check=False,
    )


class Ears:
    """A packet socket in every namespace, on all devices."""

    def __init__(self, stage: Stage, stack: ExitStack) -> None:
        self._sockets: dict[int, socket.socket] = {}
        for netns in stage.netns.values():
            ear = stack.enter_context(netns.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
            ear.setblocking(False)
            self._sockets[netns.inode] = ear
        self.seen: dict[int, list[tuple[int, str]]] = {inode: [] for inode in self._sockets}
        self._index = {
            netns.inode: netns.call(lambda: {name: n for n, name in socket.if_nameindex()}) for netns in stage.netns.values()
        }

    def listen(self, nonce: bytes) -> int:
        """Take what has come; the number of new sightings."""
        new = 0
        for inode, ear in self._sockets.items():
            while True:
                try:
                    data, address = ear.recvfrom(65536)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno == errno.ENETDOWN:
                        continue
                    raise
                if nonce in data and not _is_error(data):
                    self.seen[inode].append((self._index[inode][address[0]], "tx" if address[2] == PACKET_OUTGOING else "rx"))
                    new += 1
        return new


def _is_error(frame: bytes) -> bool:
    """An ICMP error (it quotes the packet, nonce and all), alone or inside a VXLAN."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == ETH_IPV4:
        protocol, above = frame[23], 14 + (frame[14] & 0xF) * 4
    elif kind == ETH_IPV6:
        protocol, above = frame[20], 54
        if protocol == FRAGMENT:
            protocol, above = frame[54], 62
    else:
        return False
    if protocol in (1, 58):
        return frame[above] in ((3, 11) if protocol == 1 else (1, 2, 3, 4))
    # A VXLAN header has nothing but the I flag in its first four bytes; no probe's payload starts so.
    if protocol == 17 and frame[above + 8 : above + 12] == VXLAN_FLAGS:
        return _is_error(frame[above + 16 :])
    return False


def send_and_watch(stage: Stage, stack: ExitStack, nonce: bytes) -> Observation:
    plan = stage.plan
    family = socket.AF_INET if plan.family == 4 else socket.AF_INET6
    ears = Ears(stage, stack)
    receiver = stack.enter_context(stage.netns[plan.destination].socket(family, socket.SOCK_DGRAM))
    receiver.setblocking(False)
    receiver.bind(("", PORT if plan.listen else 0))
    sender = stack.enter_context(stage.netns[plan.source].socket(family, socket.SOCK_DGRAM))
    if plan.family == 4:
        sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO if plan.df else PMTUDISC_DONT)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, plan.ttl)
        sender.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    else:
        sender.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DO if plan.df else PMTUDISC_DONT)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, plan.ttl)
        sender.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR
    if plan.mark:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, plan.mark)
    sender.bind(("", plan.sport))
    sender.setblocking(False)
    ears.listen(nonce)
    refused = False
    send_error = None
    try:
        sender.sendto(nonce + b"." * (plan.size - len(nonce)), (plan.target, PORT))
    except OSError as error:
        send_error = errno.errorcode.get(error.errno or 0, str(error.errno))
    delivered = False
    quiet_at = time.monotonic() + QUIET_SECONDS
    deadline = time.monotonic() + ARRIVE_SECONDS
    while time.monotonic() < min(quiet_at, deadline):
        select.select([receiver], [], [], 0.005)
        try:
            while True:
                if nonce in receiver.recvfrom(65536)[0]:
                    delivered = True
        except BlockingIOError:
            pass
        refused = refused or _port_unreachable(sender)
        if ears.listen(nonce):
            quiet_at = time.monotonic() + QUIET_SECONDS
    ears.listen(nonce)
    return Observation(ears.seen, delivered, refused, send_error)


def _port_unreachable(sender: socket.socket) -> bool:
    """Read the error queue: struct sock_extended_err (linux/errqueue.h)."""
    found = False
    while True:
        try:
            _, ancillary, _, _ = sender.recvmsg(2048, 512, socket.MSG_ERRQUEUE)
        except (BlockingIOError, OSError):
            return found
        for _, _, data in ancillary:
            code, origin, kind, reason = struct.unpack_from("=IBBB", data)
            if code == errno.ECONNREFUSED and ((origin, kind, reason) in ((2, 3, 3), (3, 1, 4))):
                found = True


def judge(stage: Stage, snapshot: Snapshot, observed: Observation, report: Report) -> None:
    plan = stage.plan
    inodes = stage.inodes()
    flow = Flow(
        netns=inodes[plan.source],
        dst=plan.target,
        protocol="udp",
        sport=plan.sport,
        dport=PORT,
        payload=plan.size,
        df=plan.df,
        ttl=plan.ttl,
        mark=plan.mark,
    )
    prediction = predict(snapshot, flow)
    report.outcome = prediction.outcome
    copies = _bystander_ports(plan, snapshot, inodes)
    reasons = [_compare(way, observed, inodes, copies) for way in prediction.paths]
    if abs(sum(way.share for way in prediction.paths) - 1) > 1e-6:
        report.problems.append(f"shares add up to {sum(way.share for way in prediction.paths)}")
    if all(reasons):
        report.problems.append(f"no predicted path is what happened ({_shown(stage, observed)})")
        for way, reason in zip(prediction.paths, reasons, strict=True):
            report.problems.append(f"{reason}: {_told(way)}")
    for way in prediction.paths:
        if way.uncertain and "is for many" not in way.uncertain[0]:
            report.problems.append(f"uncertain: {way.uncertain}")


def _bystander_ports(plan: Plan, snapshot: Snapshot, inodes: dict[str, int]) -> set[tuple[int, int]]:
    """Bridge ports to the bystander: a bridge that floods sends copies there, which are no part of the way."""
    index = SnapshotIndex(snapshot)
    found = set()
    for role, device, other, _, _ in plan.wires:
        link = index.link_by_name(inodes[role], device) if other == "Y" else None
        if link is not None:
            found.add((inodes[role], link.ifindex))
    return found


def _compare(way: Way, observed: Observation, inodes: dict[str, int], copies: set[tuple[int, int]]) -> str | None:
    """None when the way is what was seen; else what differs."""
    verdict = "delivered" if observed.delivered else ("rejected" if observed.refused else "dropped")
    if way.outcome != verdict:
        return f"{way.outcome}, not {verdict}"
    expected: dict[int, list[tuple[int, str]]] = {inode: [] for inode in observed.seen}
    for hop in way.hops:
        expected[hop.netns.inode].append((hop.device.ifindex, hop.direction))
    bystander = inodes.get("Y")
    for inode, seen in observed.seen.items():
        if inode == bystander:
            continue
        if [each for each in seen if (inode, each[0]) not in copies] != expected[inode]:
            return f"in {inode}: expected {expected[inode]}, saw {seen}"
    return None


def _shown(stage: Stage, observed: Observation) -> str:
    names = {netns.inode: role for role, netns in stage.netns.items()}
    seen = "; ".join(f"{names[inode]}: {' '.join(f'{d}{n}' for n, d in each)}" for inode, each in observed.seen.items() if each)
    return f"delivered={observed.delivered} refused={observed.refused} error={observed.send_error} {seen}"


def _told(way: Way) -> str:
    hops = " ".join(f"{hop.netns.name[-1]}.{hop.device.name}#{hop.device.ifindex}.{hop.direction}" for hop in way.hops)
    return f"{way.outcome} {hops} {way.drop.reason + ': ' + way.drop.cause if way.drop else ''}"


def compare_routes(stage: Stage, snapshot: Snapshot, report: Report) -> None:
    """``ip route get`` for every address of the plan in every namespace."""
    from netpath.predict.host import Host
    from netpath.predict.route import lookup, source_for
    from netpath.predict.walker import rulesets

    index = SnapshotIndex(snapshot)
    for role, netns in stage.netns.items():
        namespace = index.namespace(netns.inode)
        assert namespace is not None
        host = Host(index, namespace, rulesets)
        wanted = stage.plan.asked
        done = subprocess.run(
            ["ip", "-n", netns.name, "-json", "-force", "-batch", "-"],
            input="\n".join(f"route get {address}" for address in wanted),
            text=True,
            capture_output=True,
            check=False,
        )
        failed = {int(line.rpartition(":")[2]) for line in done.stderr.splitlines() if line.startswith("Command failed")}
        answers = iter(_documents(done.stdout))
        for number, address in enumerate(wanted, 1):
            # Without being told, the kernel asks IPv4's tables on behalf of UDP (inet_rtm_getroute), and IPv6's of no protocol.
            found = lookup(host, _get(address))
            report.routes_compared += 1
            if number in failed:
                if found.error is None:
                    report.problems.append(f"route get {address} in {role}: the kernel refuses, predicted {found.choices}")
                continue
            answer = next(answers)
            if answer.get("type") in ("unreachable", "blackhole", "prohibit") or answer.get("error"):
                if found.error is None:
                    report.problems.append(f"route get {address} in {role}: kernel {answer}, predicted {found.choices}")
                continue
            mine = []
            for choice in found.choices:
                link = host.loopback if found.type in ("local", "anycast") else host.links.get(choice.device or 0)
                mine.append((link.name if link else None, choice.nexthop.gateway, source_for(host, found, choice, address)))
            gateway = answer.get("gateway") or (answer.get("via") or {}).get("host")
            theirs = (answer["dev"], gateway, answer.get("prefsrc"))
            if theirs not in mine:
                report.problems.append(f"route get {address} in {role}: kernel {theirs}, predicted {mine} {found.error}")


def _get(address: str) -> Query:
    six = ":" in address
    return Query(family=6 if six else 4, dst=address, output=True, protocol=None if six else socket.IPPROTO_UDP, sport=0, dport=0)


def _documents(text: str) -> list[dict[str, Any]]:
    decoder = json.JSONDecoder()
    found: list[dict[str, Any]] = []
    position = 0
    while position < len(text):
        while position < len(text) and text[position].isspace():
            position += 1
        if position >= len(text):
            break
        document, position = decoder.raw_decode(text, position)
        found += document
    return found


@cache
def has_vlans() -> bool:
    """Whether this kernel has VLAN-aware bridges and VLAN devices (CONFIG_BRIDGE_VLAN_FILTERING, CONFIG_VLAN_8021Q)."""
    name = f"npt{secrets.token_hex(4)}"
    with ExitStack() as stack:
        stack.callback(_batch_delete, [name])
        _batch("ip", None, [f"netns add {name}"])
        tries = ("link add b type bridge vlan_filtering 1", "link add link b name v type vlan id 5")
        return all(
            subprocess.run(["ip", "-n", name, *line.split()], capture_output=True, check=False).returncode == 0 for line in tries
        )


def examine(seed: int) -> Report:
    """Build, predict, send, compare."""
    started = time.monotonic()
    plan = topologies.draw(seed, vlans=has_vlans())
    report = Report(seed, sorted(plan.features), list(plan.faults))
    with Stage(plan) as stage, ExitStack() as stack:
        if plan.warm:
            with ExitStack() as first:
                stage.snapshot()
                send_and_watch(stage, first, secrets.token_bytes(16))
        snapshot = stage.snapshot()
        observed = send_and_watch(stage, stack, secrets.token_bytes(16))
        report.delivered = observed.delivered
        judge(stage, _with_sockets(snapshot, stage), observed, report)
        compare_routes(stage, snapshot, report)
    report.seconds = time.monotonic() - started
    return report


def _with_sockets(snapshot: Snapshot, stage: Stage) -> Snapshot:
    """The snapshot was taken before the receiver existed: what it will listen on is known."""
    from dataclasses import replace

    from netpath.model.snapshot import Socket

    inode = stage.netns[stage.plan.destination].inode
    listening = (Socket("udp", "0.0.0.0" if stage.plan.family == 4 else "::", PORT),) if stage.plan.listen else ()
    return replace(
        snapshot,
        namespaces=tuple(replace(n, sockets=listening if n.inode == inode else ()) for n in snapshot.namespaces),
    )


def main() -> None:
    """Seeds on stdin, reports on stdout."""
    for line in sys.stdin:
        seed = int(line)
        try:
            report = examine(seed)
        except Exception as error:  # a worker reports and goes on
            report = Report(seed, problems=[f"{type(error).__name__}: {error}"])
        print(json.dumps(vars(report)), flush=True)  # noqa: T201
    os._exit(0)


if __name__ == "__main__":
    main()
