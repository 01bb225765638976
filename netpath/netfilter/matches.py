"""The matches of iptables: words into tests of a packet.

A test answers True, False, a probability between the two (``statistic``), or `Unknown` with what would have to be known.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from netpath.netfilter import fib, nat
from netpath.netfilter.sets import Sets
from netpath.netfilter.types import HookContext, PacketState
from netpath.netfilter.words import packet_type as words_of_packet


@dataclass(frozen=True, slots=True)
class Unknown:
    """The snapshot does not say whether it matches."""

    why: str


Answer = bool | float | Unknown


@dataclass(frozen=True, slots=True)
class Scene:
    """A packet at a hook, with the sets that rules may look into."""

    packet: PacketState
    context: HookContext
    sets: Sets


Match = Callable[[Scene], Answer]


class Misunderstood(Exception):
    """Words that netpath has no meaning for. `understood` are the matches of the same rule that it has."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.understood: tuple[Match, ...] = ()


def negated(match: Match) -> Match:
    def test(scene: Scene) -> Answer:
        answer = match(scene)
        if isinstance(answer, Unknown):
            return answer
        return not answer if isinstance(answer, bool) else 1 - answer

    return test


def in_network(address: str, network: str) -> bool:
    """Whether an address lies in ``NETWORK/LENGTH`` or ``NETWORK/MASK`` (any mask, also one with holes)."""
    base, _, mask = network.partition("/")
    mine, theirs = ipaddress.ip_address(address), ipaddress.ip_address(base)
    if mine.version != theirs.version:
        return False
    width = mine.max_prefixlen
    if not mask:
        bits = (1 << width) - 1
    elif mask.isdigit():
        bits = ((1 << int(mask)) - 1) << (width - int(mask))
    else:
        bits = int(ipaddress.ip_address(mask))
    return int(mine) & bits == int(theirs) & bits


def _check_network(network: str) -> None:
    """ValueError for text that is no network: said when a rule is understood, so that asking it can't fail later."""
    in_network(network.partition("/")[0], network)


def _address(field: str) -> Callable[[str], Match]:
    def make(text: str) -> Match:
        networks = text.split(",")
        for network in networks:
            _check_network(network)
        return lambda scene: any(in_network(getattr(scene.packet, field), network) for network in networks)

    return make


def _device(field: str) -> Callable[[str], Match]:
    def make(text: str) -> Match:
        def test(scene: Scene) -> Answer:
            name = getattr(scene.context, field)
            if name is None:
                return False
            return bool(name.startswith(text[:-1])) if text.endswith("+") else name == text

        return test

    return make


_PROTOCOLS = {"1": "icmp", "6": "tcp", "17": "udp", "58": "icmpv6", "ipv6-icmp": "icmpv6", "ipencap": "4", "ipip": "4", "gre": "47"}


def _protocol(text: str) -> Match:
    wanted = _PROTOCOLS.get(text.lower(), text.lower())
    return lambda scene: wanted in ("all", "0") or _PROTOCOLS.get(scene.packet.protocol, scene.packet.protocol) == wanted


def _port_number(text: str) -> int:
    import socket

    return int(text) if text.isdigit() else socket.getservbyname(text)


def _ports(text: str) -> tuple[tuple[int, int], ...]:
    ranges = []
    for part in text.split(","):
        low, colon, high = part.partition(":")
        first = _port_number(low) if low else 0
        ranges.append((first, (_port_number(high) if high else 65535) if colon else first))
    return tuple(ranges)


def _port(*fields: str) -> Callable[[str], Match]:
    def make(text: str) -> Match:
        ranges = _ports(text)

        def test(scene: Scene) -> Answer:
            if scene.packet.protocol not in ("tcp", "udp", "sctp", "udplite", "dccp"):
                return False
            unknown = False
            for field in fields:
                port = getattr(scene.packet, field)
                unknown |= port is None
                if port is not None and any(low <= port <= high for low, high in ranges):
                    return True
            return Unknown(f"the {'source' if fields[0] == 'sport' else 'destination'} port is not known") if unknown else False

        return test

    return make


def _mark(field: str) -> Callable[[str], Match]:
    def make(text: str) -> Match:
        value, _, mask = text.partition("/")
        wanted, bits = int(value, 0), int(mask, 0) if mask else 0xFFFFFFFF

        def test(scene: Scene) -> Answer:
            if field == "mark":
                return scene.packet.mark & bits == wanted
            connection = scene.packet.connection
            return connection is not None and connection.mark & bits == wanted

        return test

    return make


def _state(text: str) -> Match:
    wanted = {word.strip().lower() for word in text.split(",")}
    unknown = wanted - {"new", "established", "related", "invalid", "untracked", "snat", "dnat"}
    if unknown:
        raise Misunderstood(f"connection state {', '.join(sorted(unknown))}")

    def test(scene: Scene) -> Answer:
        connection = scene.packet.connection
        if connection is None:
            return "invalid" in wanted
        if connection.state in wanted:
            return True
        if "dnat" in wanted and connection.original.destination != connection.reply.source:
            return True
        return "snat" in wanted and connection.original.source != connection.reply.destination

    return test


def _original(field: str) -> Callable[[str], Match]:
    def make(text: str) -> Match:
        ranges = _ports(text) if field.endswith("port") else ()
        if not ranges:
            _check_network(text)

        def test(scene: Scene) -> Answer:
            connection = scene.packet.connection
            if connection is None:
                return False
            side = connection.original if not field.startswith("reply.") else connection.reply
            value = getattr(side, field.rpartition(".")[2])
            if field.endswith("port"):
                return Unknown("the connection's port is not known") if value is None else any(a <= value <= b for a, b in ranges)
            return in_network(value, text)

        return test

    return make


_STATUS_BITS = {
    "none": 0,  # stands for no bit, and so matches nothing (libxt_conntrack.c)
    "expected": nat.EXPECTED,
    "seen_reply": nat.SEEN_REPLY,
    "assured": nat.ASSURED,
    "confirmed": nat.CONFIRMED,
}


def _status(text: str) -> Match:
    wanted = {word.strip().lower() for word in text.split(",")}
    unknown = wanted - _STATUS_BITS.keys()
    if unknown:
        raise Misunderstood(f"connection status {', '.join(sorted(unknown))}")
    mask = 0
    for word in wanted:
        mask |= _STATUS_BITS[word]

    def test(scene: Scene) -> Answer:
        connection = nat.tracked(scene.packet)
        if connection is None:
            return False
        bits, unsure = nat.status(connection)
        if bits & mask:
            return True
        return Unknown("a flag of the connection's status is not known") if unsure & mask else False

    return test


def _direction(text: str) -> Match:
    wanted = text.lower()
    return lambda scene: scene.packet.connection is not None and scene.packet.connection.direction == wanted


def _address_types(words: list[str]) -> list[Match]:
    """addrtype: the device that --limit-iface-* names belongs to all its tests."""
    side = "in_device" if "--limit-iface-in" in words else "out_device" if "--limit-iface-out" in words else None
    found: list[Match] = []
    rest = [word for word in words if not word.startswith("--limit-iface-")]
    while rest:
        word = rest.pop(0)
        negate = word == "!"
        if negate:
            word = rest.pop(0)
        if word not in ("--src-type", "--dst-type"):
            raise Misunderstood(f"match addrtype {word}")
        match = _address_type("src" if word == "--src-type" else "dst", frozenset(rest.pop(0).lower().split(",")), side)
        found.append(negated(match) if negate else match)
    return found


def _address_type(field: str, wanted: frozenset[str], side: str | None) -> Match:
    def test(scene: Scene) -> Answer:
        device = getattr(scene.context, side) if side else None
        return scene.context.address_type(getattr(scene.packet, field), device) in wanted

    return test


_TCP_BITS = {"FIN": "F", "SYN": "S", "RST": "R", "PSH": "P", "ACK": "A", "URG": "U"}


def _tcp_flags(mask: str, wanted: str) -> Match:
    examined = set(_TCP_BITS.values()) if mask == "ALL" else {_TCP_BITS[word] for word in mask.split(",") if word != "NONE"}
    expected = set(_TCP_BITS.values()) if wanted == "ALL" else {_TCP_BITS[word] for word in wanted.split(",") if word != "NONE"}
    return lambda scene: scene.packet.protocol == "tcp" and set(scene.packet.tcp_flags) & examined == expected


_ICMP_NAMES = {
    "icmp": {
        "echo-reply": 0,
        "pong": 0,
        "destination-unreachable": 3,
        "redirect": 5,
        "echo-request": 8,
        "ping": 8,
        "time-exceeded": 11,
    },
    "icmpv6": {
        "destination-unreachable": 1,
        "packet-too-big": 2,
        "time-exceeded": 3,
        "echo-request": 128,
        "echo-reply": 129,
        "router-solicitation": 133,
        "router-advertisement": 134,
        "neighbour-solicitation": 135,
        "neighbor-solicitation": 135,
        "neighbour-advertisement": 136,
        "neighbor-advertisement": 136,
    },
}


def _icmp(protocol: str) -> Callable[[str], Match]:
    def make(text: str) -> Match:
        if text in ("any", "255"):
            return lambda scene: scene.packet.protocol == protocol
        kind, _, code = text.partition("/")
        number = int(kind) if kind.isdigit() else _ICMP_NAMES[protocol].get(kind)
        if number is None:
            raise Misunderstood(f"ICMP type {text}")
        wanted = int(code) if code else None

        def test(scene: Scene) -> Answer:
            packet = scene.packet
            return packet.protocol == protocol and packet.icmp_type == number and wanted in (None, packet.icmp_code)

        return test

    return make


def _set(name: str, dimensions: str) -> Match:
    def test(scene: Scene) -> Answer:
        answer = scene.sets.holds(name, dimensions.split(","), scene.packet, scene.context)
        return answer if isinstance(answer, bool) else Unknown(answer)

    return test


def _number_range(read: Callable[[Scene], int]) -> Callable[[str], Match]:
    def make(text: str) -> Match:
        low, colon, high = text.partition(":")
        first, last = int(low or 0), (int(high) if high else 0xFFFFFFFF) if colon else int(low)
        return lambda scene: first <= read(scene) <= last

    return make


def _tos(text: str) -> Match:
    value, _, mask = text.partition("/")
    wanted, bits = int(value, 0), int(mask, 0) if mask else 0xFF
    return lambda scene: scene.packet.tos & bits == wanted


def _packet_type(text: str) -> Match:
    wanted = text.lower()
    if wanted not in ("unicast", "broadcast", "multicast"):
        raise Misunderstood(f"packet type {text}")
    return lambda scene: words_of_packet(scene.context, scene.packet) == wanted


def _rate_over(text: str) -> Match:
    """A rate that one probe does not exceed."""
    return lambda scene: False


def _address_range(field: str) -> Callable[[str], Match]:
    def make(text: str) -> Match:
        low, _, high = text.partition("-")
        first, last = ipaddress.ip_address(low), ipaddress.ip_address(high or low)
        return lambda scene: int(first) <= int(ipaddress.ip_address(getattr(scene.packet, field))) <= int(last)

    return make


Builder = Callable[[str], Match]
ONE_WORD: Mapping[str, Builder] = {
    "-s": _address("src"),
    "--source": _address("src"),
    "-d": _address("dst"),
    "--destination": _address("dst"),
    "-i": _device("in_device"),
    "--in-interface": _device("in_device"),
    "-o": _device("out_device"),
    "--out-interface": _device("out_device"),
    "-p": _protocol,
    "--protocol": _protocol,
    "--sport": _port("sport"),
    "--source-port": _port("sport"),
    "--dport": _port("dport"),
    "--destination-port": _port("dport"),
    "--sports": _port("sport"),
    "--source-ports": _port("sport"),
    "--dports": _port("dport"),
    "--destination-ports": _port("dport"),
    "--ports": _port("sport", "dport"),
    "--ctstate": _state,
    "--state": _state,
    "--ctorigsrc": _original("source"),
    "--ctorigdst": _original("destination"),
    "--ctorigsrcport": _original("sport"),
    "--ctorigdstport": _original("dport"),
    "--ctreplsrc": _original("reply.source"),
    "--ctrepldst": _original("reply.destination"),
    "--ctreplsrcport": _original("reply.sport"),
    "--ctrepldstport": _original("reply.dport"),
    "--ctstatus": _status,
    "--ctdir": _direction,
    "--pkt-type": _packet_type,
    "--dscp": _number_range(lambda scene: scene.packet.tos >> 2),
    "--tos": _tos,
    "--ctproto": _protocol,
    "--mark": _mark("mark"),
    "--icmp-type": _icmp("icmp"),
    "--icmpv6-type": _icmp("icmpv6"),
    "--src-range": _address_range("src"),
    "--dst-range": _address_range("dst"),
    "--length": _number_range(lambda scene: scene.packet.length),
    "--physdev-in": _device("physical_in"),
    "--physdev-out": _device("physical_out"),
    "--hashlimit-above": _rate_over,
    "--connlimit-above": _rate_over,
}
TWO_WORDS: Mapping[str, Callable[[str, str], Match]] = {"--match-set": _set, "--tcp-flags": _tcp_flags}
NO_WORD: Mapping[str, Match] = {
    "--syn": _tcp_flags("FIN,SYN,RST,ACK", "SYN"),
    "--physdev-is-in": lambda scene: scene.context.physical_in is not None,
    "--physdev-is-out": lambda scene: scene.context.physical_out is not None,
    "--physdev-is-bridged": lambda scene: scene.context.bridged,
    "--connlimit-saddr": lambda scene: True,
    "--connlimit-daddr": lambda scene: True,
}
IGNORED_VALUES = frozenset(
    {"--comment", "--limit", "--limit-burst", "--hashlimit-name", "--hashlimit-upto", "--hashlimit-burst", "--hashlimit-mode"}
    | {"--hashlimit-srcmask", "--hashlimit-dstmask", "--hashlimit-htable-size", "--hashlimit-htable-max", "--connlimit-mask"}
    | {"--hashlimit-htable-expire", "--hashlimit-htable-gcinterval", "--connlimit-upto", "--hashlimit-rate-interval"}
)
"""Options whose value does not decide: comments, and rates that one probe does not exceed."""
MODULES = frozenset(
    {
        "tcp",
        "udp",
        "icmp",
        "icmp6",
        "icmpv6",
        "multiport",
        "conntrack",
        "state",
        "mark",
        "connmark",
        "addrtype",
        "comment",
        "set",
        "statistic",
        "recent",
        "physdev",
        "limit",
        "hashlimit",
        "connlimit",
        "pkttype",
        "dscp",
        "tos",
        "iprange",
        "length",
        "ttl",
        "hl",
        "sctp",
        "udplite",
        "rpfilter",
    }
)
"""Match modules that are understood, for the documentation and its test."""


def build(words: Sequence[str], family: int) -> tuple[Match, ...]:
    """The tests of a rule's words. Raises Misunderstood for the first that has no meaning here, with all the tests it could build."""
    found: list[Match] = []
    trouble: Misunderstood | None = None
    for module, part in _parts(words):
        try:
            _build(module, list(part), found)
        except Misunderstood as error:
            trouble = trouble or error
        except (ValueError, KeyError, IndexError, OSError) as error:
            trouble = trouble or Misunderstood(f"a value of {' '.join(part)[:80]!r} ({error})")
    if trouble is not None:
        trouble.understood = tuple(found)
        raise trouble
    return tuple(found)


def _parts(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """A rule's words by match module; what comes before the first ``-m`` has none."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    at = 0
    while at < len(words):
        if words[at] in ("-m", "--match") and at + 1 < len(words):
            parts.append((words[at + 1], []))
            at += 2
        else:
            parts[-1][1].append(words[at])
            at += 1
    return parts


def _build(module: str, words: list[str], found: list[Match]) -> None:
    if module in _WHOLE:
        found += _WHOLE[module](words)
        return
    if module and module not in MODULES:
        raise Misunderstood(f"match {' '.join([module, *words])[:120]}")
    asks_state = "--ctstate" in words
    while words:
        word = words.pop(0)
        negate = word == "!"
        if negate:
            word = words.pop(0)
        match = _one(word, words, module)
        if match is None:
            continue
        match = negated(match) if negate else match
        found.append(_of_connection(match, asks_state) if module in _OF_CONNECTION and word != "--ctstate" else match)


def _reverse_path(words: list[str]) -> list[Match]:
    odd = set(words) - {"--loose", "--validmark", "--accept-local", "--invert"}
    if odd:
        raise Misunderstood(f"match rpfilter {' '.join(sorted(odd))[:120]}")
    loose, use_mark, accept_local, invert = (option in words for option in ("--loose", "--validmark", "--accept-local", "--invert"))

    def test(scene: Scene) -> Answer:
        passes = fib.passes_reverse_path(scene.packet, scene.context, loose=loose, use_mark=use_mark, accept_local=accept_local)
        return passes != invert

    return [test]


_OF_CONNECTION = ("conntrack", "connmark")


def _of_connection(match: Match, asks_state: bool) -> Match:
    """Where there is no connection only its state decides, negated or not (xt_conntrack.c, xt_connmark.c)."""
    return lambda scene: match(scene) if nat.tracked(scene.packet) is not None else asks_state


def _recents(words: list[str]) -> list[Match]:
    """The lists of `recent` are not part of a snapshot: a flow that is asked about is taken as not seen before."""
    operations = [word for word in words if word in ("--set", "--rcheck", "--update", "--remove")]
    if len(operations) != 1:
        raise Misunderstood(f"match recent {' '.join(words)[:120]}")
    at = words.index(operations[0])
    seen = operations[0] == "--set"
    wanted = seen != (at > 0 and words[at - 1] == "!")
    return [lambda scene: wanted]


_WHOLE: Mapping[str, Callable[[list[str]], list[Match]]] = {
    "recent": _recents,
    "addrtype": _address_types,
    "rpfilter": _reverse_path,
}
"""Modules whose options mean something together only."""


def _one(word: str, words: list[str], module: str) -> Match | None:
    if word in IGNORED_VALUES:
        words.pop(0)
        return None
    if module == "statistic" and word == "--mode":
        return _statistic(words)
    if module in ("ttl", "hl") and word.startswith(("--ttl-", "--hl-")):
        return _hops(word.rpartition("-")[2], int(words.pop(0)))
    if module == "connmark" and word == "--mark":
        return _mark("connmark")(words.pop(0))
    if word in NO_WORD:
        return NO_WORD[word]
    if word in TWO_WORDS:
        return TWO_WORDS[word](words.pop(0), words.pop(0))
    if word in ONE_WORD:
        return ONE_WORD[word](words.pop(0))
    if module == "set" and word in ("--return-nomatch",):
        return None
    if word == "-f":
        return lambda scene: False
    raise Misunderstood(f"match option {word}" + (f" of {module}" if module else ""))


def _statistic(words: list[str]) -> Match:
    mode = words.pop(0)
    values: dict[str, str] = {}
    while words and words[0] in ("--probability", "--every", "--packet"):
        name = words.pop(0)
        values[name] = words.pop(0)
    if mode == "random" and "--probability" in values:
        chance = float(values["--probability"])
    elif mode == "nth" and int(values.get("--every", "0")) > 0:
        chance = 1 / int(values["--every"])
    else:
        raise Misunderstood(f"match statistic mode {mode}")
    if not 0 <= chance <= 1:
        raise Misunderstood(f"match statistic probability {chance}")
    return lambda scene: chance


def _hops(comparison: str, value: int) -> Match:
    tests: Mapping[str, Match] = {
        "eq": lambda scene: scene.packet.ttl == value,
        "lt": lambda scene: scene.packet.ttl < value,
        "gt": lambda scene: scene.packet.ttl > value,
    }
    return tests[comparison]
