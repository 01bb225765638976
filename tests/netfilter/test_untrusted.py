"""Rulesets are untrusted text: damaged ones are never a traceback, and what can't be read is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpath.model.snapshot import Namespace, Netfilter, Xtables
from netpath.netfilter import evaluator
from netpath.netfilter.types import HOOKS, HookContext, HookOutcome, PacketState

DATA = Path(__file__).parent / "data"
SAVE = (DATA / "kube-proxy.save").read_text()
NFT = (DATA / "statements.json").read_text()
SETS = "create a hash:net family inet\nadd a 10.0.0.0/8\nadd a 10.1.0.0/16 nomatch\ncreate l list:set\nadd l a\n"
PACKETS = (
    PacketState(4, "10.244.1.2", "10.96.0.10", "udp", 40000, 53, length=60),
    PacketState(4, "10.244.1.2", "10.96.0.1", "tcp", None, 443, length=60),
    PacketState(4, "10.244.1.2", "192.168.50.11", "icmp", icmp_type=8, icmp_code=0, length=84),
    PacketState(6, "fd00::1", "fd00::2", "tcp", 40000, 80, length=80),
)


def everything(rules: Netfilter) -> list[HookOutcome]:
    """Every packet at every hook; shares add up to one whatever the rules say."""
    asked = evaluator(Namespace(1, "n", netfilter=rules))
    found: list[HookOutcome] = []
    for packet in PACKETS:
        for hook in HOOKS:
            outcomes = asked.run(packet, HookContext(hook, "eth0", "eth1", masquerade_source=lambda device, target: "192.0.2.1"))
            assert abs(sum(outcome.share for outcome in outcomes) - 1) < 1e-6
            found += outcomes
    return found


def cut(text: str, at: int, length: int, instead: str) -> str:
    at %= max(len(text), 1)
    return text[:at] + instead + text[at + length :]


damage = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 40), st.text(alphabet='-!"{}[]:,@*/ \\0x9aA\n', max_size=6)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(damage, damage)
def test_damaged_save_text(first: list[tuple[int, int, str]], second: list[tuple[int, int, str]]) -> None:
    text, sets = SAVE, SETS
    for at, length, instead in first:
        text = cut(text, at, length, instead)
    for at, length, instead in second:
        sets = cut(sets, at, length, instead)
    everything(Netfilter(xtables=(Xtables(4, "nft", text), Xtables(6, "legacy", text)), ipset=sets))


@settings(max_examples=150, deadline=None)
@given(damage)
def test_damaged_nft_text(cuts: list[tuple[int, int, str]]) -> None:
    text = NFT
    for at, length, instead in cuts:
        text = cut(text, at, length, instead)
    everything(Netfilter(nft=text))


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["@s", "*", "udp", "10.0.0.1", "x", "eth*", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["match", "left", "right", "op", "payload", "set", "vmap", "key", "data", "dnat", "addr", "concat", "elem", "|"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=250, deadline=None)
@given(odd, st.integers(0, 10**6))
def test_odd_nft_documents(instead: object, which: int) -> None:
    """One value somewhere in the document replaced by something that nft would never print."""
    document = json.loads(NFT)
    places: list[tuple[dict[str, object] | list[object], str | int]] = []

    def visit(node: object) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                places.append((node, key))
                visit(value)
        elif isinstance(node, list):
            for number, value in enumerate(node):
                places.append((node, number))
                visit(value)

    visit(document)
    node, key = places[which % len(places)]
    node[key] = instead  # type: ignore[index]
    everything(Netfilter(nft=json.dumps(document)))


def test_unreadable_is_said() -> None:
    for outcome in everything(Netfilter(nft="{", unread=("ip6tables-save: not permitted",))):
        assert len(outcome.uncertain) >= 2


def test_unknown_match_is_named_and_only_where_it_matters() -> None:
    text = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -d 10.96.0.10/32 -p udp -m string --string x --algo bm -m udp --dport 53 -j DROP\nCOMMIT\n"
    for outcome in everything(Netfilter(xtables=(Xtables(4, "legacy", text),))):
        assert outcome.verdict == "accept"
        about_it = outcome.packet.dport == 53 and outcome.uncertain
        assert not outcome.uncertain or (about_it and "match string --string x" in outcome.uncertain[0])


@pytest.mark.parametrize(
    "damaged",
    [
        "-d 10.0.0.1/no:mask",
        "-s 10.0.0.1/33",
        "-m conntrack --ctorigdst nowhere",
        "-m conntrack --ctorigsrc 10.0.0.1/77",
        "-m conntrack --ctreplsrc ''",
        "-m conntrack --ctorigdstport 1:z",
        "-m statistic --mode random --probability 9.5",
        "-m statistic --mode random --probability -1",
        "-m statistic --mode random --probability nan",
    ],
)
def test_damaged_values_are_said_where_the_rule_is_reached(damaged: str) -> None:
    """The values of a match are read with the rule, not when a packet with a connection meets it."""
    nat = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 192.0.2.1/32 -j DNAT --to-destination 192.0.2.2\nCOMMIT\n"
    text = f"{nat}*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {damaged} -j DROP\nCOMMIT\n"
    asked = evaluator(Namespace(1, "n", netfilter=Netfilter(xtables=(Xtables(4, "legacy", text),))))
    (first,) = asked.run(PACKETS[0], HookContext("prerouting", "eth0", None))
    assert first.packet.connection is not None
    (outcome,) = asked.run(first.packet, HookContext("forward", "eth0", "eth1"))
    assert outcome.verdict == "accept" and outcome.share == 1 and len(outcome.uncertain) == 1
    everything(Netfilter(xtables=(Xtables(4, "legacy", text),)))
