"""Who answers for an address, and what a bridge does with a frame."""

from __future__ import annotations

import pytest

from netpath.model.snapshot import BridgePort, Vxlan
from tests.predict.build import Build, Ns, hops


def proxied() -> tuple[Build, Ns, Ns, Ns]:
    """Calico's way: a pod with a /32 and a gateway that nobody holds, answered for by the node."""
    net = Build()
    pod, node, far = net.ns("pod"), net.ns("node", forward=True), net.ns("far")
    net.wire(pod, "eth0", node, "cali1")
    net.wire(node, "up", far, "up")
    pod.addr("eth0", "10.42.0.5/32").route("169.254.1.1/32", dev="eth0").route("0.0.0.0/0", via="169.254.1.1", dev="eth0")
    node.addr("up", "192.0.2.1/24").route("10.42.0.5/32", dev="cali1").sysctl("net.ipv4.conf.cali1.proxy_arp", 1)
    node.route("0.0.0.0/0", via="192.0.2.2", dev="up")
    far.addr("up", "192.0.2.2/24").route("10.42.0.0/24", via="192.0.2.1", dev="up")
    return net, pod, node, far


def test_proxy_arp() -> None:
    net, pod, _, _ = proxied()
    assert hops(net.only(pod.flow("192.0.2.2"))) == ["pod.eth0.tx", "node.cali1.rx", "node.up.tx", "far.up.rx"]


def test_proxy_arp_is_silent_without_a_route_or_forwarding() -> None:
    net, pod, node, _ = proxied()
    node.routes = [route for route in node.routes if route.destination != "0.0.0.0/0"]
    path = net.only(pod.flow("192.0.2.2"))
    assert path.drop is not None and path.drop.reason == "NEIGH_FAILED" and path.hops == ()
    net, pod, node, _ = proxied()
    node.sysctl("net.ipv4.ip_forward", 0)
    assert net.only(pod.flow("192.0.2.2")).hops == ()
    net, pod, node, _ = proxied()
    node.sysctl("net.ipv4.conf.cali1.proxy_arp", 0)
    assert net.only(pod.flow("192.0.2.2")).hops == ()
    node.neigh("cali1", "169.254.1.1", None, "PERMANENT", proxy=True)
    assert len(net.only(pod.flow("192.0.2.2")).hops) == 4


def pair(family: int = 4) -> tuple[Build, Ns, Ns]:
    net = Build()
    a, b = net.ns("a"), net.ns("b")
    net.wire(a, "e0", b, "e0")
    for number, ns in enumerate((a, b), 1):
        ns.addr("e0", f"fd00::{number}/64" if family == 6 else f"10.0.0.{number}/24")
    return net, a, b


@pytest.mark.parametrize(("mode", "answers"), [(0, True), (1, False), (2, False), (8, False)])
def test_arp_ignore(mode: int, answers: bool) -> None:
    """An address of another device is answered for, unless arp_ignore forbids."""
    net, a, b = pair()
    b.dev("d0", "dummy").addr("d0", "10.0.0.77/32").sysctl("net.ipv4.conf.all.arp_ignore", mode)
    assert (net.only(a.flow("10.0.0.77")).outcome == "delivered") is answers
    assert (net.only(a.flow("10.0.0.2")).outcome == "delivered") is (mode != 8)


def test_neighbour_discovery_is_strict_about_the_device() -> None:
    net, a, b = pair(6)
    b.dev("d0", "dummy").addr("d0", "fd00::77/128")
    assert net.only(a.flow("fd00::2")).outcome == "delivered"
    path = net.only(a.flow("fd00::77"))
    assert path.drop is not None and path.drop.reason == "NEIGH_FAILED"


def test_proxy_ndp() -> None:
    net, a, b = pair(6)
    b.sysctl("net.ipv6.conf.all.forwarding", 1).neigh("e0", "fd00::77", None, "PERMANENT", proxy=True)
    b.sysctl("net.ipv6.conf.e0.proxy_ndp", 1)
    assert [hop.direction for hop in net.only(a.flow("fd00::77")).hops] == ["tx", "rx"]


def test_a_tentative_address_does_not_answer() -> None:
    net = Build()
    a, b = net.ns("a"), net.ns("b")
    net.wire(a, "e0", b, "e0")
    a.addr("e0", "fd00::1/64")
    b.addr("e0", "fd00::2/64", flags=("tentative",))
    assert net.only(a.flow("fd00::2")).outcome == "dropped"


def test_rp_filter_also_silences_arp() -> None:
    net, a, b = pair()
    a.addr("e0", "172.16.0.1/24")
    b.sysctl("net.ipv4.conf.all.rp_filter", 1)
    assert net.only(a.flow("10.0.0.2")).outcome == "delivered"
    assert net.only(a.flow("10.0.0.2", src="172.16.0.1")).outcome == "dropped"


def test_two_answers_are_two_paths() -> None:
    net = Build()
    a, one, two, switch = net.ns("a"), net.ns("one"), net.ns("two"), net.ns("switch")
    for ns, port in ((a, "p0"), (one, "p1"), (two, "p2")):
        net.wire(ns, "e0", switch, port)
    switch.bridge("br", "p0", "p1", "p2")
    a.addr("e0", "10.0.0.1/24")
    for ns in (one, two):
        ns.addr("e0", "10.0.0.9/24")
    paths = net.predict(a.flow("10.0.0.9")).paths
    assert [path.share for path in paths] == [0.5, 0.5] and all("several" in path.uncertain[0] for path in paths)
    assert {hops(path)[-1] for path in paths} == {"one.e0.rx", "two.e0.rx"}


def switched(**port: object) -> tuple[Build, Ns, Ns, Ns]:
    net = Build()
    a, b, switch = net.ns("a"), net.ns("b"), net.ns("switch")
    net.wire(a, "e0", switch, "p0")
    net.wire(b, "e0", switch, "p1")
    switch.bridge("br", "p0", "p1")
    a.addr("e0", "10.0.0.1/24").neigh("e0", "10.0.0.2", b.mac("e0"))
    b.addr("e0", "10.0.0.2/24")
    return net, a, b, switch


def test_an_unknown_destination_is_flooded_and_the_taker_followed() -> None:
    net, a, b, switch = switched()
    third = net.ns("c")
    net.wire(third, "e0", switch, "p2")
    switch.plug("br", "p2")
    assert hops(net.only(a.flow("10.0.0.2"))) == ["a.e0.tx", "switch.p0.rx", "switch.p1.tx", "b.e0.rx"]
    switch.change("p1", port=BridgePort(flood=False))
    path = net.only(a.flow("10.0.0.2"))
    assert path.drop is not None and path.drop.reason == "OTHERHOST" and hops(path)[-1] == "switch.p0.rx"
    switch.fdb("p1", b.mac("e0"), master="br")
    assert net.only(a.flow("10.0.0.2")).outcome == "delivered"


def test_isolated_ports_and_learned_entries() -> None:
    net, a, b, switch = switched()
    switch.fdb("p1", b.mac("e0"), master="br")
    for name in ("p0", "p1"):
        switch.change(name, port=BridgePort(isolated=True))
    path = net.only(a.flow("10.0.0.2"))
    assert (
        path.drop is not None
        and "isolated" in path.drop.cause
        and path.drop.remedy is not None
        and "isolated off" in path.drop.remedy
    )


def test_hairpin() -> None:
    net, a, _, switch = switched()
    a.neighbours = []
    a.neigh("e0", "10.0.0.2", "02:00:00:00:00:99")
    switch.fdb("p0", "02:00:00:00:00:99", master="br")
    path = net.only(a.flow("10.0.0.2"))
    assert path.drop is not None and "hairpin" in path.drop.cause
    switch.change("p0", port=BridgePort(hairpin=True))
    assert hops(net.only(a.flow("10.0.0.2")))[:3] == ["a.e0.tx", "switch.p0.rx", "switch.p0.tx"]


def test_a_vxlan_as_a_bridge_port_floods_to_the_vtep_that_has_the_mac() -> None:
    """Three nodes, one segment: the copy that finds the destination is followed."""
    net = Build()
    nodes = [net.ns(f"n{number}") for number in range(3)]
    pods = [net.ns(f"p{number}") for number in range(3)]
    fabric = net.ns("fabric")
    for number, (node, pod) in enumerate(zip(nodes, pods, strict=True)):
        net.wire(node, "up", fabric, f"f{number}")
        net.wire(pod, "e0", node, "v0", mtu=1400)
        pod.addr("e0", f"10.0.0.{number + 1}/24")
        node.addr("up", f"192.0.2.{number + 1}/24").vxlan("vx", 5, local=f"192.0.2.{number + 1}").bridge("br", "v0", "vx")
        for other in range(3):
            if other != number:
                node.fdb("vx", "00:00:00:00:00:00", dst=f"192.0.2.{other + 1}", state="permanent")
    fabric.bridge("sw", "f0", "f1", "f2")
    path = net.only(pods[0].flow("10.0.0.3"))
    assert path.outcome == "delivered" and hops(path)[-4:] == ["n2.up.rx", "n2.vx.rx", "n2.v0.tx", "p2.e0.rx"]
    nodes[2].fdb_entries = [entry for entry in nodes[2].fdb_entries if entry.destination is None]
    assert net.only(pods[0].flow("10.0.0.3")).outcome == "delivered", "the far VTEP learns the way back"
    nodes[2].change("vx", vxlan=Vxlan(5, 8472, local="192.0.2.3", learning=False))
    assert net.only(pods[0].flow("10.0.0.3")).outcome == "dropped"


def test_a_vxlan_next_hop_group_spreads() -> None:
    from netpath.model.snapshot import NextHopObject
    from tests.predict.build import Overlay

    made = Overlay()
    made.node1.fdb_entries = [entry for entry in made.node1.fdb_entries if entry.destination is None]
    made.node1.nexthops = [
        NextHopObject(1, gateway="192.168.7.2", fdb=True),
        NextHopObject(2, gateway="192.168.7.3", fdb=True),
        NextHopObject(9, group=((1, 1), (2, 1)), fdb=True),
    ]
    made.node1.fdb("vx1", made.node2.mac("vx1"), nexthop_id=9)
    paths = made.net.predict(made.pod1.flow("10.2.0.2")).paths
    assert sorted((path.outcome, path.share) for path in paths) == [("delivered", 0.5), ("dropped", 0.5)]


def test_a_broadcast_is_uncertain_and_no_crash() -> None:
    net, a, _, _ = switched()
    for target in ("10.0.0.255", "255.255.255.255", "239.1.2.3"):
        prediction = net.predict(a.flow(target))
        assert prediction.paths and all(path.uncertain or path.outcome != "delivered" for path in prediction.paths)
