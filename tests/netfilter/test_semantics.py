"""What rules mean: kube-proxy's two modes, connections that exist already, and the corners of chains and bindings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netpath.model.snapshot import ConntrackEntry, FlowTuple, Namespace, Netfilter, Xtables
from netpath.netfilter import evaluator
from netpath.netfilter.types import HookContext, HookOutcome, PacketState

DATA = Path(__file__).parent / "data"
NODE = "192.168.50.11"


def context(hook: str, incoming: str | None = None, outgoing: str | None = None) -> HookContext:
    return HookContext(
        hook,
        incoming,
        outgoing,
        address_type=lambda address, device: "local" if address == NODE else "unicast",
        masquerade_source=lambda device, destination: NODE,
        redirect_target=lambda device: NODE if device else "127.0.0.1",
    )


def udp(dst: str, dport: int, src: str = "10.244.9.1", sport: int | None = 40000) -> PacketState:
    return PacketState(4, src, dst, "udp", sport, dport, length=60)


def save(text: str, *, backend: str = "legacy", family: int = 4, ipset: str | None = None) -> Namespace:
    return Namespace(1, "n", netfilter=Netfilter(xtables=(Xtables(family, backend, text),), ipset=ipset))


def one(namespace: Namespace, packet: PacketState, where: HookContext) -> HookOutcome:
    (outcome,) = evaluator(namespace).run(packet, where)
    return outcome


@pytest.fixture
def native() -> Namespace:
    return Namespace(1, "n", netfilter=Netfilter(nft=(DATA / "kube-proxy-nft.json").read_text()))


def test_native_service_has_a_path_for_each_endpoint(native: Namespace) -> None:
    outcomes = evaluator(native).run(udp("10.96.0.10", 53), context("prerouting", "eth0"))
    assert {(outcome.packet.dst, outcome.packet.dport, outcome.share) for outcome in outcomes} == {
        ("10.244.1.2", 53, 0.5),
        ("10.244.2.2", 53, 0.5),
    }
    for outcome in outcomes:
        (rewrite,) = outcome.rewrites
        assert rewrite.kind == "dnat" and rewrite.rule is not None and not outcome.uncertain
        assert rewrite.rule.service == "default/echo:dns"
        assert rewrite.rule.text == f"meta l4proto udp dnat to {outcome.packet.dst}:53"
        assert rewrite.rule.table == "ip kube-proxy"


def test_native_affinity_is_the_set(native: Namespace) -> None:
    """The set names 10.244.9.9; others get a choice."""
    asked = evaluator(native)
    known = asked.run(udp("10.96.0.11", 53, src="10.244.9.9"), context("prerouting", "eth0"))
    assert [outcome.packet.dst for outcome in known] == ["10.244.1.2"]
    assert len(asked.run(udp("10.96.0.11", 53), context("prerouting", "eth0"))) == 2


def test_native_node_port_is_masqueraded(native: Namespace) -> None:
    asked = evaluator(native)
    for first in asked.run(udp(NODE, 30053, src="192.0.2.9"), context("prerouting", "eth0")):
        assert first.packet.mark == 0x4000
        (last,) = asked.run(first.packet, context("postrouting", None, "cni0"))
        assert (last.packet.src, last.packet.sport, last.packet.mark) == (NODE, None, 0)
        assert last.rewrites[0].kind == "masquerade"
    (local,) = asked.run(udp("192.168.50.12", 30053, src="192.0.2.9"), context("prerouting", "eth0"))
    assert not local.rewrites


def test_native_no_endpoints_and_wrong_ports_are_rejected(native: Namespace) -> None:
    asked = evaluator(native)
    (first,) = asked.run(udp("10.96.0.12", 53), context("prerouting", "eth0"))
    assert (first.verdict, first.reject_with) == ("reject", "icmp-port-unreachable")
    (passed,) = asked.run(udp("10.96.0.10", 54), context("prerouting", "eth0"))
    (second,) = asked.run(passed.packet, context("forward", "eth0", "eth1"))
    assert second.verdict == "reject" and second.rule is not None and second.rule.comment is not None


def test_recorded_kube_proxy() -> None:
    """The rules of a real kube-proxy: every endpoint, the shares of `statistic`, and the service's name from the comments."""
    text = (DATA / "kube-proxy.save").read_text()
    line = next(line for line in text.splitlines() if "-A KUBE-SERVICES" in line and "KUBE-SVC" in line and "--dport" in line)
    words = line.split()
    address = words[words.index("-d") + 1].partition("/")[0]
    protocol = words[words.index("-p") + 1]
    packet = PacketState(4, "10.244.0.2", address, protocol, 40000, int(words[words.index("--dport") + 1]), length=60)
    outcomes = evaluator(save(text, backend="nft")).run(packet, context("prerouting", "cni0"))
    assert abs(sum(outcome.share for outcome in outcomes) - 1) < 1e-9
    for outcome in outcomes:
        assert not outcome.uncertain
        (rewrite,) = outcome.rewrites
        assert rewrite.rule is not None and rewrite.rule.service is not None and rewrite.rule.chain is not None
        assert rewrite.rule.text in text and rewrite.rule.chain.startswith("KUBE-SEP-")


def test_a_known_connection_keeps_its_translation() -> None:
    """The rules would send it elsewhere now; the kernel does not ask them again."""
    entry = ConntrackEntry(4, "udp", FlowTuple("10.1.0.2", "10.9.9.9", 5, 53), FlowTuple("10.2.0.2", "10.1.0.2", 53, 5))
    rules = Netfilter(
        xtables=(Xtables(4, "legacy", "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j DNAT --to-destination 10.3.0.3\nCOMMIT\n"),)
    )
    asked = evaluator(Namespace(1, "n", netfilter=rules, conntrack=(entry,)))
    (there,) = asked.run(udp("10.9.9.9", 53, src="10.1.0.2", sport=5), context("prerouting", "a"))
    assert there.packet.dst == "10.2.0.2" and there.rewrites[0].rule is None
    (back,) = asked.run(udp("10.1.0.2", 5, src="10.2.0.2", sport=53), context("prerouting", "b"))
    (out,) = asked.run(back.packet, context("postrouting", None, "a"))
    assert (out.packet.src, out.rewrites[0].reverse) == ("10.9.9.9", True)
    (other,) = asked.run(udp("10.9.9.9", 53, src="10.1.0.2", sport=6), context("prerouting", "a"))
    assert other.packet.dst == "10.3.0.3"


def test_goto_from_a_built_in_chain_ends_in_its_policy() -> None:
    text = (
        "*filter\n:FORWARD DROP [0:0]\n:x - [0:0]\n-A FORWARD -g x\n-A FORWARD -j ACCEPT\n-A x -d 10.9.9.9/32 -j ACCEPT\nCOMMIT\n"
    )
    where = context("forward", "a", "b")
    dropped = one(save(text), udp("10.9.9.8", 1), where)
    assert (
        dropped.verdict == "drop"
        and dropped.rule is not None
        and (dropped.rule.text, dropped.rule.chain) == ("policy DROP", "FORWARD")
    )
    assert one(save(text), udp("10.9.9.9", 1), where).verdict == "accept"


def test_a_destination_inside_a_comment_is_not_the_rules() -> None:
    text = '*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m comment --comment "not -d 10.0.0.1/32 only" -j DROP\nCOMMIT\n'
    assert one(save(text), udp("10.9.9.9", 1), context("forward", "a", "b")).verdict == "drop"


def test_tables_of_the_nft_backend_are_not_evaluated_twice() -> None:
    """What nft shows of iptables' rules has no arguments; the save text has, so nothing is uncertain."""
    nft = (
        '{"nftables": [{"table": {"family": "ip", "name": "filter", "handle": 1}}, {"chain": {"family": "ip", "table": "filter", "name": "FORWARD",'
        ' "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}}, {"rule": {"family": "ip", "table": "filter",'
        ' "chain": "FORWARD", "handle": 2, "expr": [{"xt": {"type": "match", "name": "string"}}, {"drop": null}]}}]}'
    )
    text = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -d 10.1.1.1/32 -j DROP\nCOMMIT\n"
    where = context("forward", "a", "b")
    both = Namespace(1, "n", netfilter=Netfilter(xtables=(Xtables(4, "nft", text),), nft=nft))
    assert one(both, udp("10.2.2.2", 1), where).uncertain == ()
    assert one(both, udp("10.1.1.1", 1), where).verdict == "drop"
    alone = one(Namespace(1, "n", netfilter=Netfilter(nft=nft)), udp("10.2.2.2", 1), where)
    assert any("xt match string" in why or "string" in why for why in alone.uncertain)


def test_masquerade_takes_another_port_where_its_own_is_in_use() -> None:
    entry = ConntrackEntry(4, "udp", FlowTuple("10.1.0.3", "10.9.9.9", 5, 53), FlowTuple("10.9.9.9", NODE, 53, 5))
    rules = Netfilter(xtables=(Xtables(4, "legacy", "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n"),))
    asked = evaluator(Namespace(1, "n", netfilter=rules, conntrack=(entry,)))
    for source_port, expected in ((5, None), (6, 6)):
        (first,) = asked.run(udp("10.9.9.9", 53, src="10.1.0.2", sport=source_port), context("prerouting", "a"))
        (last,) = asked.run(first.packet, context("postrouting", None, "b"))
        assert (last.packet.src, last.packet.sport) == (NODE, expected)


@pytest.mark.parametrize(
    ("flags", "protocol", "reply", "seen", "assured"),
    [
        (("assured",), "udp", False, True, True),
        (("unreplied",), "udp", False, False, False),
        (("unreplied",), "udp", True, True, False),
        ((), "udp", False, True, None),
        ((), "icmp", False, True, False),
    ],
)
def test_the_status_of_a_known_connection(
    flags: tuple[str, ...], protocol: str, reply: bool, seen: bool, assured: bool | None
) -> None:
    """What an entry tells of its status decides; what this very packet may change is uncertain (None)."""
    there, back = FlowTuple("10.1.0.2", "10.9.9.9", 5, 53), FlowTuple("10.9.9.9", "10.1.0.2", 53, 5)
    entry = ConntrackEntry(4, protocol, there, back, flags=flags)
    flow = back if reply else there
    packet = PacketState(4, flow.source, flow.destination, protocol, flow.sport, flow.dport, icmp_type=8, icmp_code=0, length=60)
    where = context("prerouting", "a")
    for flag, wanted in (("seen-reply", seen), ("assured", assured), ("confirmed", True)):
        spelled = flag.replace("-", "_").upper()
        xt = f"*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -m conntrack --ctstatus {spelled} -j DROP\nCOMMIT\n"
        native = {
            "nftables": [
                {"table": {"family": "ip", "name": "t"}},
                {
                    "chain": {"family": "ip", "table": "t", "name": "c", "type": "filter", "hook": "prerouting", "prio": -150}
                    | {"policy": "accept"}
                },
                {
                    "rule": {"family": "ip", "table": "t", "chain": "c"}
                    | {"expr": [{"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": flag}}, {"drop": None}]}
                },
            ]
        }
        for rules in (Netfilter(xtables=(Xtables(4, "legacy", xt),)), Netfilter(nft=json.dumps(native))):
            outcome = one(Namespace(1, "n", netfilter=rules, conntrack=(entry,)), packet, where)
            assert bool(outcome.uncertain) == (wanted is None), (flag, outcome.uncertain)
            assert (outcome.verdict == "drop") == (wanted is True), flag


def test_status_none_stands_for_no_flag_and_matches_nothing() -> None:
    text = "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -m conntrack --ctstatus NONE -j DROP\nCOMMIT\n"
    assert one(save(text), udp("10.9.9.9", 53), context("prerouting", "a")).verdict == "accept"


def test_ipv6_and_inet() -> None:
    text = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d fd00::10/128 -p tcp -m tcp --dport 80 -j DNAT --to-destination [fd00::2]:8080\nCOMMIT\n"
    packet = PacketState(6, "fd00::1", "fd00::10", "tcp", 40000, 80, length=80)
    outcome = one(save(text, family=6), packet, context("prerouting", "a"))
    assert (outcome.packet.dst, outcome.packet.dport) == ("fd00::2", 8080)


def test_ten_thousand_rules_are_not_all_understood() -> None:
    """Only rules that a packet reaches and that can be for it are taken apart."""
    services = [f"10.{96 + number // 65536}.{number // 256 % 256}.{number % 256}" for number in range(3000)]
    lines = ["*nat", ":PREROUTING ACCEPT [0:0]", ":KUBE-SERVICES - [0:0]", "-A PREROUTING -j KUBE-SERVICES"]
    lines += [f":KUBE-SVC-{number} - [0:0]" for number in range(3000)]
    lines += [
        f"-A KUBE-SERVICES -d {address}/32 -p udp -m udp --dport 53 -j KUBE-SVC-{number}" for number, address in enumerate(services)
    ]
    lines += [f"-A KUBE-SVC-{number} -p udp -j DNAT --to-destination 10.244.1.2:53" for number in range(3000)]
    namespace = save("\n".join([*lines, "COMMIT", ""]))
    asked = evaluator(namespace)
    (outcome,) = asked.run(udp(services[2999], 53), context("prerouting", "a"))
    assert outcome.packet.dst == "10.244.1.2"
    rules = [rule for table in asked._tables for chain in table.chains.values() for rule in chain.rules]  # type: ignore[attr-defined]
    assert sum("parts" in vars(rule) for rule in rules) == 3


def test_sets_of_ports_and_lists_in_a_circle() -> None:
    sets = "create p hash:ip,port\nadd p 10.9.9.9,udp:53\ncreate a list:set\ncreate b list:set\nadd a b\nadd b a\nadd b p\n"
    text = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m set --match-set a dst,dst -j DROP\nCOMMIT\n"
    where = context("forward", "a", "b")
    assert one(save(text, ipset=sets), udp("10.9.9.9", 53), where).verdict == "drop"
    assert one(save(text, ipset=sets), udp("10.9.9.9", 54), where).verdict == "accept"
    ping = one(save(text, ipset=sets), PacketState(4, "10.1.1.1", "10.9.9.9", "icmp", icmp_type=8, icmp_code=0), where)
    assert (ping.verdict, ping.uncertain) == ("accept", ())


def test_without_a_connection_what_is_asked_of_it_does_not_hold_negated_or_not() -> None:
    """In raw conntrack has not seen the packet; with --ctstate in the same match only that decides (xt_conntrack.c)."""
    for words, dropped in (
        ("-m conntrack --ctorigdst 10.1.1.1", False),
        ("-m conntrack ! --ctorigdst 10.1.1.1", False),
        ("-m connmark ! --mark 0x1", False),
        ("-m conntrack ! --ctstate DNAT", True),
        ("-m conntrack ! --ctstate DNAT ! --ctorigdst 10.1.1.1", True),
        ("-m conntrack ! --ctstate DNAT -m conntrack ! --ctorigdst 10.1.1.1", False),
    ):
        text = f"*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {words} -j DROP\nCOMMIT\n"
        assert (one(save(text), udp("10.9.9.9", 53), context("prerouting", "a")).verdict == "drop") == dropped, words


@pytest.mark.parametrize(
    ("statement", "changed"),
    [
        ({"dnat": {"family": "ip", "addr": {"map": "MAP"}, "port": 53}}, lambda outcome: outcome.packet.dst == "10.1.0.1"),
        ({"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"map": "MAP"}}}, lambda outcome: outcome.packet.mark != 0),
    ],
    ids=["dnat", "mark"],
)
def test_a_value_that_a_map_has_not_ends_the_rule(statement: dict[str, Any], changed: Callable[[HookOutcome], bool]) -> None:
    """One choice of four is in the map: the other three go on as they came (NFT_BREAK), and nothing gets lost."""
    data = "10.1.0.1" if "dnat" in statement else 7
    mapping = {"key": {"numgen": {"mode": "random", "mod": 4, "offset": 0}}, "data": {"set": [[1, data]]}}
    text = json.dumps(statement).replace('"MAP"', json.dumps(mapping))
    of = {"family": "ip", "table": "t"}
    native = {
        "nftables": [
            {"table": {"family": "ip", "name": "t"}},
            {
                "chain": {**of, "name": "c", "type": "nat" if "dnat" in statement else "filter", "hook": "prerouting"}
                | {"prio": -100, "policy": "accept"}
            },
            {"rule": {**of, "chain": "c", "expr": [json.loads(text)]}},
        ]
    }
    outcomes = evaluator(Namespace(1, "n", netfilter=Netfilter(nft=json.dumps(native)))).run(
        udp("10.9.9.9", 53), context("prerouting", "a")
    )
    shares = {changed(outcome): outcome.share for outcome in outcomes}
    assert shares == {True: 0.25, False: 0.75}
