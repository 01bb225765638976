"""A packet through everything registered at a hook: raw, conntrack, mangle, destination NAT, filter, security, source NAT.

Order and semantics: include/uapi/linux/netfilter_ipv4.h (priorities), net/netfilter/nf_nat_core.c (bindings, HOOK2MANIP),
net/ipv4/netfilter/ip_tables.c (traversal).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from netpath.model.path import RuleRef
from netpath.model.snapshot import ConntrackEntry, FlowTuple, Namespace
from netpath.netfilter import xtables
from netpath.netfilter.matches import Scene, Unknown
from netpath.netfilter.sets import Sets
from netpath.netfilter.types import Connection, HookContext, HookOutcome, PacketState, Rewrite

BUILT_IN = {"prerouting": "PREROUTING", "input": "INPUT", "forward": "FORWARD", "output": "OUTPUT", "postrouting": "POSTROUTING"}
BEFORE: tuple[tuple[str, tuple[str, ...]], ...] = (("raw", ("prerouting", "output")),)
AFTER_CONNTRACK: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("mangle", ("prerouting", "input", "forward", "output", "postrouting")),
    ("nat", ("prerouting", "output")),
    ("filter", ("input", "forward", "output")),
    ("security", ("input", "forward", "output")),
    ("nat", ("postrouting", "input")),
)
"""(table, hooks) in order of priority: mangle -150, destination NAT -100, filter 0, security 50, source NAT 100."""
DEPTH = 64
"""Jumps deeper than this are a loop, which the kernel refuses to load."""
PASSING = frozenset(
    {
        "LOG",
        "NFLOG",
        "ULOG",
        "TRACE",
        "AUDIT",
        "CHECKSUM",
        "CLASSIFY",
        "DSCP",
        "TOS",
        "TTL",
        "HL",
        "TCPMSS",
        "TCPOPTSTRIP",
        "SET",
        "SECMARK",
    }
    | {"CONNSECMARK", "IDLETIMER", "LED", "RATEEST", "ECN", "HMARK"}
)
"""Targets after which a packet goes on to the next rule, and which change nothing that a path depends on."""
NAT_TARGETS = {"DNAT": "dnat", "REDIRECT": "redirect", "SNAT": "snat", "MASQUERADE": "masquerade", "NETMAP": "netmap"}
ACTING = frozenset({"ACCEPT", "DROP", "REJECT", "RETURN", "QUEUE", "NFQUEUE", "MARK", "CONNMARK", "NOTRACK", "CT", *NAT_TARGETS})
"""Targets that are evaluated."""


@dataclass(frozen=True, slots=True)
class State:
    """A packet on its way through a hook, with what happened to it there."""

    share: float
    packet: PacketState
    rewrites: tuple[Rewrite, ...] = ()
    uncertain: tuple[str, ...] = ()
    visited: tuple[RuleRef, ...] = ()

    def doubting(self, why: str) -> State:
        return self if why in self.uncertain else replace(self, uncertain=(*self.uncertain, why))


@dataclass(frozen=True, slots=True)
class Result:
    """How a chain ended for one packet: accept, drop, reject, queue, or return (it fell through)."""

    verdict: str
    state: State
    rule: RuleRef | None = None
    reject_with: str | None = None


class RulesetEvaluator:
    """The rulesets of one namespace. Parsed once, each rule understood when it is first reached."""

    def __init__(self, namespace: Namespace) -> None:
        rules = namespace.netfilter
        self._tables: list[xtables.Table] = []
        self._unread: list[str] = []
        for dump in rules.xtables if rules is not None else ():
            tables, problems = xtables.parse(dump.text, dump.family, dump.backend)
            self._tables += tables
            self._unread += problems
        self._sets = Sets(rules.ipset if rules is not None else None)
        self._unread += rules.unread if rules is not None else ()
        self._entries = namespace.conntrack or ()
        self._native = native_hooks(
            rules.nft if rules is not None else None, {(table.family, table.name) for table in self._tables}
        )
        text = "".join(dump.text for dump in rules.xtables) if rules is not None else ""
        self._tracks = (
            bool(self._entries)
            or any(table.name == "nat" for table in self._tables)
            or any(word in text for word in ("-m conntrack", "-m state", "-m connmark", "-j CT", "-j CONNMARK"))
        )
        # Connection tracking that only a native ruleset asks for is part of that ruleset's doubt.

    def run(self, packet: PacketState, context: HookContext) -> tuple[HookOutcome, ...]:
        """See `netpath.netfilter.types.Evaluator`."""
        start = State(1.0, packet)
        for why in self._unread:
            start = start.doubting(why)
        for text in self._native.get((packet.family, context.hook), ()):
            start = start.doubting(text)
        outcomes: list[HookOutcome] = []
        for result in self._tables_at(context, start):
            verdict = "accept" if result.verdict == "return" else result.verdict
            outcomes.append(
                HookOutcome(
                    share=result.state.share,
                    verdict=verdict,
                    packet=result.state.packet,
                    rewrites=result.state.rewrites,
                    rule=result.rule if verdict != "accept" else None,
                    reject_with=result.reject_with,
                    uncertain=result.state.uncertain,
                    visited=result.state.visited,
                )
            )
        outcomes.sort(key=lambda outcome: -outcome.share)
        return tuple(outcomes)

    def _tables_at(self, context: HookContext, start: State) -> list[Result]:
        steps: list[Callable[[State], list[Result]]] = []
        for name, hooks in BEFORE:
            if context.hook in hooks:
                steps.append(self._step(name, context))
        if context.hook in ("prerouting", "output"):
            steps.append(lambda state: [Result("return", self._track(state))])
        for name, hooks in AFTER_CONNTRACK:
            if context.hook in hooks:
                steps.append(self._nat_step(context) if name == "nat" else self._step(name, context))
        live, ended = [start], []
        for step in steps:
            following: list[State] = []
            for state in live:
                for result in step(state):
                    if result.verdict in ("accept", "return"):
                        following.append(result.state)
                    else:
                        ended.append(result)
            live = following
        return [Result("accept", state) for state in live] + ended

    def _of(self, name: str, family: int) -> Iterator[xtables.Table]:
        return (table for table in self._tables if table.name == name and table.family == family)

    def _step(self, name: str, context: HookContext) -> Callable[[State], list[Result]]:
        def step(state: State) -> list[Result]:
            results = [Result("return", state)]
            for table in self._of(name, state.packet.family):
                results = [
                    after
                    for before in results
                    for after in (
                        self._chain(table, BUILT_IN[context.hook], before.state, context, 0)
                        if before.verdict in ("accept", "return")
                        else [before]
                    )
                ]
            return results

        return step

    def _chain(self, table: xtables.Table, name: str, start: State, context: HookContext, depth: int) -> list[Result]:
        """All ways through one chain."""
        chain = table.chains.get(name)
        if chain is None:
            return [Result("return", start)]
        if depth > DEPTH:
            return [Result("return", start.doubting(f"table {table.name}: chains jump in a loop at {name}"))]
        live, ended = [start], []
        for rule in chain.rules:
            following: list[State] = []
            for state in live:
                if rule.destination is not None and rule.destination != state.packet.dst:
                    following.append(state)
                    continue
                for result in self._rule(table, rule, state, context, depth):
                    if result.verdict == "continue":
                        following.append(result.state)
                    else:
                        ended.append(result)
            live = following
            if not live:
                break
        for state in live:
            if chain.policy is None or chain.policy == "ACCEPT":
                ended.append(Result("return", state))
            else:
                ended.append(Result("drop", state, RuleRef(f"policy {chain.policy}", table.name, name)))
        return ended

    def _rule(self, table: xtables.Table, rule: xtables.Rule, state: State, context: HookContext, depth: int) -> list[Result]:
        matches, target, misunderstood = rule.parts
        chance = 1.0
        doubt: str | None = misunderstood[0] if misunderstood else None
        scene = Scene(state.packet, context, self._sets)
        for match in matches:
            answer = match(scene)
            if isinstance(answer, Unknown):
                doubt = doubt or f"{answer.why}, which rule {rule.text!r} asks for"
            elif answer is False:
                return [Result("continue", state)]
            elif answer is not True:
                chance *= answer
        if doubt is not None:
            return [Result("continue", state.doubting(doubt))]
        results: list[Result] = []
        if chance < 1:
            results.append(Result("continue", replace(state, share=state.share * (1 - chance))))
        if chance > 0:
            chosen = replace(state, share=state.share * chance)
            results += self._target(table, rule, target, chosen, context, depth)
        return results

    def _target(
        self,
        table: xtables.Table,
        rule: xtables.Rule,
        target: xtables.Target | None,
        state: State,
        context: HookContext,
        depth: int,
    ) -> list[Result]:
        if target is None or target.name in PASSING:
            return [Result("continue", state)]
        state = replace(state, visited=(*state.visited, rule.reference))
        name, arguments = target.name, target.arguments
        if name == "ACCEPT":
            return [Result("accept", state, rule.reference)]
        if name == "DROP":
            return [Result("drop", state, rule.reference)]
        if name == "RETURN":
            return [self._returned(table, rule, state)]
        if name == "REJECT":
            how = arguments.get("reject-with") or ("icmp6-port-unreachable" if rule.family == 6 else "icmp-port-unreachable")
            return [Result("reject", state, rule.reference, how)]
        if name in ("QUEUE", "NFQUEUE"):
            return [Result("queue", state, rule.reference)]
        if name in table.chains:
            return [
                Result("continue", result.state) if result.verdict == "return" and not target.goto else result
                for result in self._chain(table, name, state, context, depth + 1)
            ]
        if name == "MARK":
            return [Result("continue", _marked(state, arguments))]
        if name == "CONNMARK":
            return [Result("continue", _connection_marked(state, arguments))]
        if name == "NOTRACK" or (name == "CT" and "notrack" in arguments):
            return [Result("continue", replace(state, packet=replace(state.packet, connection=_untracked(state.packet))))]
        if name in NAT_TARGETS:
            return [self._translate(rule, NAT_TARGETS[name], arguments, state, context)]
        return [Result("continue", state.doubting(f"target {name} in rule {rule.text!r}"))]

    @staticmethod
    def _returned(table: xtables.Table, rule: xtables.Rule, state: State) -> Result:
        """RETURN: from a user-defined chain to its caller; from a built-in one to its policy."""
        chain = table.chains[rule.chain]
        if chain.policy is None or chain.policy == "ACCEPT":
            return Result("return", state)
        return Result("drop", state, RuleRef(f"policy {chain.policy}", table.name, rule.chain))

    # Connection tracking and translation.

    def _track(self, state: State) -> State:
        packet = state.packet
        if packet.connection is not None or not self._tracks:
            return state
        flow = FlowTuple(packet.src, packet.dst, packet.sport, packet.dport)
        known = next((found for entry in self._entries if (found := _recalled(entry, packet))), None)
        return replace(
            state,
            packet=replace(packet, connection=known or Connection("new", packet.protocol, flow, _inverted(flow))),
        )

    def _nat_step(self, context: HookContext) -> Callable[[State], list[Result]]:
        source_side = context.hook in ("postrouting", "input")

        def step(state: State) -> list[Result]:
            connection = state.packet.connection
            tables = list(self._of("nat", state.packet.family))
            if connection is None or connection.state == "untracked" or not tables:
                return [Result("return", state)]
            done = connection.source_done if source_side else connection.destination_done
            results = [Result("return", state)]
            if not done and connection.state == "new" and connection.direction == "original":
                for table in tables:
                    results = [
                        after
                        for before in results
                        for after in (
                            self._chain(table, BUILT_IN[context.hook], before.state, context, 0)
                            if before.verdict in ("accept", "return") and not _bound(before.state, source_side)
                            else [before]
                        )
                    ]
            return [
                Result(result.verdict, self._apply(result.state, source_side), result.rule, result.reject_with)
                if result.verdict in ("accept", "return")
                else result
                for result in results
            ]

        return step

    def _apply(self, state: State, source_side: bool) -> State:
        """Rewrite the packet as its connection's binding says (nf_nat_packet), or remember that there is none."""
        packet, connection = state.packet, state.packet.connection
        assert connection is not None
        original = connection.direction == "original"
        if original and not (connection.source_done if source_side else connection.destination_done):
            done = {"source_done": True} if source_side else {"destination_done": True}
            connection = replace(connection, **done)  # type: ignore[arg-type]
        # The direction decides which of the two tuples says what the packet's other end expects.
        seen = _inverted(connection.reply) if original else _inverted(connection.original)
        before = FlowTuple(packet.src, packet.dst, packet.sport, packet.dport)
        if source_side:
            after = FlowTuple(seen.source, before.destination, seen.sport, before.dport)
        else:
            after = FlowTuple(before.source, seen.destination, before.sport, seen.dport)
        if packet.protocol not in ("tcp", "udp"):
            after = replace(after, sport=before.sport, dport=before.dport)
        changed = replace(
            packet, connection=connection, src=after.source, dst=after.destination, sport=after.sport, dport=after.dport
        )
        if after == before:
            return replace(state, packet=changed)
        # For a reply the source side undoes the destination's binding, and the other way round (IPS_NAT_MASK).
        by_source = source_side if original else not source_side
        kind = connection.source_kind if by_source else connection.destination_kind
        rule = connection.source_rule if by_source else connection.destination_rule
        rewrite = Rewrite(kind, not original, before, after, rule)
        return replace(state, packet=changed, rewrites=(*state.rewrites, rewrite))

    def _translate(self, rule: xtables.Rule, kind: str, arguments: Mapping[str, str], state: State, context: HookContext) -> Result:
        """Set a binding up; it is applied at the end of the nat step."""
        connection = state.packet.connection
        if connection is None:
            return Result("accept", state)
        source_side = context.hook in ("postrouting", "input")
        if kind == "netmap":
            network = arguments.get("to", "")
            old = state.packet.src if source_side else state.packet.dst
            address: str | None = _mapped(old, network)
            ports: str | None = None
            kind = "snat" if source_side else "dnat"
        elif kind == "masquerade":
            address = context.masquerade_source(context.out_device or "", state.packet.dst)
            ports = arguments.get("to-ports")
            if address is None:
                return Result("drop", state, rule.reference)
        elif kind == "redirect":
            address = context.redirect_target(context.in_device)
            ports = arguments.get("to-ports")
            if address is None:
                return Result("drop", state, rule.reference)
        else:
            address, ports = _end(arguments.get("to-source" if kind == "snat" else "to-destination", ""))
        any_port = "random" in arguments or "random-fully" in arguments
        if address is not None and "-" in address:
            low, _, high = address.partition("-")
            address = low
            if low != high:
                state = state.doubting(f"which address of {low}-{high} the kernel takes for {rule.text!r}")
        reply = connection.reply
        if source_side:
            port = _chosen_port(ports, reply.dport, any_port)
            taken = not any_port and ports is None and self._clashes(connection, address or reply.destination)
            reply = replace(reply, destination=address or reply.destination, dport=None if taken else port)
            connection = replace(connection, reply=reply, source_done=True, source_rule=rule.reference, source_kind=kind)
        else:
            port = _chosen_port(ports, reply.sport, any_port)
            reply = replace(reply, source=address or reply.source, sport=port)
            connection = replace(
                connection, reply=reply, destination_done=True, destination_rule=rule.reference, destination_kind=kind
            )
        return Result("accept", replace(state, packet=replace(state.packet, connection=connection)), rule.reference)

    def _clashes(self, connection: Connection, address: str) -> bool:
        """Whether another connection already answers to the tuple this one would get: the kernel then takes another port."""
        wanted = replace(connection.reply, destination=address)
        return any(entry.protocol == connection.protocol and entry.reply == wanted for entry in self._entries)


def native_hooks(nft: str | None, xtables_tables: set[tuple[int, str]]) -> dict[tuple[int, str], tuple[str, ...]]:
    """Base chains of native nftables tables, by (family, hook): what is registered there and is not evaluated, in words."""
    import json

    if not nft:
        return {}
    try:
        items = json.loads(nft)["nftables"]
        chains = [item["chain"] for item in items if "chain" in item]
        ruled = {(item["rule"]["family"], item["rule"]["table"]) for item in items if "rule" in item}
    except (ValueError, KeyError, TypeError):
        return {(family, hook): ("the nftables ruleset can't be read",) for family in (4, 6) for hook in BUILT_IN}
    families = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
    found: dict[tuple[int, str], list[str]] = {}
    for chain in chains:
        try:
            hook, table = chain.get("hook"), chain["table"]
            for family in families.get(chain["family"], ()):
                owned = (family, table) in xtables_tables and chain["name"] == BUILT_IN.get(hook or "")
                empty = (chain["family"], table) not in ruled and chain.get("policy", "accept") == "accept"
                if hook in BUILT_IN and not owned and not empty:
                    found.setdefault((family, hook), []).append(
                        f"nftables table {chain['family']} {table}, chain {chain['name']}, which is not evaluated"
                    )
        except (KeyError, TypeError, AttributeError):
            continue
    return {key: tuple(texts) for key, texts in found.items()}


def _bound(state: State, source_side: bool) -> bool:
    connection = state.packet.connection
    return connection is not None and (connection.source_done if source_side else connection.destination_done)


def _inverted(flow: FlowTuple) -> FlowTuple:
    return FlowTuple(flow.destination, flow.source, flow.dport, flow.sport)


def _untracked(packet: PacketState) -> Connection:
    flow = FlowTuple(packet.src, packet.dst, packet.sport, packet.dport)
    return Connection("untracked", packet.protocol, flow, _inverted(flow))


def _recalled(entry: ConntrackEntry, packet: PacketState) -> Connection | None:
    """The connection of an entry that the packet belongs to, in the direction it goes."""
    if entry.family != packet.family or entry.protocol != packet.protocol or entry.zone:
        return None
    for direction, flow in (("original", entry.original), ("reply", entry.reply)):
        if flow.source != packet.src or flow.destination != packet.dst:
            continue
        if packet.protocol in ("tcp", "udp") and (packet.sport is None or (flow.sport, flow.dport) != (packet.sport, packet.dport)):
            continue
        fresh = direction == "original" and "unreplied" in {flag.lower() for flag in entry.flags}
        return Connection(
            state="new" if fresh else "established",
            protocol=entry.protocol,
            original=entry.original,
            reply=entry.reply,
            direction=direction,
            mark=entry.mark,
            source_done=True,
            destination_done=True,
            known=True,
        )
    return None


def _end(text: str) -> tuple[str | None, str | None]:
    """(address or range, ports) of a DNAT's or SNAT's argument: ``10.0.0.1:80``, ``:53``, ``[fd00::1]:80-90``."""
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        return address, rest.lstrip(":") or None
    if text.count(":") > 1:
        return text, None
    address, _, ports = text.partition(":")
    return address or None, ports or None


def _chosen_port(ports: str | None, kept: int | None, any_port: bool) -> int | None:
    """The port after translation; None where the kernel chooses one of several."""
    if ports:
        low, _, high = ports.partition("/")[0].partition("-")
        if not low.isdigit() or (high and high != low):
            return None
        return int(low)
    return None if any_port else kept


def _mapped(address: str, network: str) -> str | None:
    import ipaddress

    try:
        target = ipaddress.ip_network(network, strict=False)
        old = ipaddress.ip_address(address)
    except ValueError:
        return None
    host = int(old) & int(target.hostmask)
    return str(ipaddress.ip_address(int(target.network_address) | host)) if old.version == target.version else None


def _number(text: str) -> tuple[int, int]:
    value, _, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if mask else 0xFFFFFFFF


def _new_mark(old: int, arguments: Mapping[str, str]) -> int | None:
    """The mark after MARK's or CONNMARK's arithmetic (xt_mark.c: (old & ~mask) ^ value); None for what is not understood."""
    try:
        if "set-xmark" in arguments:
            value, mask = _number(arguments["set-xmark"])
            return (old & ~mask & 0xFFFFFFFF) ^ value
        if "set-mark" in arguments:
            value, mask = _number(arguments["set-mark"])
            return (old & ~mask & 0xFFFFFFFF) | value
        if "and-mark" in arguments:
            return old & int(arguments["and-mark"], 0)
        if "or-mark" in arguments:
            return old | int(arguments["or-mark"], 0)
        if "xor-mark" in arguments:
            return old ^ int(arguments["xor-mark"], 0)
    except ValueError:
        return None
    return None


def _marked(state: State, arguments: Mapping[str, str]) -> State:
    mark = _new_mark(state.packet.mark, arguments)
    if mark is None:
        return state.doubting(f"target MARK with {arguments}")
    return replace(state, packet=replace(state.packet, mark=mark))


def _connection_marked(state: State, arguments: Mapping[str, str]) -> State:
    packet, connection = state.packet, state.packet.connection
    if connection is None:
        return state
    if "restore-mark" in arguments or "save-mark" in arguments:
        try:
            masks = [int(arguments[name], 0) if arguments.get(name) else 0xFFFFFFFF for name in ("nfmask", "ctmask")]
            if "mask" in arguments:
                masks = [int(arguments["mask"], 0)] * 2
        except ValueError:
            return state.doubting(f"target CONNMARK with {arguments}")
        theirs, ours = masks
        if "restore-mark" in arguments:
            mark = (packet.mark & ~theirs & 0xFFFFFFFF) ^ (connection.mark & ours)
            return replace(state, packet=replace(packet, mark=mark))
        mark = (connection.mark & ~ours & 0xFFFFFFFF) ^ (packet.mark & theirs)
    else:
        computed = _new_mark(connection.mark, arguments)
        if computed is None:
            return state.doubting(f"target CONNMARK with {arguments}")
        mark = computed
    return replace(state, packet=replace(packet, connection=replace(connection, mark=mark)))
