"""Route look-up as the kernel does it: policy rules in order, longest prefix, TOS, metric, live next hops, multipath shares.

Sources: net/core/fib_rules.c, net/ipv4/fib_rules.c, fib_trie.c (fib_table_lookup), fib_semantics.c (fib_select_multipath),
net/ipv6/route.c, ip6_fib.c, net/ipv4/nexthop.c.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from netpath.model.index import canonical
from netpath.model.snapshot import Address, NextHop, NextHopObject, Route, Rule
from netpath.predict import addresses as ip
from netpath.predict.host import Host, Table, scope_number

PROTOCOL_NUMBERS = {"icmp": 1, "ipip": 4, "tcp": 6, "udp": 17, "icmpv6": 58}

_TYPE_ERRORS = {"blackhole": "EINVAL", "unreachable": "EHOSTUNREACH", "prohibit": "EACCES"}
_ACTION_ERRORS = {"unreachable": "ENETUNREACH", "prohibit": "EACCES", "blackhole": "EINVAL"}
_VALID_STATES = frozenset({"PERMANENT", "NOARP", "REACHABLE", "PROBE", "STALE", "DELAY"})


@dataclass(frozen=True, slots=True)
class Query:
    """What a look-up is asked. `iif` is the incoming device, None for what this namespace sends itself."""

    family: int
    dst: str
    src: str | None = None
    iif: int | None = None
    oif: int | None = None
    mark: int = 0
    tos: int = 0
    protocol: int | None = None
    sport: int | None = None
    dport: int | None = None
    output: bool = False
    """A look-up for output: a multipath next hop may be chosen by the source address (Linux 6.16 and later)."""
    any_link: bool = False
    """FIB_LOOKUP_IGNORE_LINKSTATE."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A next hop that the look-up may give, with the probability that a flow hashes to it."""

    share: float
    nexthop: NextHop

    @property
    def device(self) -> int | None:
        return self.nexthop.device


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the tables say: a route with its next hops, or the error with which the look-up ends."""

    error: str | None = None
    """ENETUNREACH (no route), EHOSTUNREACH (unreachable), EACCES (prohibit), EINVAL (blackhole)."""
    route: Route | None = None
    rule: Rule | None = None
    prefix_length: int = 0
    choices: tuple[Choice, ...] = ()
    uncertain: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        return self.route.type if self.route is not None else "none"


def lookup(host: Host, query: Query) -> Lookup:
    """The first rule whose table (or action) decides."""
    uncertain: list[str] = []
    rules = host.rules(query.family)
    position = 0
    address = ip.number(query.dst)
    while position < len(rules):
        rule = rules[position]
        position += 1
        matched = _matches(host, rule, query, uncertain)
        if not matched:
            continue
        if rule.action == "goto":
            if rule.goto is not None:
                target = next((n for n, other in enumerate(rules) if other.priority == rule.goto and n >= position), None)
                position = target if target is not None else position
            continue
        if rule.action == "nop":
            continue
        if rule.action in _ACTION_ERRORS:
            return Lookup(error=_ACTION_ERRORS[rule.action], rule=rule, uncertain=tuple(uncertain))
        if rule.l3mdev:
            continue
        table = host.table(query.family, rule.table)
        if table is None:
            continue
        found = _search(host, table, query, address)
        if found is None or (found.error is None and found.route is not None and found.route.type == "throw"):
            continue
        if found.error is None and _suppressed(rule, found):
            continue
        return replace(found, rule=rule, uncertain=tuple(uncertain))
    return Lookup(error="ENETUNREACH", uncertain=tuple(uncertain))


def _matches(host: Host, rule: Rule, query: Query, uncertain: list[str]) -> bool:
    verdict = _selects(host, rule, query)
    if verdict is None:
        uncertain.append(f"policy rule {rule.priority} in {host.name} matches on what is not known here; taken as no match")
        return False
    return verdict != rule.invert


def _selects(host: Host, rule: Rule, query: Query) -> bool | None:
    """Whether the selectors match; None: can't be known."""
    if rule.in_device is not None and not _is_device(host, rule.in_device, query.iif, output=query.iif is None):
        return False
    if rule.out_device is not None and not _is_device(host, rule.out_device, query.oif, output=False):
        return False
    if rule.fwmark is not None or rule.fwmask:
        mask = rule.fwmask if rule.fwmask is not None else 0xFFFFFFFF
        if ((rule.fwmark or 0) ^ query.mark) & mask:
            return False
    if rule.tunnel_id:
        return False
    if rule.l3mdev and not _in_vrf(host, query):
        return False
    if rule.uid_range is not None and not rule.uid_range[0] <= 0 <= rule.uid_range[1]:
        return False
    if rule.source and not _all(rule.source) and (query.src is None or not ip.within(query.src, rule.source)):
        return False
    if rule.destination and not ip.within(query.dst, rule.destination):
        return False
    if rule.tos and rule.tos != query.tos:
        return False
    if rule.ip_protocol is not None and rule.ip_protocol != query.protocol:
        return False
    unknown = False
    for wanted, port in ((rule.source_ports, query.sport), (rule.destination_ports, query.dport)):
        if wanted is None:
            continue
        if port is None:
            if query.protocol in (6, 17):
                unknown = True
                continue
            port = 0
        if not wanted[0] <= port <= wanted[1]:
            return False
    return None if unknown else True


def _all(network: str) -> bool:
    return network.endswith("/0")


def _is_device(host: Host, name: str, ifindex: int | None, *, output: bool) -> bool:
    link = host.by_name.get(name)
    if link is None:
        return False
    if output:
        return link.kind == "loopback"
    return link.ifindex == ifindex


def _in_vrf(host: Host, query: Query) -> bool:
    for ifindex in (query.iif, query.oif):
        link = host.links.get(ifindex) if ifindex is not None else None
        if link is not None and (link.kind == "vrf" or (link.master is not None and _kind(host, link.master) == "vrf")):
            return True
    return False


def _kind(host: Host, ifindex: int) -> str:
    link = host.links.get(ifindex)
    return link.kind if link is not None else ""


def _suppressed(rule: Rule, found: Lookup) -> bool:
    if rule.suppress_prefixlength is not None and rule.suppress_prefixlength >= 0:
        return found.prefix_length <= rule.suppress_prefixlength
    return False


def _search(host: Host, table: Table, query: Query, address: int) -> Lookup | None:
    for length, routes in table.matches(address):
        for route in routes:
            if route.tos and route.tos != query.tos:
                continue
            if route.source and not route.source.endswith("/0") and (query.src is None or not ip.within(query.src, route.source)):
                continue
            if route.type == "throw":
                return Lookup(route=route, prefix_length=length)
            if route.type in _TYPE_ERRORS:
                return Lookup(error=_TYPE_ERRORS[route.type], route=route, prefix_length=length)
            nexthops, blackhole = expand(host, route)
            if blackhole:
                return Lookup(error="EINVAL", route=route, prefix_length=length)
            live = [(weight, hop) for weight, hop in nexthops if _usable(host, hop, query)]
            if not live and (nexthops or query.oif is not None) and not (query.family == 6 and route.type in ("local", "anycast")):
                continue
            if not live:
                live = [(1, NextHop(device=host.loopback.ifindex if host.loopback else None))]
            return Lookup(route=route, prefix_length=length, choices=_select(host, route, live, query))
    return None


def expand(host: Host, route: Route) -> tuple[list[tuple[int, NextHop]], bool]:
    """The next hops of a route with their weights, nexthop objects and groups resolved; True: it is a blackhole."""
    if route.nexthop_id is not None:
        item = host.nexthops.get(route.nexthop_id)
        if item is not None:
            if item.blackhole:
                return [], True
            members = [(item, 1)] if not item.group else [(host.nexthops[n], w) for n, w in item.group if n in host.nexthops]
            if members and all(member.blackhole for member, _ in members):
                return [], True
            return [(weight, _plain(member)) for member, weight in members if not member.blackhole], False
    return [(hop.weight or 1, hop) for hop in route.nexthops], False


def _plain(item: NextHopObject) -> NextHop:
    return NextHop(device=item.device, gateway=item.gateway, flags=item.flags)


def _usable(host: Host, hop: NextHop, query: Query) -> bool:
    if "dead" in hop.flags:
        return False
    link = host.links.get(hop.device) if hop.device is not None else None
    if link is not None:
        ignores = host.either(query.family, link.name, "ignore_routes_with_linkdown")
        down = "linkdown" in hop.flags or (link.up and not link.carrier)
        if down and ignores and not query.any_link:
            return False
    return not (query.oif is not None and query.iif is None and hop.device is not None and hop.device != query.oif)


def _select(host: Host, route: Route, live: list[tuple[int, NextHop]], query: Query) -> tuple[Choice, ...]:
    """The next hops that a flow may hash to (fib_select_multipath, nexthop_select_path) and how likely each is."""
    if len(live) == 1 or (query.oif is not None and query.iif is None):
        return (Choice(1.0, live[0][1]),)
    total = sum(weight for weight, _ in live)
    group = route.nexthop_id is not None and bool(host.nexthops.get(route.nexthop_id, NextHopObject(0)).group)
    prefer = query.output and query.family == 4 and query.src is not None and not group and prefers_source(host)
    picky = group or (query.family == 4 and bool(host.number("net.ipv4.fib_multipath_use_neigh")))
    good = [not picky or _reachable(host, hop) for _, hop in live]
    scores: dict[int, float] = {}
    for segment, (weight, _) in enumerate(live):
        winner = _winner(host, route, [hop for _, hop in live], good, segment, query.src if prefer else None)
        scores[winner] = scores.get(winner, 0.0) + weight / total
    chosen = [Choice(share, live[number][1]) for number, share in scores.items()]
    return tuple(sorted(chosen, key=lambda choice: -choice.share))


def _winner(host: Host, route: Route, hops: list[NextHop], good: list[bool], segment: int, source: str | None) -> int:
    """The next hop of a flow whose hash falls into the range of next hop number `segment`."""
    best, best_score = 0, -1
    for number, hop in enumerate(hops):
        if not good[number]:
            continue
        score = 1 if number >= segment else 0
        if source is not None and nexthop_source(host, route, hop) == source:
            score += 2
        if score > best_score:
            best, best_score = number, score
            if score == 3 or (source is None and score == 1):
                return number
    return best


def prefers_source(host: Host) -> bool:
    """Linux 6.16 and later: multipath prefers the next hop whose source address the sender has chosen."""
    return kernel_version(host.index.snapshot.kernel) >= (6, 16)


def kernel_version(text: str) -> tuple[int, int]:
    """(major, minor) of a release string; (99, 0), a recent one, when there is none."""
    parts = text.split(".")
    if len(parts) >= 2 and parts[0].isdigit():
        digits = "".join(character for character in parts[1] if character.isdigit())
        return int(parts[0]), int(digits or 0)
    return 99, 0


def _reachable(host: Host, hop: NextHop) -> bool:
    if hop.device is None or hop.gateway is None:
        return True
    known = host.neighbours.get((hop.device, canonical(hop.gateway)))
    return known is None or known.state in _VALID_STATES


# Source addresses


def nexthop_source(host: Host, route: Route, hop: NextHop) -> str | None:
    """The address that an IPv4 next hop gives to packets without one (fib_result_prefsrc)."""
    if hop.device is None:
        return None
    gateway = hop.gateway if hop.gateway is not None and ":" not in hop.gateway else None
    return select_address(host, hop.device, gateway, scope_number(route.scope))


def select_address(host: Host, device: int, towards: str | None, scope: int) -> str | None:
    """inet_select_addr: a primary address of the device, in the subnet of `towards` if there is one; else of any device."""
    link = host.links.get(device)
    localnet = 253 if link is not None and host.either(4, link.name, "route_localnet") else 254
    fallback: str | None = None
    for address in host.on_device.get((device, 4), ()):
        if "secondary" in address.flags or min(scope_number(address.scope), localnet) > scope:
            continue
        if towards is None or ip.same_subnet(towards, address.peer or address.address, address.prefixlen):
            return address.address
        fallback = fallback or address.address
    if fallback is not None:
        return fallback
    for ifindex in sorted(host.links):
        for address in host.on_device.get((ifindex, 4), ()):
            number = scope_number(address.scope)
            if "secondary" not in address.flags and number != 253 and number <= scope:
                return address.address
    return None


def source_for(host: Host, found: Lookup, choice: Choice, destination: str) -> str | None:
    """The source address of a packet that this namespace sends along `choice` and that has none yet."""
    route = found.route
    if route is not None and route.preferred_source is not None:
        return route.preferred_source
    if ":" in destination:
        if route is not None and route.type in ("local", "anycast"):
            return destination
        device = choice.device
        if route is not None and route.nexthop_id is not None:
            # fib6_info_nh_dev: of a group it is the first member's device, whichever the packet takes.
            members, _ = expand(host, route)
            device = members[0][1].device if members else device
        return select_source6(host, device, destination)
    if route is not None and route.type == "local":
        return destination
    if route is None:
        return select_address(host, choice.device, None, 253) if choice.device is not None else None
    return nexthop_source(host, route, choice.nexthop)


# The kernel's default policy table (net/ipv6/addrlabel.c, RFC 6724, 2.1).
_LABELS = (
    ("::1/128", 0),
    ("::ffff:0:0/96", 4),
    ("::/96", 3),
    ("2001::/32", 6),
    ("2001:10::/28", 7),
    ("2002::/16", 2),
    ("fc00::/7", 5),
    ("::/0", 1),
)


def _label(address: str) -> int:
    return next(label for network, label in _LABELS if ip.within(address, network))


def _scope6(address: str) -> int:
    """RFC 4007 scope as the kernel counts it for source selection: 2 link, 5 site, 14 global."""
    value = ip.number(address)
    if value >> 120 == 0xFF:
        return value >> 112 & 0xF
    if value == 1 or value >> 118 == 0x3FA:
        return 2
    if value >> 118 == 0x3FB:
        return 5
    return 14


def select_source6(host: Host, device: int | None, destination: str) -> str | None:
    """RFC 6724, section 5, as net/ipv6/addrconf.c has it (rules 1, 2, 3, 5, 6, 8)."""
    candidates = [address for (_, family), held in sorted(host.on_device.items()) if family == 6 for address in held]
    wanted = _scope6(destination)
    if ip.is_multicast(destination) or wanted == 2:
        candidates = [address for address in candidates if address.device == device]
    candidates = [a for a in candidates if "tentative" not in a.flags and "dadfailed" not in a.flags]
    best: Address | None = None
    best_rank: tuple[int, ...] = ()
    for address in candidates:
        if _scope6(address.address) == 2 and ip.is_loopback(address.address) and not ip.is_loopback(destination):
            continue
        scope = _scope6(address.address)
        rank = (
            int(canonical(address.address) == canonical(destination)),
            -scope if scope >= wanted else scope - 128,
            int("deprecated" not in address.flags),
            int(address.device == device),
            int(_label(address.address) == _label(destination)),
            min(ip.common_bits(address.address, destination), address.prefixlen),
        )
        if best is None or rank > best_rank:
            best, best_rank = address, rank
    return best.address if best is not None else None


def describe_rule(rule: Rule | None) -> str:
    """A policy rule in ip's words."""
    if rule is None:
        return "no rule"
    words = [f"{rule.priority}:", "not" if rule.invert else "", f"from {rule.source or 'all'}"]
    if rule.destination:
        words.append(f"to {rule.destination}")
    if rule.in_device:
        words.append(f"iif {rule.in_device}")
    if rule.fwmark is not None:
        words.append(f"fwmark {rule.fwmark:#x}")
    words.append(f"lookup {rule.table}" if rule.action == "table" else rule.action)
    return " ".join(word for word in words if word)
