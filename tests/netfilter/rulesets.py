"""Random rulesets, written for iptables-restore or for nft, over the addresses and devices of the test router."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from random import Random

CLIENT = "10.1.0.2"
SERVERS = {"s1": ("10.2.0.2", "10.2.0.3"), "s2": ("10.3.0.2", "10.3.0.3")}
VIP = "10.96.0.10"
PORTS = (53, 80, 443, 7777, 7778)
ADDRESSES = (CLIENT, *SERVERS["s1"], *SERVERS["s2"], VIP, "10.1.0.1")
NETWORKS = ("10.2.0.0/16", "10.3.0.0/24", "10.0.0.0/8", "10.96.0.0/12", "10.1.0.0/30")
STATES = ("new", "established", "invalid", "related")
SETS = {
    "nets": ("hash:net", "ipv4_addr; flags interval", ("10.2.0.0/24", "10.96.0.0/16")),
    "hosts": ("hash:ip", "ipv4_addr", ("10.3.0.2", "10.1.0.2", "10.2.0.3")),
    "pairs": (
        "hash:ip,port",
        "ipv4_addr . inet_proto . inet_service",
        ("10.2.0.2,udp:53", "10.96.0.10,tcp:80", "10.96.0.10,udp:53"),
    ),
}
HOOKS_OF = {
    "mangle": ("PREROUTING", "FORWARD", "POSTROUTING", "INPUT", "OUTPUT"),
    "filter": ("FORWARD", "INPUT", "OUTPUT"),
    "nat": ("PREROUTING", "POSTROUTING", "INPUT", "OUTPUT"),
    "raw": ("PREROUTING", "OUTPUT"),
}


@dataclass(frozen=True)
class Condition:
    """One match in both languages."""

    xtables: str
    nft: str


def _sign(random: Random) -> tuple[str, str]:
    return random.choice((("", ""), ("", ""), ("! ", "!= ")))


def condition(random: Random, hook: str, protocol: str) -> Condition:
    bang, unequal = _sign(random)
    kind = random.choice(
        (
            "src",
            "dst",
            "dst",
            "port",
            "ports",
            "sport",
            "in",
            "mark",
            "state",
            "origdst",
            "set",
            "pairs",
            "type",
            "range",
            "dnat",
            "length",
            "status",
        )
        + (("out",) if hook not in ("PREROUTING", "INPUT") else ())
        + (("syn",) if protocol == "tcp" else ())
    )
    address = random.choice(ADDRESSES + NETWORKS)
    port = random.choice(PORTS)
    if kind == "src":
        return Condition(f"{bang}-s {address}", f"ip saddr {unequal}{address}")
    if kind == "dst":
        return Condition(f"{bang}-d {address}", f"ip daddr {unequal}{address}")
    if kind == "port":
        return Condition(f"-m {protocol} {bang}--dport {port}", f"{protocol} dport {unequal}{port}")
    if kind == "ports":
        return Condition(
            f"-m multiport {bang}--dports {port},70:90",
            f"{protocol} dport {unequal}{{ {port}, 8070-8090 }}"
            if port == 80
            else f"{protocol} dport {unequal}{{ {port}, 70-90 }}",
        )
    if kind == "sport":
        low = random.randrange(15000, 50000, 500)
        return Condition(
            f"-m {protocol} {bang}--sport {low}:{low + 9000}", f"{protocol} sport {unequal}{low}-{min(low + 9000, 65535)}"
        )
    if kind == "in":
        device = random.choice(("cl", "cl", "s1", "c+"))
        if hook in ("POSTROUTING", "OUTPUT"):
            return Condition("-m mark --mark 0x0/0x80", "meta mark & 0x80 == 0")
        return Condition(f"{bang}-i {device}", f'iifname {unequal}"{device.replace("+", "*")}"')
    if kind == "out":
        device = random.choice(("s1", "s2", "s+"))
        return Condition(f"{bang}-o {device}", f'oifname {unequal}"{device.replace("+", "*")}"')
    if kind == "mark":
        value = random.choice((1, 2, 4, 0x4000))
        return Condition(f"-m mark {bang}--mark {value:#x}/{value:#x}", f"meta mark & {value} {unequal or '== '}{value}")
    if kind == "state":
        names = random.sample(STATES, 2)
        return Condition(
            f"-m conntrack {bang}--ctstate {','.join(names).upper()}", f"ct state {'!= ' if bang else ''}{{ {', '.join(names)} }}"
        )
    if kind == "origdst":
        one = random.choice(ADDRESSES)
        return Condition(f"-m conntrack {bang}--ctorigdst {one}", f"ct original ip daddr {unequal}{one}")
    if kind == "set":
        name, side = random.choice(("nets", "hosts")), random.choice(("src", "dst"))
        return Condition(f"-m set {bang}--match-set {name} {side}", f"ip {side[0]}addr {unequal}@{name}")
    if kind == "pairs":
        return Condition(f"-m set {bang}--match-set pairs dst,dst", f"ip daddr . meta l4proto . th dport {unequal}@pairs")
    if kind == "type":
        return Condition(f"-m addrtype {bang}--dst-type LOCAL", f"fib daddr type {unequal}local")
    if kind == "range":
        return Condition(f"-m iprange {bang}--dst-range 10.2.0.3-10.3.0.2", f"ip daddr {unequal}10.2.0.3-10.3.0.2")
    if kind == "dnat":
        return Condition(f"-m conntrack {bang}--ctstate DNAT", f"ct status & dnat {'==' if bang else '!='} 0")
    if kind == "status":
        flag = random.choice(("seen-reply", "confirmed", "assured"))
        return Condition(
            f"-m conntrack {bang}--ctstatus {flag.replace('-', '_').upper()}",
            f"ct status & {flag} {'==' if bang else '!='} 0",
        )
    if kind == "length":
        return Condition(f"-m length {bang}--length 20:45", f"meta length {unequal}20-45")
    return Condition("-m tcp --tcp-flags FIN,SYN,RST,ACK SYN", "tcp flags & (fin|syn|rst|ack) == syn")


def action(random: Random, table: str, hook: str, protocol: str, chains: list[str]) -> Condition:
    choices = ["accept", "return", "mark", "mark"]
    if chains:
        choices += ["jump", "jump", "goto"]
    if table == "filter":
        choices += ["drop", "reject", "reject", "log"]
    if table == "mangle":
        choices += ["or", "and", "xor", "connmark", "drop"]
    if table == "raw":
        choices = ["accept", "mark", "notrack", "drop"]
    if table == "nat":
        choices += ["nat"] * 9
    kind = random.choice(choices)
    value = random.choice((1, 2, 4, 0x4000))
    if kind in ("jump", "goto"):
        chain = random.choice(chains)
        return Condition(f"-{kind[0]} {chain}", f"{kind} {chain}")
    if (kind == "mark" and table != "mangle") or kind == "log":
        return Condition("", "counter")
    if kind in ("mark", "or", "and", "xor"):
        new = {"mark": f"{value}", "or": f"meta mark | {value}", "and": f"meta mark & {value}", "xor": f"meta mark ^ {value}"}[kind]
        option = {
            "mark": f"--set-mark {value}",
            "or": f"--or-mark {value}",
            "and": f"--and-mark {value}",
            "xor": f"--xor-mark {value}",
        }
        return Condition(f"-j MARK {option[kind]}", f"meta mark set {new}")
    if kind == "connmark":
        return random.choice(
            (
                Condition("-j CONNMARK --save-mark", "ct mark set meta mark"),
                Condition("-j CONNMARK --restore-mark", "meta mark set ct mark"),
                Condition(f"-j CONNMARK --set-mark {value}", f"ct mark set {value}"),
            )
        )
    if kind == "notrack":
        return Condition("-j CT --notrack", "notrack")
    if kind == "reject":
        answers = [("icmp-port-unreachable", "icmp type port-unreachable"), ("icmp-host-unreachable", "icmp type host-unreachable")]
        answers.append(("icmp-admin-prohibited", "icmp type admin-prohibited"))
        if protocol == "tcp":
            answers.append(("tcp-reset", "tcp reset"))
        first, second = random.choice(answers)
        return Condition(f"-j REJECT --reject-with {first}", f"reject with {second}")
    if kind == "nat":
        server = random.choice(SERVERS[random.choice(("s1", "s2"))])
        port = random.choice(("", "", f":{random.choice(PORTS)}"))
        if hook in ("PREROUTING", "OUTPUT"):
            if protocol == "udp" and random.random() < 0.2:
                to = random.choice(PORTS)
                return Condition(f"-j REDIRECT --to-ports {to}", f"redirect to :{to}")
            if random.random() < 0.15:
                return Condition("-j DNAT --to-destination 10.2.0.2-10.2.0.3", "dnat to 10.2.0.2-10.2.0.3")
            return Condition(f"-j DNAT --to-destination {server}{port}", f"dnat to {server}{port}")
        if hook == "INPUT":
            return Condition("-j SNAT --to-source 10.1.0.9", "snat to 10.1.0.9")
        return random.choice(
            (
                Condition("-j MASQUERADE", "masquerade"),
                Condition("-j MASQUERADE --random-fully", "masquerade fully-random"),
                Condition("-j SNAT --to-source 10.2.0.77", "snat to 10.2.0.77"),
                Condition("-j SNAT --to-source 10.3.0.77:4000", "snat to 10.3.0.77:4000"),
            )
        )
    return Condition(f"-j {kind.upper()}", kind)


@dataclass(frozen=True)
class Ruleset:
    """The same idea of a ruleset; `xtables` for iptables-restore, `nft` for nft -f."""

    xtables: str
    nft: str
    ipset: str


def _rule(random: Random, table: str, hook: str, chains: list[str]) -> Condition:
    protocol = random.choice(("udp", "udp", "tcp"))
    parts = [condition(random, hook, protocol) for _ in range(random.choice((0, 1, 1, 2)))]
    doing = action(random, table, hook, protocol, chains)
    # nft takes one test of a kind more than once; iptables does not, so a second of the same option is left out.
    kept: list[Condition] = []
    for part in parts:
        if not any(part.xtables.split()[-2:-1] == other.xtables.split()[-2:-1] for other in kept):
            kept.append(part)
    chance = random.random() < 0.12
    xt = [f"-p {protocol}", *(part.xtables for part in kept)]
    nft = [f"meta l4proto {protocol}", *(part.nft for part in kept)]
    if chance:
        xt.append("-m statistic --mode random --probability 0.5")
        nft.append("numgen random mod 2 == 1")
    return Condition(" ".join([*xt, doing.xtables]).strip(), " ".join([*nft, doing.nft]).strip())


def six(text: str) -> str:
    """The same for IPv6: every octet of an address becomes 16 bits of one, prefixes grow with it, and words change their family."""

    def address(found: re.Match[str]) -> str:
        octets, prefix, port = found[1].split("."), found[2], found[3]
        mapped = str(ipaddress.IPv6Address(f"fd00:0:0:0:{':'.join(f'{int(octet):x}' for octet in octets)}"))
        if prefix:
            whole, rest = divmod(int(prefix[1:]), 8)
            mapped += f"/{64 + 16 * whole + (8 + rest if rest else 0)}"
        return f"[{mapped}]{port}" if port else mapped

    text = re.sub(r"\b(10\.\d+\.\d+\.\d+)(/\d+)?(:\d+)?", address, text)
    for four, other in (
        (r"\bip ([sd]addr)", r"ip6 \1"),
        (r"\btable ip\b", "table ip6"),
        (r"\bipv4_addr\b", "ipv6_addr"),
        (r"\bicmp-port-unreachable", "icmp6-port-unreachable"),
        (r"\bicmp-host-unreachable", "icmp6-addr-unreachable"),
        (r"\bicmp-admin-prohibited", "icmp6-adm-prohibited"),
        (r"\bicmp type host-unreachable", "icmpv6 type addr-unreachable"),
        (r"\bicmp type", "icmpv6 type"),
        (r"\b20([:-])45\b", r"40\g<1>65"),
        (r"(create \S+ \S+)", r"\1 family inet6"),
    ):
        text = re.sub(four, other, text)
    return text


def ruleset(random: Random) -> Ruleset:
    xtables: list[str] = []
    nft: list[str] = ["table ip t {"]
    for name, (_, kind, members) in SETS.items():
        elements = ", ".join(member.replace(",", " . ").replace(":", " . ") for member in members)
        nft.append(f"set {name} {{ type {kind}; elements = {{ {elements} }}; }}")
    priorities = {"raw": -300, "mangle": -150, "filter": 0}
    for table, hooks in HOOKS_OF.items():
        if table == "raw" and random.random() < 0.8:
            continue
        own = [f"{table}-{letter}" for letter in "abc"] if table != "raw" else []
        used = [hook for hook in hooks if random.random() < 0.75]
        xtables.append(f"*{table}")
        xtables += [f":{chain} - [0:0]" for chain in own]
        rules: list[str] = []
        # A chain of one's own is reached from one hook only, so that what it may do there is known; c, then b, then a.
        owner = {chain: random.choice(hooks) for chain in own}
        for hook in hooks:
            mine = [chain for chain in own if owner[chain] == hook]
            for number in reversed(range(len(mine))):
                made = [_rule(random, table, hook, mine[number + 1 :]) for _ in range(random.randint(1, 3))]
                rules += [f"-A {mine[number]} {rule.xtables}" for rule in made]
                nft += [f"chain {mine[number]} {{", *(rule.nft for rule in made), "}"]
            if hook not in used:
                continue
            policy = "drop" if table == "filter" and random.random() < 0.15 else "accept"
            made = [_rule(random, table, hook, mine) for _ in range(random.randint(1, 5))]
            xtables.append(f":{hook} {policy.upper()} [0:0]")
            rules += [f"-A {hook} {rule.xtables}" for rule in made]
            if table == "nat":
                header = f"type nat hook {hook.lower()} priority {-100 if hook in ('PREROUTING', 'OUTPUT') else 100}"
            else:
                # Only chains of type route look the way up again when they change a mark (nft_chain_route.c), as mangle does.
                kind = "route" if (table, hook) == ("mangle", "OUTPUT") else "filter"
                header = f"type {kind} hook {hook.lower()} priority {priorities[table]}"
            nft += [f"chain {table}-{hook} {{ {header}; policy {policy};", *(rule.nft for rule in made), "}"]
        xtables += [*rules, "COMMIT"]
    nft.append("}")
    sets = [
        line
        for name, (kind, _, members) in SETS.items()
        for line in (f"create {name} {kind}", *(f"add {name} {one}" for one in members))
    ]
    return Ruleset("\n".join(xtables) + "\n", "\n".join(nft) + "\n", "\n".join(sets) + "\n")
