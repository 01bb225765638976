"""What every layer of the walk shares: the state of one way through the snapshot, hops, endings, and the rulesets' hooks."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from shlex import quote

from netpath.model.index import SnapshotIndex
from netpath.model.path import AddressPair, Delivery, Drop, Hop, Path, RuleRef, Stage, Translation
from netpath.model.snapshot import DeviceId, FlowTuple, Link, Namespace
from netpath.netfilter.types import Connection, Evaluator, FibAnswer, FibQuestion, HookContext, HookOutcome, PacketState
from netpath.predict import addresses as ip
from netpath.predict.checks import inside
from netpath.predict.host import EvaluatorFactory, Host
from netpath.predict.neighbour import Resolver
from netpath.predict.packet import Frame, Packet
from netpath.predict.route import Query, expand, kernel_version, lookup, select_address, select_source6
from netpath.predict.segment import Learned, Segment

MAX_HOPS = 400
MAX_PATHS = 256
MIN_SHARE = 1e-6
_ETHERNET_TYPES = ("ether", "loopback")
_NO_SNAT_MTU = 65535


class NullEvaluator:
    """Rulesets of a namespace that has none."""

    def run(self, packet: PacketState, context: HookContext) -> tuple[HookOutcome, ...]:
        return (HookOutcome(1.0, "accept", packet),)


def no_rules(namespace: Namespace) -> Evaluator:
    return NullEvaluator()


@dataclass
class Relay:
    """A process that took a packet and sends another one for it: where, and what it received."""

    netns: int
    packet: Packet
    wildcard: bool
    """Its socket is bound to no address, so that its UDP answers take whatever source the route gives."""


@dataclass
class Walk:
    """One way of the packet so far. Branches copy it."""

    share: float = 1.0
    direction: str = "forward"
    hops: list[Hop] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    translations: list[Translation] = field(default_factory=list)
    uncertain: list[str] = field(default_factory=list)
    limits: list[tuple[int, int]] = field(default_factory=list)
    """(hop index, largest innermost IP packet that passes there)."""
    pending: list[tuple[str, int, dict[str, object]]] = field(default_factory=list)
    """Stages since the last hop: name, bytes, detail."""
    rewrites: list[tuple[str, bool, FlowTuple, FlowTuple, RuleRef | None, str, bool, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Doubts to be told at the next hop."""
    remarks: list[str] = field(default_factory=list)
    """What else is to be told there."""
    mark: int = 0
    connection: Connection | None = None
    physical_in: str | None = None
    prerouted: bool = False
    """PREROUTING has run on a bridge port: the IP stack above the bridge does not run it again."""
    memory: dict[int, list[Connection]] = field(default_factory=dict)
    """Connections that this walk left behind in each namespace."""
    relays: list[Relay] = field(default_factory=list)
    learned: Learned = field(default_factory=Learned)
    asker: int | None = None
    """The packet is an answer, and a socket in this namespace is waiting for it."""

    def branch(self, share: float) -> Walk:
        return Walk(
            share=self.share * share,
            direction=self.direction,
            hops=list(self.hops),
            stages=list(self.stages),
            translations=list(self.translations),
            uncertain=list(self.uncertain),
            limits=list(self.limits),
            pending=list(self.pending),
            rewrites=list(self.rewrites),
            notes=list(self.notes),
            remarks=list(self.remarks),
            mark=self.mark,
            connection=self.connection,
            physical_in=self.physical_in,
            prerouted=self.prerouted,
            memory={key: list(value) for key, value in self.memory.items()},
            relays=list(self.relays),
            learned=self.learned.copy(),
            asker=self.asker,
        )

    def doubt(self, reason: str) -> None:
        if reason not in self.uncertain:
            self.uncertain.append(reason)
        if reason not in self.notes:
            self.notes.append(reason)

    def stage(self, name: str, size: int = 0, **detail: object) -> None:
        self.pending.append((name, size, detail))


@dataclass(frozen=True)
class Finished:
    """A walk that came to its end."""

    path: Path
    walk: Walk
    packet: Packet | None
    netns: int | None
    """Where it ended."""
    in_device: int | None = None


Then = Callable[[Walk, Packet], None]


class Engine:
    """State of one prediction. The layers below are mixed into `Walker`; a nested engine only looks for decapsulations."""

    def __init__(
        self,
        index: SnapshotIndex,
        evaluators: EvaluatorFactory,
        *,
        nested: int = 0,
        underlays: dict[object, list[tuple[DeviceId, str]]] | None = None,
    ) -> None:
        self.index = index
        self.evaluators = evaluators
        self.nested = nested
        self.decapsulated: list[tuple[DeviceId, str]] = []
        """Nested only: VXLAN devices that the outer packet got to."""
        self.underlays = underlays if underlays is not None else {}
        self.finished: list[Finished] = []
        self.todo: list[Callable[[], None]] = []
        self.segment = Segment(index, self.host, self.underlay, self.relayed)
        self.resolver = Resolver(self.segment, self.host)

    def host(self, inode: int) -> Host | None:
        key = ("host", self.evaluators, inode)
        prepared = self.index.prepared
        if key not in prepared:
            namespace = self.index.namespace(inode)
            prepared[key] = Host(self.index, namespace, self.evaluators) if namespace is not None else None
        found: Host | None = prepared[key]
        return found

    def work(self) -> None:
        """Until every branch has ended."""
        while self.todo:
            self.todo.pop()()

    def later(self, walk: Walk, step: Callable[[], None]) -> None:
        if len(walk.hops) > MAX_HOPS:
            walk.doubt(f"more than {MAX_HOPS} hops: a loop")
            self.end_unknown(walk, None, None)
        elif walk.share < MIN_SHARE or len(self.finished) + len(self.todo) > MAX_PATHS:
            walk.doubt(f"too many ways to follow each to its end (more than {MAX_PATHS}, or one less likely than {MIN_SHARE})")
            self.end_unknown(walk, None, None)
        else:
            self.todo.append(step)

    # The layers

    def transmit(self, walk: Walk, host: Host, link: Link, frame: Frame) -> None:
        """dev_queue_xmit on `link`."""
        raise NotImplementedError

    def receive(self, walk: Walk, host: Host, link: Link, frame: Frame, mine: bool) -> None:
        """netif_receive_skb on `link`; `mine`: the destination MAC is this device's."""
        raise NotImplementedError

    def arrive(self, walk: Walk, host: Host, link: Link, packet: Packet, mine: bool) -> None:
        """ip_rcv."""
        raise NotImplementedError

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
        """A packet of this namespace's own: a socket's, or (with `tunnel`) the outer packet of a tunnel device.

        `announce` is called for every way it takes once its source address is known.
        """
        raise NotImplementedError

    def deliver(self, walk: Walk, host: Host, link: Link | None, packet: Packet) -> None:
        """Behind LOCAL_IN: the transport protocol."""
        raise NotImplementedError

    def encapsulate(self, walk: Walk, host: Host, link: Link, frame: Frame) -> None:
        """Behind the tx hop of a tunnel device."""
        raise NotImplementedError

    def has_socket(self, host: Host, packet: Packet, link: Link | None) -> bool | None:
        """Whether a socket of the namespace takes the packet; None: its sockets are not known."""
        raise NotImplementedError

    def user_space(self, walk: Walk, host: Host, link: Link, frame: Frame) -> None:
        """A process reads what a device sends, or what comes in by it."""
        raise NotImplementedError

    def switched(self, walk: Walk, host: Host, switch: Link, link: Link, frame: Frame) -> None:
        """A port of an Open vSwitch datapath received a frame."""
        raise NotImplementedError

    def node_address(self, host: Host) -> str | None:
        """The IPv4 address by which other nodes know a node; None where several might be it."""
        raise NotImplementedError

    def relayed(self, host: Host, link: Link) -> list[DeviceId]:
        """Where the process that captures from `link` has its twins inject."""
        raise NotImplementedError

    def underlay(self, host: Host, link: Link, mac: str, learned: Learned) -> list[tuple[DeviceId, str]]:
        """Where a VXLAN device's outer packets for `mac` get to: (VXLAN device there, the sender's VTEP)."""
        raise NotImplementedError

    # Hops

    def hop(self, walk: Walk, host: Host, link: Link, direction: str, frame: Frame, note: str | None = None) -> None:
        """Record one crossing and what happened since the last one."""
        ethernet = link.link_type in _ETHERNET_TYPES
        notes = [*walk.notes, *walk.remarks, *([note] if note else [])]
        index = len(walk.hops) + 1
        device = DeviceId(host.inode, link.ifindex)
        walk.hops.append(
            Hop(
                index=index,
                status="uncertain" if walk.notes else "predicted",
                node=self.index.node_of(host.inode),
                netns=self.index.netns_ref(host.inode),
                workload=self.index.workload_of(host.inode),
                device=self.index.device_ref(device),
                direction=direction,
                length=frame.length if ethernet else frame.packet.length,
                ip_length=frame.packet.length,
                mtu=link.mtu,
                headers=frame.headers() if ethernet else frame.packet.headers(),
                note="; ".join(notes) or None,
            )
        )
        walk.notes, walk.remarks = [], []
        if direction == "tx":
            overhead = frame.packet.length - frame.packet.innermost.length
            walk.limits.append((index, min(link.mtu, _NO_SNAT_MTU) - overhead))
        self._flush(walk, index - 1, index)

    def _flush(self, walk: Walk, before: int, after: int) -> None:
        for name, size, detail in walk.pending:
            walk.stages.append(Stage(name, before, after, bytes=size, detail=detail))
        walk.pending = []
        for kind, reverse, first, second, rule, hook, known, protocol in walk.rewrites:
            walk.translations.append(
                Translation(
                    hop=after,
                    kind=kind,
                    reverse=reverse,
                    before=pair(first, protocol),
                    after=pair(second, protocol),
                    rule=rule,
                    hook=hook,
                    conntrack=True if known else None,
                )
            )
        walk.rewrites = []

    # Endings

    def end(
        self,
        walk: Walk,
        outcome: str,
        host: Host | None,
        *,
        link: Link | None = None,
        reason: str | None = None,
        cause: str = "",
        remedy: str | None = None,
        rule: RuleRef | None = None,
        delivery: Delivery | None = None,
        packet: Packet | None = None,
    ) -> None:
        here = len(walk.hops)
        self._flush(walk, here, here)
        drop = None
        if reason is not None:
            drop = Drop(
                hop=here,
                reason=reason,
                cause=cause,
                remedy=remedy,
                device=self.index.device_ref(DeviceId(host.inode, link.ifindex)) if host is not None and link is not None else None,
                netns=self.index.netns_ref(host.inode) if host is not None else None,
                rule=rule,
            )
        if walk.notes and walk.hops:
            last = walk.hops[-1]
            text = "; ".join(part for part in (last.note, *walk.notes) if part)
            walk.hops[-1] = replace(last, status="uncertain", note=text)
            walk.notes = []
        path = Path(
            direction=walk.direction,
            share=walk.share,
            outcome=outcome,
            hops=tuple(walk.hops),
            stages=tuple(walk.stages),
            translations=tuple(walk.translations),
            drop=drop,
            delivery=delivery,
            uncertain=tuple(walk.uncertain),
        )
        self.remember(walk, host)
        self.finished.append(
            Finished(path, walk, packet, host.inode if host is not None else None, link.ifindex if link is not None else None)
        )

    def drop(
        self,
        walk: Walk,
        host: Host,
        link: Link | None,
        reason: str,
        cause: str,
        remedy: str | None = None,
        rule: RuleRef | None = None,
    ) -> None:
        self.end(walk, "dropped", host, link=link, reason=reason, cause=cause, remedy=remedy, rule=rule)

    def end_unknown(self, walk: Walk, host: Host | None, link: Link | None, delivery: Delivery | None = None) -> None:
        self.end(walk, "uncertain", host, link=link, delivery=delivery)

    def no_target(self, before: str) -> str:
        """The kernel's reason where a flood or a tunnel has nowhere to send: NO_TX_TARGET since 6.14, `before` earlier."""
        return "NO_TX_TARGET" if kernel_version(self.index.snapshot.kernel) >= (6, 14) else before

    # Rulesets

    def remember(self, walk: Walk, host: Host | None) -> None:
        if walk.connection is not None and walk.connection.state not in ("untracked", "invalid") and host is not None:
            known = walk.memory.setdefault(host.inode, [])
            if walk.connection not in known:
                known.append(walk.connection)

    def scrub(self, walk: Walk, host: Host, other: Host) -> None:
        """skb_scrub_packet: the connection is forgotten, and the mark as well where the namespace changes."""
        self.remember(walk, host)
        walk.connection = None
        walk.physical_in = None
        walk.prerouted = False
        if other.inode != host.inode:
            walk.mark = 0

    def hook(
        self,
        walk: Walk,
        host: Host,
        name: str,
        packet: Packet,
        then: Then,
        *,
        in_link: Link | None = None,
        out_link: Link | None = None,
        physical_out: str | None = None,
        bridged: bool = False,
    ) -> None:
        """Ask the namespace's rulesets, and go on with every packet they let through."""
        if host.namespace.netfilter is None:
            walk.doubt(f"the rulesets of {host.name} are not in the snapshot")
        context = HookContext(
            hook=name,
            in_device=in_link.name if in_link is not None else None,
            out_device=out_link.name if out_link is not None else None,
            physical_in=walk.physical_in,
            physical_out=physical_out,
            bridged=bridged,
            address_type=lambda address, device: address_type(host, address, device),
            masquerade_source=lambda device, destination: masquerade_source(host, device, destination, walk.mark),
            redirect_target=lambda device: redirect_target(host, device, packet.family),
            fib=lambda question: fib(host, question),
            loopback=host.loopback.name if host.loopback is not None else None,
            recall=lambda state: self._recall(walk, host, packet.after(state)),
            is_local_socket=lambda state: self.has_socket(host, packet.after(state), in_link),
        )
        outcomes = host.evaluator.run(packet.state(walk.mark, walk.connection), context)
        for outcome in outcomes:
            if outcome.share <= 0:
                continue
            child = walk if len(outcomes) == 1 else walk.branch(outcome.share)
            self._apply(child, host, name, packet, outcome, then, in_link, out_link)

    def _apply(
        self,
        walk: Walk,
        host: Host,
        name: str,
        packet: Packet,
        outcome: HookOutcome,
        then: Then,
        in_link: Link | None,
        out_link: Link | None,
    ) -> None:
        for reason in outcome.uncertain:
            walk.doubt(reason)
        known = outcome.packet.connection is not None and outcome.packet.connection.known
        for rewrite in outcome.rewrites:
            walk.rewrites.append(
                (rewrite.kind, rewrite.reverse, rewrite.before, rewrite.after, rewrite.rule, name, known, packet.protocol)
            )
            walk.stage("nat", hook=name, kind=rewrite.kind)
        walk.mark = outcome.packet.mark
        walk.connection = outcome.packet.connection
        if name in ("postrouting", "input") and walk.connection is not None:
            walk.connection = replace(walk.connection, confirmed=True)
        changed = packet.after(outcome.packet)
        if outcome.verdict == "accept":
            then(walk, changed)
            return
        text = outcome.rule.text if outcome.rule is not None else f"a rule of the {name} hook"
        show = inside(host, "nft list ruleset") if outcome.rule is None else mend(host, outcome.rule, packet.family)
        if outcome.verdict == "reject":
            # nft_reject and ipt_REJECT answer, and then drop it.
            how = f" with {outcome.reject_with}" if outcome.reject_with else ""
            self.end(
                walk,
                "rejected",
                host,
                link=in_link or out_link,
                reason="NETFILTER_DROP",
                cause=f"{host.name} refuses it{how} at {name}: {text}",
                remedy=show,
                rule=outcome.rule,
            )
        elif outcome.verdict == "drop":
            self.end(
                walk,
                "dropped",
                host,
                link=in_link or out_link,
                reason="NETFILTER_DROP",
                cause=f"{host.name} drops it at {name}: {text}",
                remedy=show,
                rule=outcome.rule,
            )
        elif outcome.verdict == "queue":
            walk.doubt(f"a process decides at {name} in {host.name} (NFQUEUE): {text}")
            then(walk, changed)
        else:
            walk.doubt(f"taken by {text} at {name} in {host.name}")
            self.end_unknown(walk, host, in_link or out_link)

    def _recall(self, walk: Walk, host: Host, packet: Packet) -> Connection | None:
        """The connection that an earlier part of this exchange made in the namespace, if the packet belongs to it."""
        for connection in reversed(walk.memory.get(host.inode, ())):
            if connection.protocol != packet.protocol:
                continue
            if _belongs(packet, connection.reply):
                return replace(connection, direction="reply", state="established")
            if _belongs(packet, connection.original):
                return replace(connection, direction="original")
        return None


def _belongs(packet: Packet, flow: FlowTuple) -> bool:
    if packet.src != flow.source or packet.dst != flow.destination:
        return False
    if packet.protocol not in ("udp", "tcp"):
        return True
    # A port that nobody knows beforehand is the same one only where it comes back as such; it is not taken for any other.
    return (packet.sport, packet.dport) == (flow.sport, flow.dport)


def mend(host: Host, rule: RuleRef, family: int) -> str:
    """What helps against the responsible rule: the command that takes it out of the way, or the cure of what it stands for."""
    text = rule.text.strip()
    if any("has no endpoints" in each or "no-endpoint" in each for each in (rule.comment or "", text)):
        # kube-proxy would put the rule back at once.
        return f"give {rule.service or 'the service'} an endpoint: check its selector and whether its pods are ready"
    if text.startswith("-A ") and rule.table is not None:
        tool = "ip6tables" if family == 6 else "iptables"
        try:
            words = shlex.split(text[3:])
        except ValueError:
            words = [text[3:]]
        return inside(host, f"{tool} -t {quote(rule.table)} -D {shlex.join(words)}")
    if rule.chain is not None and rule.table is not None:
        return inside(host, "nft -a list chain " + " ".join(quote(word) for word in (*rule.table.split(), rule.chain)))
    return inside(host, "nft list ruleset")


def pair(flow: FlowTuple, protocol: str) -> AddressPair:
    ports = protocol in ("udp", "tcp")
    return AddressPair(endpoint(flow.source, flow.sport, ports), endpoint(flow.destination, flow.dport, ports))


def endpoint(address: str, port: int | None, ports: bool) -> str:
    """``ADDRESS:PORT``, ``[v6]:PORT``; ``*`` for a port that isn't known; the address alone where there are no ports."""
    if not ports:
        return address
    shown = f"[{address}]" if ":" in address else address
    return f"{shown}:{port if port is not None else '*'}"


def address_type(host: Host, address: str, device: str | None) -> str:
    """inet_addr_type_dev_table: what the local table says of an address."""
    try:
        if ip.is_multicast(address):
            return "multicast"
        if ":" not in address and (address == "255.255.255.255" or ip.is_zero(address)):
            return "broadcast"
        family = ip.family_of(address)
        value = ip.number(address)
    except ValueError:
        return "unicast"
    wanted = host.by_name.get(device) if device is not None else None
    for number in (255, 254):
        table = host.table(family, number)
        if table is None:
            continue
        for _, routes in table.matches(value):
            route = routes[0]
            if wanted is not None and all(hop.device != wanted.ifindex for hop in route.nexthops):
                return "unicast"
            return route.type
        if number == 255 and family == 4:
            return "unicast"
    return "unicast"


def fib(host: Host, question: FibQuestion) -> FibAnswer:
    """What nft_fib and rpfilter are told: link states do not matter, nor does which of several next hops a flow would take.

    Sources: net/ipv4/netfilter/{nft_fib_ipv4,ipt_rpfilter}.c, net/ipv6/netfilter/{nft_fib_ipv6,ip6t_rpfilter}.c.
    """
    wanted = host.by_name.get(question.device) if question.device is not None else None
    query = Query(
        family=ip.family_of(question.destination),
        dst=question.destination,
        src=question.source,
        oif=wanted.ifindex if wanted is not None else None,
        mark=question.mark,
        tos=question.tos,
        any_link=True,
    )
    found = lookup(host, query)
    if found.error is not None or found.route is None:
        return FibAnswer("none")
    hops = [*(choice.nexthop for choice in found.choices), *(hop for _, hop in expand(host, found.route)[0])]
    names = [host.links[hop.device].name for hop in hops if hop.device in host.links]
    chosen = [(choice.share, host.links[choice.device].name) for choice in found.choices if choice.device in host.links]
    return FibAnswer(found.type, tuple(dict.fromkeys(names)), tuple(chosen))


def masquerade_source(host: Host, device: str, destination: str, mark: int = 0) -> str | None:
    """nf_nat_masquerade_ipv4: the address of the out device that suits the next hop; for IPv6 the one source selection gives."""
    link = host.by_name.get(device)
    if link is None:
        return None
    if ":" in destination:
        return select_source6(host, link.ifindex, destination)
    found = lookup(host, Query(family=4, dst=destination, oif=link.ifindex, mark=mark))
    gateway = next((choice.nexthop.gateway for choice in found.choices if choice.device == link.ifindex), None)
    towards = gateway if gateway is not None and ":" not in gateway else destination
    return select_address(host, link.ifindex, towards, 0)


def redirect_target(host: Host, device: str | None, family: int) -> str | None:
    """nf_nat_redirect: loopback for what is sent here, else the first address of the device it came in by."""
    if device is None:
        return "127.0.0.1" if family == 4 else "::1"
    link = host.by_name.get(device)
    if link is None:
        return None
    held = host.on_device.get((link.ifindex, family), ())
    if family == 6:
        held = [address for address in held if "tentative" not in address.flags and "dadfailed" not in address.flags]
    return held[0].address if held else None
