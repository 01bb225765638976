"""A packet through everything registered at a hook: raw, conntrack, mangle, destination NAT, filter, security, source NAT.

Order and semantics: include/uapi/linux/netfilter_ipv4.h (priorities), net/netfilter/nf_nat_core.c (nf_nat_inet_fn: all nat chains
are asked at one priority, for the first packet of a connection), net/ipv4/netfilter/ip_tables.c (traversal).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from netpath.model.path import RuleRef
from netpath.model.snapshot import Namespace
from netpath.netfilter import nat, xtables
from netpath.netfilter.matches import Scene, Unknown
from netpath.netfilter.nft import Native, NftChain
from netpath.netfilter.sets import Sets
from netpath.netfilter.state import DEPTH, Result, State, end_of_chain
from netpath.netfilter.types import HookContext, HookOutcome, PacketState

BUILT_IN = {"prerouting": "PREROUTING", "input": "INPUT", "forward": "FORWARD", "output": "OUTPUT", "postrouting": "POSTROUTING"}
Step = Callable[[State], list[Result]]
CONNTRACK, NAT_DESTINATION, NAT_SOURCE = -200, -100, 100
TABLES: tuple[tuple[str, int], ...] = (("raw", -300), ("mangle", -150), ("filter", 0), ("security", 50))
"""The tables of iptables but nat, with their priorities."""
_ASKS_CONNTRACK = re.compile(
    r"-m (?:conntrack|state|connmark|connbytes|connlabel|connlimit|helper|cluster|ct\w*)\b"
    r"|-j (?:CT(?! --notrack)|CONNMARK|DNAT|SNAT|MASQUERADE|REDIRECT|NETMAP|SYNPROXY|CONNSECMARK)\b"
)
"""Matches and targets that make the kernel track connections in a namespace (nf_ct_netns_get in their checkentry)."""
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


class RulesetEvaluator:
    """The rulesets of one namespace. Parsed once, each rule understood when it is first reached."""

    def __init__(self, namespace: Namespace) -> None:
        rules = namespace.netfilter
        self._tables: list[xtables.Table] = []
        self._unread: list[str] = []
        self._entries = namespace.conntrack or ()
        self._tracks = {entry.family for entry in self._entries}
        for dump in rules.xtables if rules is not None else ():
            tables, problems = xtables.parse(dump.text, dump.family, dump.backend)
            self._tables += tables
            self._unread += problems
            if _ASKS_CONNTRACK.search(dump.text):
                self._tracks.add(dump.family)
        self._sets = Sets(rules.ipset if rules is not None else None)
        self._unread += rules.unread if rules is not None else ()
        owned = {("ip6" if table.family == 6 else "ip", table.name) for table in self._tables if table.backend == "nft"}
        self._native = Native(rules.nft if rules is not None else None, owned)
        self._native.entries = self._entries
        self._tracks |= self._native.tracks
        self._unread += self._native.problems

    def run(self, packet: PacketState, context: HookContext) -> tuple[HookOutcome, ...]:
        """See `netpath.netfilter.types.Evaluator`."""
        start = State(1.0, packet)
        for why in self._unread:
            start = start.doubting(why)
        for why in self._native.unevaluated(context):
            start = start.doubting(why)
        outcomes: list[HookOutcome] = []
        for result in self._through(context, start):
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

    def registered(self, hook: str, family: int) -> tuple[tuple[int, str], ...]:
        """(priority, what: conntrack, nat or filter) of what the kernel runs at a hook for packets of `family`, in its order.

        `filter` is any table that is neither of the others. Conntrack's confirmation, which is the last thing at two of the hooks,
        is left out. A built-in chain of iptables-nft that holds nothing is left out too: the kernel may not have it.
        """
        found: list[tuple[int, str]] = []
        if family in self._tracks:
            if hook in ("prerouting", "output"):
                found.append((CONNTRACK, "conntrack"))
            if hook != "forward" and self._translates(family):
                found.append((NAT_SOURCE if hook in nat.SOURCE_HOOKS else NAT_DESTINATION, "nat"))
        for table in self._tables:
            chain = table.chains.get(BUILT_IN.get(hook, "")) if table.family == family else None
            if chain is None or (table.backend == "nft" and not chain.rules and chain.policy in (None, "ACCEPT")):
                continue
            found += [(priority, "filter") for name, priority in TABLES if table.name == name]
        found += [(base.priority, "filter") for base in self._native.base_chains(family, hook) if base.type != "nat"]
        return tuple(sorted(found))

    def _translates(self, family: int) -> bool:
        """The kernel asks its nat hooks for this family: some table of it is one of translations."""
        return any(table.name == "nat" and table.family == family for table in self._tables) or any(
            base.type == "nat" for hook in BUILT_IN for base in self._native.base_chains(family, hook)
        )

    def _through(self, context: HookContext, start: State) -> list[Result]:
        """Every step at the hook in order of priority; what a step lets through goes to the next.

        Of one priority the newest is asked first (nf_hook_entries_grow), so the tables of nftables from the last to the first.
        """
        family = start.packet.family
        steps: list[tuple[int, int, Step]] = []

        def add(priority: int, step: Step, age: int = 0) -> None:
            steps.append((priority, -age, step))

        if context.hook in ("prerouting", "output") and family in self._tracks:
            add(CONNTRACK, lambda state: [Result("accept", replace(state, packet=nat.track(state.packet, context, self._entries)))])
        asked: list[tuple[int, int, Step]] = []
        for table in self._tables:
            if table.family != family or (chain := table.chains.get(BUILT_IN.get(context.hook, ""))) is None:
                continue
            step = self._table_step(table, chain.name, context)
            # Where iptables-nft's are all the tables there are, nft is not asked for a list.
            age = self._native.age.get(("ip6" if family == 6 else "ip", table.name), 1) if table.backend == "nft" else 0
            if table.name == "nat":
                asked.append((NAT_SOURCE if context.hook in nat.SOURCE_HOOKS else NAT_DESTINATION, -age, step))
            for name, priority in TABLES:
                if table.name == name:
                    add(priority, step, age)
        for base in self._native.base_chains(family, context.hook):
            step = self._native_step(base, context)
            age = self._native.age.get((base.family, base.table), 0)
            if base.type == "nat":
                asked.append((base.priority, -age, step))
            else:
                add(base.priority, step, age)
        if context.hook != "forward" and family in self._tracks:
            priority = NAT_SOURCE if context.hook in nat.SOURCE_HOOKS else NAT_DESTINATION
            add(priority, self._nat_step(_orders(asked), context))
        live, ended = [start], []
        for _, _, step in sorted(steps, key=lambda entry: entry[:2]):
            following: list[State] = []
            for state in live:
                for result in step(state):
                    if result.verdict in ("accept", "return", "continue"):
                        following.append(result.state)
                    else:
                        ended.append(result)
            live = following
        return [Result("accept", state) for state in live] + ended

    def _table_step(self, table: xtables.Table, name: str, context: HookContext) -> Step:
        return lambda state: self._chain(table, name, state, context, 0)

    def _native_step(self, base: NftChain, context: HookContext) -> Step:
        return lambda state: self._native.run(base, state, context)

    def _nat_step(self, orders: list[list[Step]], context: HookContext) -> Step:
        """nf_nat_inet_fn: a new connection asks the nat chains until one binds it; every packet is translated as it is bound.

        `orders` of the chains, when it can't be told which holds: they do not matter as long as they come to the same.
        """
        source_side = context.hook in nat.SOURCE_HOOKS

        def ask(chains: list[Step], state: State) -> list[Result]:
            results = [Result("accept", state)]
            for chain in chains:
                results = [
                    after
                    for before in results
                    for after in (
                        [before]
                        if before.verdict not in ("accept", "return") or nat.bound(before.state, source_side)
                        else chain(before.state)
                    )
                ]
            return results

        def step(state: State) -> list[Result]:
            connection = nat.tracked(state.packet)
            if connection is None:
                return [Result("accept", state)]
            results = [Result("accept", state)]
            if connection.state == "new" and connection.direction == "original":
                results, *others = [ask(chains, state) for chains in orders]
                if any(_sense(other) != _sense(results) for other in others):
                    why = f"whether iptables-legacy or nftables translates first at {context.hook} (the newer of the two)"
                    results = [replace(result, state=result.state.doubting(why)) for result in results]
            return [
                replace(result, state=nat.settle(result.state, source_side)) if result.verdict in ("accept", "return") else result
                for result in results
            ]

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
        ended += [Result("return", state) for state in live]
        return end_of_chain(ended, chain.policy, RuleRef(f"policy {chain.policy}", table.name, name))

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
            return [Result("return", state)]
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
            return [Result("continue", replace(state, packet=nat.untrack(state.packet)))]
        if name in NAT_TARGETS:
            return self._translate(rule, NAT_TARGETS[name], arguments, state, context)
        return [Result("continue", state.doubting(f"target {name} in rule {rule.text!r}"))]

    def _translate(
        self, rule: xtables.Rule, kind: str, arguments: Mapping[str, str], state: State, context: HookContext
    ) -> list[Result]:
        """Set a binding up; it is applied at the end of the nat step."""
        addresses: tuple[str, str] | None = None
        ports: str | None = arguments.get("to-ports")
        if kind == "netmap":
            source_side = context.hook in nat.SOURCE_HOOKS
            kind = "snat" if source_side else "dnat"
            own = _mapped(state.packet.src if source_side else state.packet.dst, arguments.get("to", ""))
            if own is None:
                return [Result("continue", state.doubting(f"the network in {rule.text!r}"))]
            addresses = (own, own)
        elif kind in ("masquerade", "redirect"):
            device = context.out_device or ""
            own = (
                context.masquerade_source(device, state.packet.dst)
                if kind == "masquerade"
                else context.redirect_target(context.in_device)
            )
            if own is None:
                return [Result("drop", state, rule.reference)]
            addresses = (own, own)
        else:
            argument = arguments.get("to-source" if kind == "snat" else "to-destination", "")
            if not argument:
                return [Result("continue", state.doubting(f"where rule {rule.text!r} translates to"))]
            text, ports = _end(argument)
            if text is not None:
                low, _, high = text.partition("-")
                addresses = (low, high or low)
        try:
            between = _port_range(ports)
        except ValueError:
            return [Result("continue", state.doubting(f"ports {ports!r} in rule {rule.text!r}"))]
        any_port = "random" in arguments or "random-fully" in arguments
        return nat.bind(state, context, self._entries, rule.reference, kind, addresses, between, any_port)


def _sense(results: list[Result]) -> list[tuple[str, PacketState]]:
    """What results come to."""
    return [("accept" if result.verdict == "return" else result.verdict, result.state.packet) for result in results]


def _orders(asked: list[tuple[int, int, Step]]) -> list[list[Step]]:
    """The chains in the orders they may have: the age of iptables-legacy's tables (0) beside others is not known."""
    oldest = [step for _, _, step in sorted(asked, key=lambda entry: entry[:2])]
    newest = [step for _, _, step in sorted(asked, key=lambda entry: (entry[0], entry[1] != 0, entry[1]))]
    return [oldest] if newest == oldest else [oldest, newest]


def _port_range(text: str | None) -> tuple[int, int] | None:
    """``80``, ``80-90``, or ``80-90/1000`` (a shifted range, whose base does not tell which port of it)."""
    if not text:
        return None
    low, _, high = text.partition("/")[0].partition("-")
    return int(low), int(high or low)


def _end(text: str) -> tuple[str | None, str | None]:
    """(address or range, ports) of a DNAT's or SNAT's argument: ``10.0.0.1:80``, ``:53``, ``[fd00::1]:80-90``."""
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        return address, rest.lstrip(":") or None
    if text.count(":") > 1:
        return text, None
    address, _, ports = text.partition(":")
    return address or None, ports or None


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
