"""Every way a packet can fail to arrive: the outcome, the reason, the last hop, the cause in words and the command that mends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from netpath.model.path import Path
from tests.predict.build import Build, Ns, Overlay, hops


@dataclass(frozen=True)
class Failure:
    name: str
    inflict: Callable[[Overlay], object]
    reason: str
    last: str
    """The last hop; empty: it never left."""
    cause: str
    """A part of the cause."""
    remedy: str
    """A part of the remedy."""
    outcome: str = "dropped"
    flow: dict[str, Any] = field(default_factory=dict)
    family: int = 4


def _without(ns: Ns, **wanted: Any) -> None:
    ns.routes = [route for route in ns.routes if any(getattr(route, key) != value for key, value in wanted.items())]


def _no_fdb(made: Overlay) -> None:
    made.node1.fdb_entries = [entry for entry in made.node1.fdb_entries if entry.destination is None]


def _no_neighbour(made: Overlay) -> None:
    made.node1.neighbours = []
    _no_fdb(made)


def _failed_neighbour(made: Overlay) -> None:
    made.pod2.down("eth0")
    made.node2.change("veth0", flags=("UP",))
    made.node2.neigh("br0", "10.2.0.2", None, "FAILED")


def _strict(made: Overlay) -> None:
    made.node2.route("10.1.0.0/16", via="192.168.7.9", dev="up0")
    _without(made.node2, destination="10.1.0.0/24")
    made.node2.sysctl("net.ipv4.conf.all.rp_filter", 1)


def _loose(made: Overlay) -> None:
    _without(made.node2, destination="10.1.0.0/24")
    made.node2.sysctl("net.ipv4.conf.vx1.rp_filter", 2)


def _local_source(made: Overlay) -> None:
    made.node2.addr("up0", "10.1.0.2/32")


def _pinned(made: Overlay) -> None:
    made.pod1.neigh("eth0", "10.1.0.1", made.node1.mac("br0"))


def _stale_mac(made: Overlay) -> None:
    made.node2.neigh("br0", "10.2.0.2", "02:de:ad:00:00:01", "STALE")


def _wrong_mac_at_pod(made: Overlay) -> None:
    made.node2.neigh("br0", "10.2.0.2", "02:de:ad:00:00:01", "STALE").fdb(
        "veth0", "02:de:ad:00:00:01", master="br0", state="static"
    )


def _blocked(made: Overlay) -> None:
    _pinned(made)
    made.node1.plug("br0", "veth0", state="blocking")


def _bridge_down(made: Overlay) -> None:
    _pinned(made)
    made.node1.down("br0")


def _peer_down(made: Overlay) -> None:
    made.node2.neigh("br0", "10.2.0.2", made.pod2.mac("eth0"))
    made.node2.fdb("veth0", made.pod2.mac("eth0"), master="br0")
    made.pod2.down("eth0")


def _narrow_peer(made: Overlay) -> None:
    made.pod2.change("eth0", mtu=600)


def _frozen(made: Overlay) -> None:
    made.node1.change("vx1", mtu=800)


FAILURES = [
    Failure("no FDB entry", _no_fdb, "NO_TX_TARGET", "node1.vx1.tx", "no forwarding entry", "bridge fdb append"),
    Failure("no route", lambda m: _without(m.node1, destination="10.2.0.0/24"), "IP_INNOROUTES", "node1.br0.rx", "no route", "ip route add"),
    Failure(
        "no route at the source",
        lambda m: _without(m.pod1, destination="0.0.0.0/0"),
        "IP_OUTNOROUTES",
        "",
        "no route",
        "ip netns exec pod1 ip route add 10.2.0.2",
    ),
    Failure(
        "forwarding off",
        lambda m: m.node1.sysctl("net.ipv4.ip_forward", 0),
        "IP_INADDRERRORS",
        "node1.br0.rx",
        "forwarding is off",
        "ip netns exec node1 sysctl -w net.ipv4.ip_forward=1",
    ),
    Failure(
        "forwarding off on the device",
        lambda m: m.node1.sysctl("net.ipv4.conf.br0.forwarding", 0),
        "IP_INADDRERRORS",
        "node1.br0.rx",
        "forwarding is off",
        "net.ipv4.conf.br0.forwarding=1",
    ),
    Failure(
        "IPv6 forwarding off",
        lambda m: m.node1.sysctl("net.ipv6.conf.all.forwarding", 0),
        "IP_INADDRERRORS",
        "node1.br0.rx",
        "forwarding is off",
        "net.ipv6.conf.all.forwarding=1",
        family=6,
    ),
    Failure("strict rp_filter", _strict, "IP_RPFILTER", "node2.vx1.rx", "reverse path", "net.ipv4.conf.all.rp_filter=2"),
    Failure("loose rp_filter without any route back", _loose, "IP_RPFILTER", "node2.vx1.rx", "reverse path", "rp_filter"),
    Failure("source is the receiver's own", _local_source, "IP_LOCAL_SOURCE", "node2.vx1.rx", "own", "accept_local"),
    Failure("TTL 1", _pinned, "IP_INHDR", "node1.br0.rx", "TTL", "TTL", flow={"ttl": 1}),
    Failure("TTL 2", _pinned, "IP_INHDR", "node2.vx1.rx", "TTL", "TTL", flow={"ttl": 2}),
    Failure("larger than the sender's MTU", _pinned, "PKT_TOO_BIG", "", "MTU of eth0 in pod1", "mtu", flow={"df": True, "payload": 1500}),
    Failure("larger than a forwarder's MTU", _frozen, "PKT_TOO_BIG", "node1.br0.rx", "vx1 in node1 (800)", "mtu", flow={"df": True, "payload": 900}),
    Failure("larger than a forwarder's MTU, IPv6", _frozen, "PKT_TOO_BIG", "node1.br0.rx", "vx1", "mtu", flow={"payload": 900}, family=6),
    Failure("nobody has the next hop", _no_neighbour, "NEIGH_FAILED", "node1.br0.rx", "nobody answers ARP", "ip neigh"),
    Failure("failed neighbour", _failed_neighbour, "NEIGH_FAILED", "node2.vx1.rx", "nobody answers ARP", "ip neigh"),
    Failure("no listener", lambda m: setattr(m.pod2, "sockets", []), "NO_SOCKET", "pod2.eth0.rx", "listens on udp port 7777", "ss -lnup", "rejected"),
    Failure(
        "no TCP listener",
        lambda m: setattr(m.pod2, "sockets", []),
        "NO_SOCKET",
        "pod2.eth0.rx",
        "TCP reset",
        "ss -lntp",
        "rejected",
        flow={"protocol": "tcp", "payload": 0},
    ),
    Failure(
        "echo ignored",
        lambda m: m.pod2.sysctl("net.ipv4.icmp_echo_ignore_all", 1),
        "NOT_SPECIFIED",
        "pod2.eth0.rx",
        "ignores echo",
        "icmp_echo_ignore_all=0",
        flow={"protocol": "icmp", "sport": None, "dport": None},
    ),
    Failure("stale neighbour, unknown MAC", _stale_mac, "OTHERHOST", "node2.br0.tx", "no entry for 02:de:ad:00:00:01", "bridge fdb show"),
    Failure("stale neighbour, wrong pod", _wrong_mac_at_pod, "OTHERHOST", "pod2.eth0.rx", "02:de:ad:00:00:01", "ip neigh"),
    Failure("blocked port", _blocked, "BRIDGE_INGRESS_STP_STATE", "node1.veth0.rx", "blocking", "bridge link set dev veth0 state 3"),
    Failure("peer down", _peer_down, "NOT_SPECIFIED", "node2.veth0.tx", "eth0 in pod2, is down", "ip link set dev eth0 up"),
    Failure("frame too long for the peer", _narrow_peer, "NOT_SPECIFIED", "node2.veth0.tx", "too long", "mtu", flow={"payload": 700}),
    Failure(
        "port down",
        lambda m: (m.node2.neigh("br0", "10.2.0.2", m.pod2.mac("eth0")), m.node2.fdb("veth0", m.pod2.mac("eth0"), master="br0"), m.node2.down("veth0")),
        "QDISC_DROP",
        "node2.br0.tx",
        "veth0 in node2 is down",
        "ip link set dev veth0 up",
    ),
    Failure(
        "underlay down",
        lambda m: (m.node1.neigh("up0", "192.168.7.2", m.node2.mac("up0")), m.node1.change("up0", flags=("UP",))),
        "QDISC_DROP",
        "node1.vx1.tx",
        "no carrier",
        "ip",
    ),
    Failure("bridge down", _bridge_down, "NOT_SPECIFIED", "node1.veth0.rx", "bridge br0", "ip link set dev br0 up"),
    Failure("no route for the tunnel", lambda m: _without(m.node1, destination="192.168.7.0/24"), "IP_OUTNOROUTES", "node1.vx1.tx", "192.168.7.2", "ip route add"),
    Failure("another VNI at the far end", lambda m: m.node2.change("vx1", vxlan=None), "NO_SOCKET", "node2.up0.rx", "8472", "ss", "rejected"),
    Failure("IPv6 disabled", lambda m: m.pod2.sysctl("net.ipv6.conf.eth0.disable_ipv6", 1), "NEIGH_FAILED", "node2.vx1.rx", "nobody", "neigh", family=6),
]  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_failure(failure: Failure) -> None:
    made = Overlay(failure.family)
    for node in (made.node1, made.node2):
        node.sockets = node.sockets or []
    assert made.path(**{"payload": 64, **failure.flow, "df": False, "ttl": 64, **_small(failure)}).outcome == "delivered"
    failure.inflict(made)
    path = made.path(**failure.flow)
    assert path.drop is not None
    assert (path.outcome, path.drop.reason) == (failure.outcome, failure.reason), path.drop
    assert (hops(path)[-1] if path.hops else "") == failure.last
    assert path.drop.hop == len(path.hops)
    assert failure.cause in path.drop.cause
    assert path.drop.remedy is not None and failure.remedy in path.drop.remedy
    assert path.drop.netns is not None


def _small(failure: Failure) -> dict[str, Any]:
    return {} if failure.flow.get("protocol") in ("tcp", "icmp") else {"payload": 64}


@pytest.mark.parametrize(("kind", "error"), [("blackhole", "blackhole"), ("unreachable", "unreachable"), ("prohibit", "prohibit")])
@pytest.mark.parametrize("family", [4, 6])
def test_routes_that_refuse(kind: str, error: str, family: int) -> None:
    made = Overlay(family)
    target = made.address2 + ("/128" if family == 6 else "/32")
    made.node1.route(target, type=kind)
    path = made.path()
    assert hops(path)[-1] == "node1.br0.rx" and path.outcome == "dropped" and path.drop is not None
    assert error in path.drop.cause and path.drop.remedy is not None and f"route del {kind}" in path.drop.remedy
    made.pod1.route(target, type=kind)
    here = made.path()
    assert here.hops == () and here.drop is not None and here.drop.reason == "IP_OUTNOROUTES" and here.drop.hop == 0


def test_another_vni_on_the_same_port() -> None:
    from netpath.model.snapshot import Vxlan

    made = Overlay()
    made.node2.change("vx1", vxlan=Vxlan(9, 8472))
    path = made.path()
    assert path.drop is not None and path.drop.reason == "VXLAN_VNI_NOT_FOUND" and hops(path)[-1] == "node2.up0.rx"


def test_older_kernels_have_other_names() -> None:
    made = Overlay()
    _no_fdb(made)
    made.net.kernel = "6.13.4"
    path = made.path()
    assert path.drop is not None and path.drop.reason == "VXLAN_NO_REMOTE"


def test_loopback_addresses_on_a_wire() -> None:
    net = Build()
    a, b = net.ns("a"), net.ns("b")
    net.wire(a, "e0", b, "e0")
    a.addr("e0", "192.0.2.1/24").rule(5, destination="127.0.0.9/32", table=100).route("127.0.0.9/32", dev="e0", table=100)
    b.addr("e0", "192.0.2.2/24")
    a.rules = [rule for rule in a.rules if rule.priority]
    a.neigh("e0", "127.0.0.9", b.mac("e0"))
    path = net.only(a.flow("127.0.0.9"))
    assert path.drop is not None and path.drop.reason == "IP_LOCALNET"
    assert path.drop.remedy is not None and "net.ipv4.conf.e0.route_localnet=1" in path.drop.remedy
    b.sysctl("net.ipv4.conf.all.route_localnet", 1)
    assert net.only(a.flow("127.0.0.9")).outcome == "delivered"


def test_a_source_that_is_not_held() -> None:
    made = Overlay()
    path: Path = made.path(src="10.1.0.77")
    assert path.outcome == "dropped" and path.drop is not None and "10.1.0.77" in path.drop.cause


def test_a_packet_that_may_be_fragmented_goes_on_in_fragments() -> None:
    made = Overlay()
    path = made.path(payload=2000)
    assert path.outcome == "delivered" and not path.uncertain
    assert path.hops[0].note is not None and "fragments" in path.hops[0].note
    assert [hop.ip_length for hop in path.hops] == [1444] * 4 + [1494] * 4 + [1444] * 4
    six = Overlay(6).path(payload=2000)
    assert six.outcome == "delivered" and six.hops[0].ip_length == 1448


def test_a_routing_loop_ends_with_the_ttl() -> None:
    made = Overlay()
    _without(made.node2, destination="10.2.0.0/24")
    made.node2.route("10.2.0.0/24", via="10.1.0.0", dev="vx1", onlink=True)
    path = made.path()
    assert path.outcome == "dropped" and path.drop is not None and path.drop.reason == "IP_INHDR"
    assert len(path.hops) > 60 * 4


def test_a_loop_over_several_ways_is_cut_short_and_said_to_be() -> None:
    """Two routers that send to each other over two wires: the ways double at every step."""
    from netpath.model.snapshot import NextHop

    net = Build()
    a, b = net.ns("a", forward=True), net.ns("b", forward=True)
    for number in (1, 2):
        net.wire(a, f"e{number}", b, f"e{number}")
        a.addr(f"e{number}", f"192.0.{number}.1/24")
        b.addr(f"e{number}", f"192.0.{number}.2/24")
    for ns, other in ((a, 2), (b, 1)):
        ns.route("10.0.0.0/8", hops=[NextHop(ns.index(f"e{number}"), f"192.0.{number}.{other}") for number in (1, 2)])
    client = net.ns("client")
    net.wire(client, "e0", a, "e0")
    a.addr("e0", "192.0.9.1/24")
    client.addr("e0", "192.0.9.2/24").route("0.0.0.0/0", via="192.0.9.1", dev="e0")
    prediction = net.predict(client.flow("10.0.0.1"))
    assert len(prediction.paths) < 1000 and any("too many" in reason for path in prediction.paths for reason in path.uncertain)
    assert abs(sum(path.share for path in prediction.paths) - 1) < 1e-6


def test_remedies_are_safe_to_paste() -> None:
    """Names come from the system: what a shell would act on is quoted."""
    made = Overlay()
    made.node1.name = "n;reboot"
    made.node1.links["br0"] = replace(made.node1.links["br0"], name="br$(id)")
    made.node1.sysctl("net.ipv4.conf.br$(id).forwarding", 0)
    path = made.path()
    assert path.drop is not None
    assert path.drop.remedy == "ip netns exec 'n;reboot' sysctl -w 'net.ipv4.conf.br$(id).forwarding=1'"


def test_rules_on_ports_do_not_see_fragments() -> None:
    made = Overlay()
    made.node1.rule(50, destination_ports=(7777, 7777), table=66).route("10.2.0.0/24", type="prohibit", table=66)
    assert made.path().outcome == "dropped"
    assert made.path(payload=2000).outcome == "delivered"


def test_a_bridge_without_carrier_sends_nothing() -> None:
    """The last of its ports went down: the kernel's no-op qdisc takes what the host sends through it."""
    made = Overlay()
    made.node2.neigh("br0", "10.2.0.2", made.pod2.mac("eth0"))
    made.node2.down("veth0").change("br0", flags=("BROADCAST", "MULTICAST", "UP"))
    path = made.path()
    assert path.drop is not None and (path.drop.reason, hops(path)[-1]) == ("QDISC_DROP", "node2.vx1.rx")
    assert path.drop.remedy == "ip netns exec node2 ip link set dev veth0 up"
    made.node2.neighbours = [entry for entry in made.node2.neighbours if entry.address != "10.2.0.2"]
    path = made.path()
    assert path.drop is not None and path.drop.reason == "NEIGH_FAILED"
