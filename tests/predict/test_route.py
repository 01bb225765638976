"""Route look-up, next hops, source addresses: rule by rule."""

from __future__ import annotations

from typing import Any

import pytest

from netpath.model.index import SnapshotIndex
from netpath.model.snapshot import NextHop, NextHopObject
from netpath.predict.engine import no_rules
from netpath.predict.host import Host
from netpath.predict.route import Lookup, Query, lookup, source_for
from tests.predict.build import Build, Ns


def scene() -> tuple[Build, Ns]:
    """A router with three wires, addresses on each."""
    net = Build()
    router, other = net.ns("router", forward=True), net.ns("other")
    for number in (1, 2, 3):
        net.wire(router, f"e{number}", other, f"e{number}")
        router.addr(f"e{number}", f"192.0.{number}.1/24").addr(f"e{number}", f"fd00:{number}::1/64")
    return net, router


def ask(ns: Ns, dst: str, **more: Any) -> Lookup:
    snapshot = ns.net.snapshot()
    index = SnapshotIndex(snapshot)
    namespace = index.namespace(ns.inode)
    assert namespace is not None
    return lookup(Host(index, namespace, no_rules), Query(family=6 if ":" in dst else 4, dst=dst, **more))


def out(ns: Ns, dst: str, **more: Any) -> list[str | None]:
    """The next hops' gateways, or the error."""
    found = ask(ns, dst, **more)
    return [found.error] if found.error else [choice.nexthop.gateway for choice in found.choices]


def test_the_longest_prefix_wins_and_order_does_not_matter() -> None:
    _, ns = scene()
    ns.route("10.0.0.0/8", via="192.0.1.8", dev="e1").route("10.1.2.0/24", via="192.0.1.24", dev="e1")
    ns.route("10.1.0.0/16", via="192.0.1.16", dev="e1").route("0.0.0.0/0", via="192.0.1.254", dev="e1")
    assert out(ns, "10.1.2.3") == ["192.0.1.24"]
    assert out(ns, "10.1.9.9") == ["192.0.1.16"]
    assert out(ns, "10.9.9.9") == ["192.0.1.8"]
    assert out(ns, "11.0.0.1") == ["192.0.1.254"]


def test_the_lowest_metric_wins_and_tos_comes_first() -> None:
    _, ns = scene()
    ns.route("10.0.0.0/8", via="192.0.1.9", dev="e1", metric=200).route("10.0.0.0/8", via="192.0.2.9", dev="e2", metric=100)
    assert out(ns, "10.1.1.1") == ["192.0.2.9"]
    ns.route("10.0.0.0/8", via="192.0.3.9", dev="e3", metric=500, tos=16)
    assert out(ns, "10.1.1.1") == ["192.0.2.9"]
    assert out(ns, "10.1.1.1", tos=16) == ["192.0.3.9"]


@pytest.mark.parametrize(("kind", "error"), [("blackhole", "EINVAL"), ("unreachable", "EHOSTUNREACH"), ("prohibit", "EACCES")])
def test_refusing_routes_end_the_look_up(kind: str, error: str) -> None:
    _, ns = scene()
    ns.route("0.0.0.0/0", via="192.0.1.9", dev="e1").route("10.0.0.0/8", type=kind)
    assert out(ns, "10.0.0.1") == [error]


def test_throw_goes_on_with_the_next_rule() -> None:
    _, ns = scene()
    ns.rule(100, table=7).route("10.0.0.0/8", type="throw", table=7).route("0.0.0.0/0", via="192.0.2.9", dev="e2", table=7)
    ns.route("0.0.0.0/0", via="192.0.1.9", dev="e1")
    assert out(ns, "10.0.0.1") == ["192.0.1.9"]
    assert out(ns, "11.0.0.1") == ["192.0.2.9"]


RULES: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({"source": "192.0.1.0/24"}, {"src": "192.0.1.7"}, True),
    ({"source": "192.0.1.0/24"}, {"src": "192.0.2.7"}, False),
    ({"source": "192.0.1.0/24"}, {}, False),
    ({"source": "0.0.0.0/0"}, {}, True),
    ({"destination": "10.0.0.0/8"}, {}, True),
    ({"destination": "11.0.0.0/8"}, {}, False),
    ({"fwmark": 5}, {"mark": 5}, True),
    ({"fwmark": 5}, {"mark": 4}, False),
    ({"fwmark": 4, "fwmask": 4}, {"mark": 0x0D}, True),
    ({"fwmark": 0, "fwmask": 4}, {"mark": 0x0D}, False),
    ({"in_device": "lo"}, {}, True),
    ({"in_device": "lo"}, {"iif": 2}, False),
    ({"in_device": "e1"}, {"iif": 2}, True),
    ({"in_device": "e2"}, {"iif": 2}, False),
    ({"in_device": "gone"}, {"iif": 2}, False),
    ({"out_device": "e2"}, {"oif": 3}, True),
    ({"out_device": "e2"}, {}, False),
    ({"ip_protocol": 17}, {"protocol": 17}, True),
    ({"ip_protocol": 6}, {"protocol": 17}, False),
    ({"destination_ports": (80, 90)}, {"protocol": 6, "dport": 85}, True),
    ({"destination_ports": (80, 90)}, {"protocol": 6, "dport": 91}, False),
    ({"source_ports": (1, 9)}, {"protocol": 17, "sport": 9}, True),
    ({"tos": 16}, {"tos": 16}, True),
    ({"tos": 16}, {}, False),
    ({"uid_range": (0, 0)}, {}, True),
    ({"uid_range": (1000, 2000)}, {}, False),
    ({"destination": "10.0.0.0/8", "invert": True}, {}, False),
    ({"destination": "11.0.0.0/8", "invert": True}, {}, True),
    ({"l3mdev": True}, {}, False),
    ({"tunnel_id": 5}, {}, False),
]


@pytest.mark.parametrize(("rule", "query", "matches"), RULES)
def test_what_a_rule_matches(rule: dict[str, Any], query: dict[str, Any], matches: bool) -> None:
    _, ns = scene()
    ns.rule(100, table=7, **rule).route("0.0.0.0/0", via="192.0.2.9", dev="e2", table=7)
    ns.route("0.0.0.0/0", via="192.0.1.9", dev="e1").route("0.0.0.0/0", via="192.0.2.1", dev="e2", metric=9)
    expected = "192.0.2.9" if matches else ("192.0.2.1" if query.get("oif") == 3 else "192.0.1.9")
    assert out(ns, "10.0.0.1", **query) == [expected]


def test_a_port_that_is_not_known_makes_a_rule_uncertain() -> None:
    _, ns = scene()
    ns.rule(100, table=7, source_ports=(1, 9)).route("0.0.0.0/0", via="192.0.1.9", dev="e1")
    found = ask(ns, "10.0.0.1", protocol=17)
    assert found.uncertain and "100" in found.uncertain[0]


@pytest.mark.parametrize(("action", "error"), [("blackhole", "EINVAL"), ("unreachable", "ENETUNREACH"), ("prohibit", "EACCES")])
def test_rules_that_refuse(action: str, error: str) -> None:
    _, ns = scene()
    ns.rule(100, action=action).route("0.0.0.0/0", via="192.0.1.9", dev="e1")
    assert out(ns, "10.0.0.1") == [error]
    assert out(ns, "192.0.1.1") == [None]  # the local table comes first


def test_goto_and_nop_and_an_empty_table() -> None:
    _, ns = scene()
    ns.rule(100, action="goto", goto=300).rule(200, action="blackhole").rule(300, action="nop").rule(400, table=77)
    ns.route("0.0.0.0/0", via="192.0.1.9", dev="e1")
    assert out(ns, "10.0.0.1") == ["192.0.1.9"]


def test_suppress_prefixlength_passes_over_short_routes() -> None:
    _, ns = scene()
    ns.rule(100, table=254, suppress_prefixlength=0).rule(200, table=7)
    ns.route("0.0.0.0/0", via="192.0.1.9", dev="e1").route("10.0.0.0/8", via="192.0.3.9", dev="e3")
    ns.route("0.0.0.0/0", via="192.0.2.9", dev="e2", table=7)
    assert out(ns, "11.0.0.1") == ["192.0.2.9"]
    assert out(ns, "10.0.0.1") == ["192.0.3.9"]


def two(ns: Ns, *weights: int, **more: Any) -> list[NextHop]:
    return [NextHop(ns.index(f"e{n}"), f"192.0.{n}.9", weight, **more) for n, weight in enumerate(weights, 1)]


def test_multipath_shares_go_by_weight() -> None:
    _, ns = scene()
    ns.route("10.0.0.0/8", hops=two(ns, 3, 1))
    found = ask(ns, "10.0.0.1")
    assert [(choice.nexthop.gateway, choice.share) for choice in found.choices] == [("192.0.1.9", 0.75), ("192.0.2.9", 0.25)]


def test_dead_next_hops_are_out_and_linkdown_ones_if_told_so() -> None:
    _, ns = scene()
    hops = two(ns, 1, 1, 1)
    hops[0] = NextHop(hops[0].device, hops[0].gateway, flags=("dead", "linkdown"))
    hops[1] = NextHop(hops[1].device, hops[1].gateway, flags=("linkdown",))
    ns.route("10.0.0.0/8", hops=hops)
    assert sorted(str(g) for g in out(ns, "10.0.0.1")) == ["192.0.2.9", "192.0.3.9"]
    ns.sysctl("net.ipv4.conf.all.ignore_routes_with_linkdown", 1)
    assert out(ns, "10.0.0.1") == ["192.0.3.9"]


def test_a_chosen_source_prefers_its_own_next_hop_on_new_kernels() -> None:
    net, ns = scene()
    ns.route("10.0.0.0/8", hops=two(ns, 1, 1))
    assert out(ns, "10.0.0.1", src="192.0.2.1", output=True) == ["192.0.2.9"]
    assert len(out(ns, "10.0.0.1", src="192.0.3.1", output=True)) == 2
    assert len(out(ns, "10.0.0.1", src="192.0.2.1", iif=2)) == 2
    net.kernel = "6.1.0-13-amd64"
    assert len(out(ns, "10.0.0.1", src="192.0.2.1", output=True)) == 2


def test_next_hop_objects_and_groups() -> None:
    _, ns = scene()
    ns.nexthops = [
        NextHopObject(1, ns.index("e1"), "192.0.1.9"),
        NextHopObject(2, ns.index("e2"), "192.0.2.9"),
        NextHopObject(3, group=((1, 1), (2, 3))),
        NextHopObject(4, blackhole=True),
    ]
    ns.route("10.1.0.0/16", nexthop_id=1).route("10.3.0.0/16", nexthop_id=3).route("10.4.0.0/16", nexthop_id=4)
    assert out(ns, "10.1.0.1") == ["192.0.1.9"]
    assert out(ns, "10.4.0.1") == ["EINVAL"]
    shares = {choice.nexthop.gateway: choice.share for choice in ask(ns, "10.3.0.1").choices}
    assert shares == {"192.0.2.9": 0.75, "192.0.1.9": 0.25}
    ns.neigh("e2", "192.0.2.9", None, "FAILED")
    assert out(ns, "10.3.0.1") == ["192.0.1.9"]


def test_a_bound_device_takes_only_its_own_routes() -> None:
    _, ns = scene()
    ns.route("10.0.0.0/8", via="192.0.1.9", dev="e1").route("0.0.0.0/0", via="192.0.2.9", dev="e2")
    assert out(ns, "10.0.0.1", oif=ns.index("e2")) == ["192.0.2.9"]


def test_no_route() -> None:
    _, ns = scene()
    assert out(ns, "10.0.0.1") == ["ENETUNREACH"]
    assert out(ns, "2001:db8::1") == ["ENETUNREACH"]


def test_source_prefixes_of_ipv6() -> None:
    _, ns = scene()
    ns.route("2001:db8::/32", via="fd00:1::9", dev="e1", source="fd00:1::/64").route(
        "2001:db8::/32", via="fd00:2::9", dev="e2", metric=2000
    )
    assert out(ns, "2001:db8::1", src="fd00:1::1") == ["fd00:1::9"]
    assert out(ns, "2001:db8::1", src="fd00:2::1") == ["fd00:2::9"]


# Source addresses


def source(ns: Ns, dst: str) -> str | None:
    found = ask(ns, dst, output=True)
    index = SnapshotIndex(ns.net.snapshot())
    namespace = index.namespace(ns.inode)
    assert namespace is not None
    return source_for(Host(index, namespace, no_rules), found, found.choices[0], dst)


def test_the_source_follows_the_next_hop() -> None:
    _, ns = scene()
    ns.addr("e1", "198.51.100.1/24").route("10.0.0.0/8", via="192.0.1.9", dev="e1").route(
        "11.0.0.0/8", via="198.51.100.9", dev="e1"
    )
    assert source(ns, "10.0.0.1") == "192.0.1.1"
    assert source(ns, "11.0.0.1") == "198.51.100.1"
    assert source(ns, "198.51.100.77") == "198.51.100.1"


def test_preferred_source_and_local_destinations() -> None:
    _, ns = scene()
    ns.route("10.0.0.0/8", via="192.0.1.9", dev="e1", preferred_source="192.0.3.1")
    assert source(ns, "10.0.0.1") == "192.0.3.1"
    assert source(ns, "192.0.2.1") == "192.0.2.1"
    assert source(ns, "127.0.0.5") == "127.0.0.1"


def test_secondary_and_narrow_addresses_are_passed_over() -> None:
    net = Build()
    ns, other = net.ns("a"), net.ns("b")
    net.wire(ns, "e0", other, "e0")
    net.wire(ns, "e1", other, "e1")
    ns.addr("e0", "10.0.0.1/24", scope="link").addr("e0", "10.0.0.2/24", flags=("secondary",)).addr("e1", "192.0.2.1/24")
    ns.route("203.0.113.0/24", via="10.0.0.9", dev="e0")
    assert source(ns, "203.0.113.5") == "192.0.2.1"
    assert source(ns, "10.0.0.77") == "10.0.0.1"


def test_ipv6_source_selection() -> None:
    net = Build()
    ns, other = net.ns("a"), net.ns("b")
    net.wire(ns, "e0", other, "e0")
    net.wire(ns, "e1", other, "e1")
    ns.addr("e0", "2001:db8:1::1/64").addr("e0", "2001:db8:2::1/64", flags=("deprecated",)).addr("e0", "fd00::1/64")
    ns.addr("e1", "2001:db8:3::1/64").addr("e0", "2001:db8:4::1/64", flags=("tentative",))
    for net_text in ("2001:db8:9::/48", "fd99::/16", "2001:db8:2:f::/64"):
        ns.route(net_text, via="2001:db8:1::9", dev="e0")
    assert source(ns, "2001:db8:9::1") == "2001:db8:1::1"  # not deprecated, of the outgoing device
    assert source(ns, "fd99::1") == "fd00::1"  # matching label
    assert source(ns, "2001:db8:3::77") == "2001:db8:3::1"
    assert source(ns, "2001:db8:1::1") == "2001:db8:1::1"
