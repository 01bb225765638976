"""Native nftables rulesets as ``nft -j list ruleset`` prints them: chains by hook, sets and maps, and what a rule does.

Schema: libnftables-json(5). Semantics: net/netfilter/nf_tables_core.c (nft_do_chain) and the nft_*.c of each expression: one that
can't be evaluated for a packet (no TCP header, no connection) ends the rule as not matching (NFT_BREAK). The document is untrusted.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from netpath.model.path import RuleRef
from netpath.netfilter import fib, nat, render_nft, words
from netpath.netfilter.state import DEPTH, Result, State, end_of_chain
from netpath.netfilter.types import HOOKS, HookContext, PacketState

FAMILIES: Mapping[str, tuple[int, ...]] = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
XTABLES_TABLES = frozenset({"raw", "mangle", "nat", "filter", "security"})
LARGEST_CHOICE = 4096
"""numgen and hashes choose between at most this many values; more are not told apart."""


class Unsure(Exception):
    """Something that netpath does not understand or the snapshot does not say, in the rule's own words."""


class Break(Exception):
    """NFT_BREAK: the expression has no value for this packet, so the rule does not match."""


class Addr(NamedTuple):
    """An IP address as a number that compares."""

    version: int
    number: int


class Concat(NamedTuple):
    """A concatenation of values."""

    parts: tuple[Any, ...]


class Bits(int):
    """Flags of which some are not known."""

    unsure: int

    def __new__(cls, bits: int, unsure: int) -> Bits:
        made = super().__new__(cls, bits)
        made.unsure = unsure
        return made

    def masked(self, mask: int) -> int:
        """The flags under a mask. Raises Unsure if one of them is not known."""
        if self.unsure & mask:
            raise Unsure("a flag of the connection's status, which is not known,")
        return int(self) & mask


Choice = list[tuple[float, Any]]
"""Values with their probabilities. What is missing to 1 is the probability that there is no value (NFT_BREAK)."""


@dataclass
class NftSet:
    """A named or anonymous set or map: exact elements by key, others (prefixes, ranges) in a list."""

    elements: Sequence[Any]
    is_map: bool
    index: dict[tuple[str | None, ...], tuple[dict[Any, Any], list[tuple[Any, Any]], tuple[Any, ...] | None]] = field(
        default_factory=dict
    )


@dataclass(eq=False)
class NftChain:
    family: str
    table: str
    name: str
    hook: str | None = None
    priority: int = 0
    type: str = "filter"
    policy: str | None = None
    devices: tuple[str, ...] = ()
    texts: list[msgspec.Raw] = field(default_factory=list)
    """Its rules as JSON, read when a packet first comes by: of thousands of chains it meets few."""
    references: dict[int, RuleRef] = field(default_factory=dict)

    @cached_property
    def rules(self) -> list[Mapping[str, Any]]:
        return [msgspec.json.decode(text)["rule"] for text in self.texts]

    def reference(self, rule: Mapping[str, Any]) -> RuleRef:
        found = self.references.get(id(rule))
        if found is None:
            comment = rule.get("comment")
            comment = comment if isinstance(comment, str) else None
            service = words.service(comment) or words.service_of_chain(self.name)
            found = RuleRef(render_nft.rule(rule.get("expr")), f"{self.family} {self.table}", self.name, comment, service=service)
            self.references[id(rule)] = found
        return found


class _Place(msgspec.Struct):
    """Where a rule is; its expressions are left for later."""

    family: str
    table: str
    chain: str


class _Item(msgspec.Struct):
    rule: _Place | None = None


class _Document(msgspec.Struct):
    nftables: list[msgspec.Raw]


_DOCUMENT, _ITEM = msgspec.json.Decoder(_Document), msgspec.json.Decoder(_Item)


@dataclass(frozen=True, slots=True)
class Env:
    """What an expression is evaluated on."""

    packet: PacketState
    context: HookContext
    table: tuple[str, str]


class Native:
    """The native tables of one namespace. `owned`: tables that a save text of iptables-nft says more about."""

    def __init__(self, text: str | None, owned: set[tuple[str, str]]) -> None:
        self.problems: list[str] = []
        self.chains: dict[tuple[str, str, str], NftChain] = {}
        self.sets: dict[tuple[str, str, str], NftSet] = {}
        self.tracks: set[int] = set()
        self.age: dict[tuple[str, str], int] = {}
        """(family, table) -> its place in the list of all tables, also of those that are owned: the kernel appends."""
        self.entries: Sequence[Any] = ()
        if not text or not text.strip():
            return
        try:
            # A ruleset of thousands of services has megabytes: the standard library takes ten times as long.
            items = _DOCUMENT.decode(text).nftables
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            self.problems.append("the nftables ruleset can't be read as JSON")
            return
        for item in items:
            try:
                place = _ITEM.decode(item).rule
                if place is not None:
                    self._take_rule(place, item, owned)
                else:
                    self._take(msgspec.json.decode(item), owned)
            except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
                self.problems.append(f"nftables: not understood: {bytes(item)[:120].decode(errors='replace')}")
        self.by_hook: dict[tuple[int, str], list[NftChain]] = {}
        for chain in self.chains.values():
            if chain.hook is not None:
                for family in FAMILIES.get(chain.family, ()):
                    self.by_hook.setdefault((family, chain.hook), []).append(chain)

    by_hook: dict[tuple[int, str], list[NftChain]] = {}  # noqa: RUF012 - the empty default of a namespace without nftables

    def _take_rule(self, place: _Place, text: msgspec.Raw, owned: set[tuple[str, str]]) -> None:
        if (place.family, place.table) in owned:
            return
        key = (place.family, place.table, place.chain)
        chain = self.chains.get(key)
        if chain is None:
            chain = self.chains[key] = NftChain(*key)
        chain.texts.append(text)
        families = FAMILIES.get(place.family, ())
        if not self.tracks.issuperset(families) and _asks_conntrack(msgspec.json.decode(text)["rule"].get("expr")):
            self.tracks.update(families)

    def _take(self, item: Any, owned: set[tuple[str, str]]) -> None:
        ((kind, body),) = item.items()
        if kind == "table":
            self.age[str(body["family"]), str(body["name"])] = len(self.age) + 1
            return
        if kind in ("metainfo", "counter", "quota", "limit", "ct helper", "ct timeout", "ct expectation", "secmark"):
            return
        if kind in ("flowtable", "synproxy", "element"):
            return
        family, table = str(body["family"]), str(body["table"])
        if (family, table) in owned:
            return
        if kind == "chain":
            hook, device = body.get("hook"), body.get("dev", ())
            policy = body.get("policy", "accept") if hook is not None else None
            if not isinstance(hook, (str, type(None))) or policy not in (None, "accept", "drop"):
                raise TypeError
            chain = NftChain(
                family,
                table,
                str(body["name"]),
                hook,
                int(body.get("prio", 0)),
                str(body.get("type", "filter")),
                policy,
                (device,) if isinstance(device, str) else tuple(map(str, device)),
            )
            known = self.chains.get((family, table, chain.name))
            chain.texts = known.texts if known is not None else []
            self.chains[family, table, chain.name] = chain
        elif kind in ("set", "map"):
            elements = body.get("elem", ())
            self.sets[family, table, str(body["name"])] = NftSet(elements if isinstance(elements, list) else (), kind == "map")
        else:
            self.problems.append(f"nftables: not understood: {kind}")

    # What is registered at a hook.

    def base_chains(self, family: int, hook: str) -> Iterable[NftChain]:
        return self.by_hook.get((family, hook), ())

    def unevaluated(self, context: HookContext) -> Iterator[str]:
        """Chains of the bridge and netdev families that the packet may have met, which are not evaluated."""
        for chain in self.chains.values():
            if not chain.hook or not (chain.texts or chain.policy not in (None, "accept")):
                continue
            if chain.family == "bridge" and chain.hook == context.hook and (context.bridged or context.physical_in):
                yield f"nftables table bridge {chain.table}, chain {chain.name}, which is not evaluated"
            if chain.family in ("netdev", "inet") and (
                (chain.hook == "ingress" and context.hook == "prerouting" and context.in_device in chain.devices)
                or (chain.hook == "egress" and context.hook == "postrouting" and context.out_device in chain.devices)
            ):
                yield f"nftables table {chain.family} {chain.table}, chain {chain.name} at {chain.hook}, which is not evaluated"

    # Traversal.

    def run(self, chain: NftChain, start: State, context: HookContext) -> list[Result]:
        """All ways through a base chain."""
        results = self._chain(chain, start, context, 0)
        return end_of_chain(results, chain.policy, RuleRef(f"policy {chain.policy}", f"{chain.family} {chain.table}", chain.name))

    def _chain(self, chain: NftChain, start: State, context: HookContext, depth: int) -> list[Result]:
        if depth > DEPTH:
            return [Result("return", start.doubting(f"nftables: chains jump in a loop at {chain.name}"))]
        live, ended = [start], []
        for rule in chain.rules:
            following: list[State] = []
            for state in live:
                for result in self._rule(chain, rule, state, context, depth):
                    if result.verdict == "continue":
                        following.append(result.state)
                    else:
                        ended.append(result)
            live = following
            if not live:
                break
        return [Result("return", state) for state in live] + ended

    def _rule(self, chain: NftChain, rule: Mapping[str, Any], state: State, context: HookContext, depth: int) -> list[Result]:
        expressions = rule.get("expr", ())
        if not isinstance(expressions, list):
            return [Result("continue", state.doubting(f"nftables: a rule of chain {chain.name} without expressions"))]
        try:
            return self._statements(chain, rule, expressions, 0, state, None, context, depth)
        except Unsure as why:
            return [Result("continue", state.doubting(f"{why} in rule {chain.reference(rule).text!r}"))]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError):
            return [Result("continue", state.doubting(f"nftables rule {chain.reference(rule).text!r}"))]

    def _statements(
        self,
        chain: NftChain,
        rule: Mapping[str, Any],
        expressions: Sequence[Any],
        at: int,
        state: State,
        doubt: str | None,
        context: HookContext,
        depth: int,
    ) -> list[Result]:
        """The statements of a rule from number `at` on. `doubt`: a match that is not understood, should all others hold."""
        results: list[Result] = []
        for number in range(at, len(expressions)):
            ((kind, body),) = expressions[number].items()
            env = Env(state.packet, context, (chain.family, chain.table))
            if kind in PASSING:
                continue
            if kind in CONDITIONS:
                try:
                    chance = self._match(body, env) if kind == "match" else _within(kind, body)
                except Unsure as why:
                    doubt = doubt or f"{why} in rule {chain.reference(rule).text!r}"
                    continue
                except Break:
                    chance = 0.0
                if chance < 1:
                    results.append(Result("continue", state.times(1 - chance)))
                if chance <= 0:
                    return results
                state = state.times(chance)
                continue
            if doubt is not None:
                return [*results, Result("continue", state.doubting(doubt))]
            if kind in VERDICTS:
                return results + self._verdict(chain, rule, expressions[number], state.at(chain.reference(rule)), context, depth)
            if kind == "vmap":
                return results + self._verdict_map(chain, rule, body, state, context, depth)
            reference = chain.reference(rule)
            if kind == "reject":
                if _other_protocol(body, state.packet):
                    return [*results, Result("continue", state)]
                return [*results, Result("reject", state.at(reference), reference, _reject(body, state.packet.family))]
            if kind == "queue":
                return [*results, Result("queue", state.at(reference), reference)]
            if kind == "notrack":
                state = replace(state.at(reference), packet=nat.untrack(state.packet))
                continue
            if kind in NAT_STATEMENTS:
                found = self._translate(kind, body, reference, state, env)
                if found is None:
                    continue
                return results + found
            if kind == "mangle":
                changed = self._mangle(body, state.at(reference), env)
                for other in changed[1:]:
                    results += self._statements(chain, rule, expressions, number + 1, other, doubt, context, depth)
                # What a map has no value for ends the rule (NFT_BREAK).
                missed = state.share - sum(other.share for other in changed)
                if missed > 1e-9:
                    results.append(Result("continue", replace(state, share=missed)))
                if not changed:
                    return results
                state = changed[0]
                continue
            if kind == "xt":
                raise Unsure(f"the arguments of {body.get('type')} {body.get('name')}, which nft does not show,")
            raise Unsure(f"statement {kind}")
        if doubt is not None:
            # A rule that only counts or logs changes nothing, whether it matches or not.
            return [*results, Result("continue", state)]
        return [*results, Result("continue", state)]

    def _verdict(
        self, chain: NftChain, rule: Mapping[str, Any], verdict: Mapping[str, Any], state: State, context: HookContext, depth: int
    ) -> list[Result]:
        ((kind, body),) = verdict.items()
        if kind in ("accept", "drop"):
            return [Result(kind, state, chain.reference(rule))]
        if kind in ("return", "continue"):
            return [Result(kind, state)]
        if kind in ("jump", "goto"):
            target = self.chains.get((chain.family, chain.table, body["target"]))
            if target is None:
                return [Result("continue", state.doubting(f"nftables: chain {body['target']} is not in the ruleset"))]
            return [
                Result("continue", result.state) if result.verdict == "return" and kind == "jump" else result
                for result in self._chain(target, state, context, depth + 1)
            ]
        if kind == "queue":
            return [Result("queue", state, chain.reference(rule))]
        raise Unsure(f"verdict {kind}")

    def _verdict_map(
        self, chain: NftChain, rule: Mapping[str, Any], body: Any, state: State, context: HookContext, depth: int
    ) -> list[Result]:
        env = Env(state.packet, context, (chain.family, chain.table))
        results: list[Result] = []
        taken: dict[str, tuple[float, Any]] = {}
        missed = 1.0
        try:
            choices = self._values(body["key"], env)
        except Break:
            choices = []
        kinds = _kinds(body["key"])
        for chance, value in choices:
            found = self._lookup(body["data"], value, kinds, env.table)
            if found is None:
                continue
            verdict = found[0]
            if not isinstance(verdict, dict):
                raise Unsure("a verdict map")
            name = str(verdict)
            taken[name] = (taken.get(name, (0.0, None))[0] + chance, verdict)
            missed -= chance
        if missed > 1e-9:
            results.append(Result("continue", state.times(missed) if taken else state))
        for chance, verdict in taken.values():
            chosen = (state if chance > 1 - 1e-9 else state.times(chance)).at(chain.reference(rule))
            results += self._verdict(chain, rule, verdict, chosen, context, depth)
        return results

    def _mangle(self, body: Mapping[str, Any], state: State, env: Env) -> list[State]:
        ((kind, key),) = body["key"].items()
        name = key.get("key") if isinstance(key, dict) else None
        if kind == "meta" and name in ("nftrace", "priority", "pkttype", "secmark"):
            return [state]
        if kind in ("tcp option", "exthdr", "ip option"):
            return [state]
        if kind == "ct" and name in ("helper", "timeout", "expectation", "label", "event", "secmark"):
            return [state]
        states = []
        try:
            choices = self._values(body["value"], env)
        except Break:
            return []
        for chance, value in choices:
            chosen = state.times(chance)
            if kind == "meta" and name == "mark" and isinstance(value, int):
                states.append(replace(chosen, packet=replace(chosen.packet, mark=value & 0xFFFFFFFF)))
            elif kind == "ct" and name == "mark" and isinstance(value, int):
                connection = nat.tracked(chosen.packet)
                if connection is not None:
                    chosen = replace(chosen, packet=replace(chosen.packet, connection=replace(connection, mark=value & 0xFFFFFFFF)))
                states.append(chosen)
            elif kind == "payload" and key.get("field") in ("ttl", "hoplimit") and isinstance(value, int):
                states.append(replace(chosen, packet=replace(chosen.packet, ttl=value)))
            elif kind == "payload" and key.get("field") == "dscp" and isinstance(value, int):
                states.append(replace(chosen, packet=replace(chosen.packet, tos=(value << 2) | (chosen.packet.tos & 3))))
            else:
                raise Unsure(f"{render_nft.expression(body['key'])} set")
        return states

    def _translate(self, kind: str, body: Any, reference: RuleRef, state: State, env: Env) -> list[Result] | None:
        """A NAT statement; None when it is for the other family and the rule goes on."""
        body = body or {}
        wanted = FAMILIES.get(body.get("family", "inet"), (4, 6))
        if state.packet.family not in wanted:
            return None
        flags = body.get("flags", ())
        flags = {flags} if isinstance(flags, str) else set(flags)
        if flags - {"random", "fully-random", "persistent"} or body.get("type_flags"):
            raise Unsure(f"{kind} with {', '.join(map(str, flags or body.get('type_flags')))}")
        any_port = bool(flags & {"random", "fully-random"})
        untouched, state = state, state.at(reference)
        if nat.tracked(state.packet) is None:
            return [Result("accept", state, reference)]
        if kind in ("masquerade", "redirect"):
            own = (
                env.context.masquerade_source(env.context.out_device or "", state.packet.dst)
                if kind == "masquerade"
                else env.context.redirect_target(env.context.in_device)
            )
            if own is None:
                return [Result("drop", state, reference)]
            addresses: Choice = [(1.0, (own, own))]
        elif "addr" in body:
            addresses = [(chance, value) for chance, value in self._ends(body["addr"], env)]
        else:
            addresses = [(1.0, None)]
        results: list[Result] = []
        missed = 1.0
        for chance, address in addresses:
            port_of_map = None
            if isinstance(address, Concat):
                address, port_of_map = address.parts[0], address.parts[1]
            port_choices: Choice = [(1.0, port_of_map)]
            if "port" in body:
                port_choices = self._ends(body["port"], env)
            for share, ports in port_choices:
                missed -= chance * share
                results += nat.bind(
                    state.times(chance * share),
                    env.context,
                    self.entries,
                    reference,
                    kind,
                    address if address is None or isinstance(address[0], str) else (_text(address[0]), _text(address[1])),
                    None if ports is None else (int(ports[0]), int(ports[1])),
                    any_port,
                )
        if missed > 1e-9:
            results.append(Result("continue", untouched.times(missed)))
        return results

    def _ends(self, body: Any, env: Env) -> Choice:
        """Choices of (low, high), or of a Concat of two such pairs."""
        if isinstance(body, dict) and ("range" in body or "prefix" in body):
            return [(1.0, _bounds(body, None))]
        found: Choice = []
        for chance, value in self._values(body, env, bounds=True):
            found.append((chance, value))
        return found

    # Expressions.

    def _values(self, body: Any, env: Env, bounds: bool = False) -> Choice:
        """The values of an expression. With `bounds` each comes as (low, high), for what may be a range."""
        if isinstance(body, dict) and "map" in body:
            inner = body["map"]
            kinds = _kinds(inner["key"])
            found: Choice = []
            for chance, key in self._values(inner["key"], env):
                data = self._lookup(inner["data"], key, kinds, env.table)
                if data is not None:
                    found.append((chance, _data(data[0]) if bounds else literal(data[0], None)))
            if not found:
                raise Break
            return found
        if bounds:
            return [(chance, (value, value)) for chance, value in self._values(body, env)]
        if not isinstance(body, dict):
            return [(1.0, literal(body, None))]
        ((kind, inner),) = body.items()
        if kind == "numgen":
            return _choices(inner)
        if kind in ("jhash", "symhash"):
            return _choices(inner)
        if kind == "concat":
            combined: Choice = [(1.0, ())]
            for part in inner:
                combined = [
                    (chance * share, (*values, value)) for chance, values in combined for share, value in self._values(part, env)
                ]
            return [(chance, Concat(values)) for chance, values in combined]
        if kind in OPERATORS:
            hint = _kind(body)
            left = self._values(inner[0], env)
            for part in inner[1:]:
                right = self._values(part, env) if _is_read(part) else [(1.0, literal(part, hint))]
                left = [(chance * share, _calculate(kind, value, other)) for chance, value in left for share, other in right]
            return left
        reader = READERS.get(kind)
        if reader is None:
            return [(1.0, literal(body, None))]
        value = reader(inner, env)
        if value is None:
            raise Unsure(f"{render_nft.expression(body)}, which is not known,")
        return value if isinstance(value, list) else [(1.0, value)]

    def _match(self, body: Mapping[str, Any], env: Env) -> float:
        """The probability that a match holds."""
        left, right, op = body["left"], body["right"], body.get("op", "==")
        kinds = _kinds(left)
        total = 0.0
        for chance, value in self._values(left, env):
            if self._compare(op, value, left, right, kinds, env):
                total += chance
        return 1.0 if total > 1 - 1e-9 else total

    def _compare(self, op: str, value: Any, left: Any, right: Any, kinds: tuple[str | None, ...], env: Env) -> bool:
        if (isinstance(right, str) and right.startswith("@")) or (isinstance(right, dict) and "set" in right):
            inside = self._lookup(right, value, kinds, env.table) is not None
            if op not in ("==", "!=", "in"):
                raise Unsure(f"comparison {op} with a set")
            return inside != (op == "!=")
        if isinstance(right, bool) and isinstance(left, dict) and "fib" in left:
            return bool(value) == (right != (op == "!="))
        if isinstance(right, bool):
            raise Unsure(f"whether {render_nft.expression(left)} exists")
        if isinstance(right, list) or op in ("in", "!"):
            mask = literal(right, kinds[0])
            if not isinstance(value, int) or not isinstance(mask, int):
                raise Unsure(f"flags of {render_nft.expression(left)}")
            exact = isinstance(left, dict) and any(name in left for name in OPERATORS)
            if isinstance(value, Bits):
                value.masked(mask)
            if op in ("in", "!") or not exact:
                return (value & mask != 0) != (op in ("!", "!="))
            return (value == mask) != (op == "!=")
        if isinstance(right, dict) and _is_read(right):
            return any(_ordered(op, value, other) for _, other in self._values(right, env))
        if isinstance(value, Bits):
            value.masked(-1)
        item = _item(right, kinds)
        if op in ("==", "!="):
            return _covers(item, _parts(value)) != (op == "!=")
        if item is None or len(item) != 1:
            raise Unsure(f"comparison {op}")
        return _ordered(op, value, item[0][0])

    def _lookup(self, data: Any, value: Any, kinds: tuple[str | None, ...], table: tuple[str, str]) -> tuple[Any] | None:
        """The element that covers a value, as a tuple of its data (None for a set); None when there is none."""
        if isinstance(data, str) and data.startswith("@"):
            found = self.sets.get((*table, data[1:]))
            if found is None:
                raise Unsure(f"set {data}, which is not in the ruleset,")
        elif isinstance(data, dict) and "set" in data:
            elements = data["set"]
            found = self.sets.setdefault(
                ("", "", str(id(data))), NftSet(elements if isinstance(elements, list) else [elements], False)
            )
        else:
            raise Unsure("a map that is not one")
        exact, ranges, rest = found.index.get(kinds) or self._indexed(found, kinds)
        parts = _parts(value)
        if parts in exact:
            return (exact[parts],)
        for item, element in ranges:
            if _covers(item, parts):
                return (element,)
        return rest

    def _indexed(
        self, found: NftSet, kinds: tuple[str | None, ...]
    ) -> tuple[dict[Any, Any], list[tuple[Any, Any]], tuple[Any, ...] | None]:
        exact: dict[Any, Any] = {}
        ranges: list[tuple[Any, Any]] = []
        rest: tuple[Any, ...] | None = None
        for element in found.elements:
            key, data = element, None
            if isinstance(element, list) and len(element) == 2:
                key, data = element
            plain = _plain(key, kinds)
            if plain is not None:
                exact.setdefault(plain, data)
                continue
            item = _item(key, kinds)
            if item is None:
                rest = (data,)
            elif all(low == high for low, high in item):
                exact.setdefault(tuple(low for low, _ in item), data)
            else:
                ranges.append((item, data))
        found.index[kinds] = exact, ranges, rest
        return exact, ranges, rest


# Values.


def scalar(text: str, kind: str | None) -> Any:
    """A word as the value it stands for in an expression of a kind."""
    if kind == "iface":
        return "" if text == "0" else text
    table = words.NAMES.get(kind or "")
    if table is not None and text in table:
        return table[text]
    if text.isdigit():
        return int(text)
    if text.startswith("0x"):
        return int(text, 16)
    if kind in (None, "addr"):
        address = _address(text)
        if address is not None:
            return address
        if kind == "addr":
            raise Unsure(f"address {text}")
    if kind == "port":
        number = words.port(text)
        if number is not None:
            return number
    if kind is None:
        return text
    raise Unsure(f"value {text}")


def _address(text: str) -> Addr | None:
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        try:
            return Addr(version, int.from_bytes(socket.inet_pton(family, text), "big"))
        except (OSError, ValueError):
            continue
    return None


def literal(body: Any, kind: str | None) -> Any:
    """A constant."""
    if isinstance(body, bool):
        return int(body)
    if isinstance(body, int):
        return body
    if isinstance(body, str):
        return scalar(body, kind)
    if isinstance(body, list):
        value = 0
        for part in body:
            value |= literal(part, kind)
        return value
    ((name, inner),) = body.items()
    if name in OPERATORS:
        value = literal(inner[0], kind)
        for part in inner[1:]:
            value = _calculate(name, value, literal(part, kind))
        return value
    if name == "concat":
        return Concat(tuple(literal(part, None) for part in inner))
    if name == "elem":
        return literal(inner["val"], kind)
    raise Unsure(f"expression {name}")


def _data(body: Any) -> Any:
    """The data of a map as bounds: (low, high), or a Concat of those for ``address . port``."""
    if isinstance(body, dict) and "concat" in body:
        return Concat(tuple(_bounds(part, None) for part in body["concat"]))
    return _bounds(body, None)


def _bounds(body: Any, kind: str | None) -> tuple[Any, Any]:
    if isinstance(body, dict):
        if "range" in body:
            low, high = body["range"]
            return literal(low, kind), literal(high, kind)
        if "prefix" in body:
            network = ipaddress.ip_network(f"{body['prefix']['addr']}/{body['prefix']['len']}", strict=False)
            return Addr(network.version, int(network.network_address)), Addr(network.version, int(network.broadcast_address))
        if "elem" in body:
            return _bounds(body["elem"]["val"], kind)
    if kind == "iface" and isinstance(body, str) and body.endswith("*"):
        return body[:-1], body[:-1] + "\U0010ffff"
    value = literal(body, kind)
    return value, value


def _item(body: Any, kinds: tuple[str | None, ...]) -> tuple[tuple[Any, Any], ...] | None:
    """An element as (low, high) of each part; None for the catch-all."""
    while isinstance(body, dict) and "elem" in body:
        body = body["elem"]["val"]
    if body == "*" and kinds != ("iface",):
        return None
    if isinstance(body, dict) and "concat" in body:
        parts = body["concat"]
        if len(parts) != len(kinds):
            raise Unsure("a concatenation of another length")
        return tuple(_bounds(part, kind) for part, kind in zip(parts, kinds, strict=True))
    return (_bounds(body, kinds[0] if len(kinds) == 1 else None),)


def _plain(body: Any, kinds: tuple[str | None, ...]) -> tuple[Any, ...] | None:
    """The parts of an element that is neither range nor prefix nor pattern, as most of a large set are; None: see `_item`."""
    parts = body.get("concat") if type(body) is dict else [body]
    if type(parts) is not list or len(parts) != len(kinds):
        return None
    found = []
    for part, kind in zip(parts, kinds, strict=True):
        if type(part) is str and "*" not in part:
            found.append(scalar(part, kind))
        elif type(part) is int:
            found.append(part)
        else:
            return None
    return tuple(found)


def _parts(value: Any) -> tuple[Any, ...]:
    return value.parts if isinstance(value, Concat) else (value,)


def _covers(item: tuple[tuple[Any, Any], ...] | None, parts: tuple[Any, ...]) -> bool:
    if item is None:
        return True
    if len(item) != len(parts):
        return False
    return all(
        type(low) is type(value) and (not isinstance(value, Addr) or value.version == low.version) and low <= value <= high
        for (low, high), value in zip(item, parts, strict=True)
    )


def _ordered(op: str, left: Any, right: Any) -> bool:
    if op == "==":
        return bool(left == right)
    if op == "!=":
        return bool(left != right)
    if type(left) is not type(right):
        raise Unsure(f"comparison {op} of different things")
    return bool({"<": left < right, ">": left > right, "<=": left <= right, ">=": left >= right}[op])


def _calculate(op: str, left: Any, right: Any) -> Any:
    if isinstance(left, Addr) and isinstance(right, (Addr, int)):
        return Addr(left.version, _calculate(op, left.number, right.number if isinstance(right, Addr) else right))
    if not isinstance(left, int) or not isinstance(right, int):
        raise Unsure(f"operation {op}")
    if isinstance(left, Bits):
        left = left.masked(right if op == "&" else -1)
    if op == "<<":
        return (left << min(right, 64)) & 0xFFFFFFFF
    if op == ">>":
        return left >> min(right, 64)
    return {"&": left & right, "|": left | right, "^": left ^ right}[op]


def _text(value: Any) -> str:
    if isinstance(value, Addr):
        return str((ipaddress.IPv6Address if value.version == 6 else ipaddress.IPv4Address)(value.number))
    return str(value)


def _choices(body: Mapping[str, Any]) -> Choice:
    """Which value a generator or a hash gives can't be told: each is as likely."""
    modulus, offset = body.get("mod"), body.get("offset", 0)
    if not isinstance(modulus, int) or not 0 < modulus <= LARGEST_CHOICE or not isinstance(offset, int):
        raise Unsure(f"a choice between {modulus} values")
    return [(1 / modulus, offset + number) for number in range(modulus)]


def _is_read(body: Any) -> bool:
    """Whether an operand is read from the packet rather than a constant."""
    if not isinstance(body, dict):
        return False
    return any(name in READERS or name in ("map", "numgen", "jhash", "symhash") for name in body) or any(
        _is_read(part) for name in OPERATORS if name in body for part in body[name]
    )


def _kind(body: Any) -> str | None:
    """The kind of constants that an expression is compared with."""
    if not isinstance(body, dict) or len(body) != 1:
        return None
    ((name, inner),) = body.items()
    if name in OPERATORS:
        return _kind(inner[0])
    if not isinstance(inner, dict):
        return None
    if name == "payload":
        return words.PAYLOAD_KINDS.get((inner.get("protocol"), inner.get("field"))) or "int"
    if name == "meta":
        return words.META_KINDS.get(inner.get("key"), "int")
    if name == "ct":
        return words.CT_KINDS.get(str(inner.get("key")), "int")
    if name == "fib":
        return "fibtype" if inner.get("result") == "type" else "iface"
    return None


def _kinds(body: Any) -> tuple[str | None, ...]:
    if isinstance(body, dict) and isinstance(body.get("concat"), list):
        return tuple(_kind(part) for part in body["concat"])
    return (_kind(body),)


def _asks_conntrack(body: Any) -> bool:
    """Whether a rule makes the kernel track connections (nf_ct_netns_get in an expression's init)."""
    if isinstance(body, dict):
        return any(name in CONNTRACK or _asks_conntrack(inner) for name, inner in body.items())
    return isinstance(body, list) and any(_asks_conntrack(part) for part in body)


def _within(kind: str, body: Any) -> float:
    """Rates, quotas and counts: one probe stays within them."""
    return 0.0 if isinstance(body, dict) and body.get("inv") else 1.0


def _other_protocol(body: Any, packet: PacketState) -> bool:
    """Whether a reject is for other packets: nft tests for the protocol that its answer needs, and leaves the test out in print."""
    kind = (body or {}).get("type")
    return (kind == "tcp reset" and packet.protocol != "tcp") or {"icmp": 6, "icmpv6": 4}.get(str(kind)) == packet.family


def _reject(body: Any, family: int) -> str:
    body = body or {}
    if body.get("type") == "tcp reset":
        return "tcp-reset"
    what = body.get("expr", "port-unreachable")
    kind = {"icmp": "icmp", "icmpv6": "icmp6"}.get(body.get("type", ""), "icmp" if family == 4 else "icmp6")
    return f"{kind}-{what}"


# Readers: what an expression finds in a packet. None: not known; a list: values with their probabilities.


def _payload(body: Mapping[str, Any], env: Env) -> Any:
    protocol, name, packet = body.get("protocol"), str(body.get("field")), env.packet
    if protocol in ("ip", "ip6"):
        if (protocol == "ip") != (packet.family == 4):
            raise Break
        if name in ("saddr", "daddr"):
            address = ipaddress.ip_address(packet.src if name == "saddr" else packet.dst)
            return Addr(address.version, int(address))
        simple: Mapping[str, Any] = {
            "protocol": words.protocol(packet.protocol),
            "nexthdr": words.protocol(packet.protocol),
            "ttl": packet.ttl,
            "hoplimit": packet.ttl,
            "length": packet.length if protocol == "ip" else max(packet.length - 40, 0),
            "dscp": packet.tos >> 2,
            "ecn": packet.tos & 3,
            "version": packet.family,
        }
        if name in simple:
            return simple[name]
    elif protocol in ("tcp", "udp", "th", "sctp", "dccp", "udplite"):
        if (protocol != packet.protocol) if protocol != "th" else packet.protocol not in nat.WITH_PORTS:
            raise Break
        if name in ("sport", "dport"):
            return packet.sport if name == "sport" else packet.dport
        if protocol == "tcp" and name == "flags":
            return sum(words.TCP_FLAGS.get(letter, 0) for letter in set(packet.tcp_flags))
        if protocol == "udp" and name == "length":
            return packet.length - (20 if packet.family == 4 else 40)
    elif protocol in ("icmp", "icmpv6"):
        if protocol != packet.protocol:
            raise Break
        if name in ("type", "code", "id"):
            return {"type": packet.icmp_type, "code": packet.icmp_code, "id": packet.icmp_id}[name]
    raise Unsure(render_nft.expression({"payload": body}))


def _meta(body: Mapping[str, Any], env: Env) -> Any:
    packet, context, key = env.packet, env.context, str(body.get("key"))
    simple: Mapping[object, Callable[[], Any]] = {
        "iifname": lambda: context.in_device or "",
        "iif": lambda: context.in_device or "",
        "oifname": lambda: context.out_device or "",
        "oif": lambda: context.out_device or "",
        "l4proto": lambda: words.protocol(packet.protocol),
        "nfproto": lambda: 2 if packet.family == 4 else 10,
        "protocol": lambda: 0x0800 if packet.family == 4 else 0x86DD,
        "mark": lambda: packet.mark,
        "length": lambda: packet.length,
        "iifgroup": lambda: context.device_group(context.in_device or ""),
        "oifgroup": lambda: context.device_group(context.out_device or ""),
        "pkttype": lambda: words.packet_type(context, packet),
    }
    if key in simple:
        return simple[key]()
    raise Unsure(f"meta {key}")


def _ct(body: Mapping[str, Any], env: Env) -> Any:
    key = str(body.get("key"))
    connection = env.packet.connection
    if key == "state":
        state = "invalid" if connection is None else connection.state
        return words.CT_STATES.get(state, 1)
    connection = nat.tracked(env.packet)
    if connection is None:
        raise Break
    if key == "status":
        bits, unsure = nat.status(connection)
        return Bits(bits, unsure) if unsure else bits
    if key == "mark":
        return connection.mark
    if key == "zone":
        return 0
    if key == "direction":
        return 0 if connection.direction == "original" else 1
    flow = connection.reply if body.get("dir") == "reply" else connection.original
    if key in ("saddr", "ip saddr", "ip6 saddr", "daddr", "ip daddr", "ip6 daddr"):
        address = ipaddress.ip_address(flow.source if key.endswith("saddr") else flow.destination)
        if key.startswith("ip") and (address.version == 6) != key.startswith("ip6"):
            raise Break
        return Addr(address.version, int(address))
    if key in ("proto-src", "proto-dst"):
        return flow.sport if key == "proto-src" else flow.dport
    if key == "protocol":
        return words.protocol(connection.protocol)
    if key == "l3proto":
        return 2 if env.packet.family == 4 else 10
    raise Unsure(f"ct {key}")


def _fib(body: Mapping[str, Any], env: Env) -> Any:
    flags = body.get("flags", ())
    flags = {flags} if isinstance(flags, str) else set(flags)
    if not flags & {"saddr", "daddr"}:
        raise Unsure(render_nft.expression({"fib": body}))
    if body.get("result") in ("oif", "oifname", "check"):
        through = env.context.in_device if "iif" in flags else env.context.out_device if "oif" in flags else None
        return fib.route_device(
            env.packet,
            env.context,
            forward="daddr" in flags,
            use_mark="mark" in flags,
            through=through,
        )
    if body.get("result") != "type" or flags & {"mark"}:
        raise Unsure(render_nft.expression({"fib": body}))
    address = env.packet.src if "saddr" in flags else env.packet.dst
    device = env.context.in_device if "iif" in flags else env.context.out_device if "oif" in flags else None
    return env.context.address_type(address, device)


READERS: Mapping[str, Callable[[Mapping[str, Any], Env], Any]] = {"payload": _payload, "meta": _meta, "ct": _ct, "fib": _fib}
OPERATORS = ("&", "|", "^", "<<", ">>")
PASSING = frozenset({"counter", "log", "set", "map_update", "comment", "last"})
"""Statements that change nothing a path depends on."""
CONDITIONS = frozenset({"match", "limit", "quota", "ct count"})
VERDICTS = frozenset({"accept", "drop", "return", "continue", "jump", "goto"})
NAT_STATEMENTS = frozenset({"dnat", "snat", "masquerade", "redirect"})
ACTING = frozenset({"reject", "queue", "notrack", "mangle", "vmap", *NAT_STATEMENTS})
EXPRESSIONS = frozenset({*READERS, *OPERATORS, "numgen", "jhash", "symhash", "concat", "map", "set", "prefix", "range", "elem"})
CONNTRACK = frozenset({"ct", "dnat", "snat", "masquerade", "redirect", "ct count", "flow", "synproxy"})
BASE_HOOKS = frozenset(HOOKS)
