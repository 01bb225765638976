"""A packet's way on hand-made snapshots: devices, lengths, TTLs, headers, endings."""

from __future__ import annotations

import pytest

from netpath.model.packet import Ethernet, Ipv4, Ipv6, Udp, VxlanHeader
from netpath.model.path import Path
from netpath.predict import predict, predict_reply
from netpath.predict.engine import no_rules
from tests.predict.build import Build, Ns, Overlay, hops

WAY = [
    "pod1.eth0.tx",
    "node1.veth0.rx",
    "node1.br0.rx",
    "node1.vx1.tx",
    "node1.up0.tx",
    "fabric.p0.rx",
    "fabric.p1.tx",
    "node2.up0.rx",
    "node2.vx1.rx",
    "node2.br0.tx",
    "node2.veth0.tx",
    "pod2.eth0.rx",
]


@pytest.mark.parametrize("family", [4, 6])
def test_the_way_across_an_overlay(family: int) -> None:
    made = Overlay(family)
    path = made.path()
    assert path.outcome == "delivered" and path.share == 1.0 and not path.uncertain
    assert hops(path) == WAY
    assert [hop.index for hop in path.hops] == list(range(1, 13))
    assert all(hop.status == "predicted" for hop in path.hops)
    inner = 64 + 8 + (20 if family == 4 else 40)
    assert [hop.ip_length for hop in path.hops] == [inner] * 4 + [inner + 50] * 4 + [inner] * 4
    assert [hop.length for hop in path.hops] == [hop.ip_length + 14 for hop in path.hops]
    assert path.delivery is not None and path.delivery.to == "socket" and path.delivery.netns.name == "pod2"


def test_ttls_and_headers() -> None:
    path = Overlay().path()
    ttls = [next(header for header in hop.headers if isinstance(header, Ipv4)).ttl for hop in path.hops]
    assert ttls == [64, 64, 64, 63, 64, 64, 64, 64, 63, 62, 62, 62]
    outer = path.hops[5].headers
    assert [type(header) for header in outer] == [Ethernet, Ipv4, Udp, VxlanHeader, Ethernet, Ipv4, Udp]
    assert outer[1] == Ipv4("192.168.7.1", "192.168.7.2", ttl=64, length=142, df=False, tos=0)
    assert outer[2] == Udp(None, 8472)
    assert outer[3] == VxlanHeader(1)
    inner = outer[5]
    assert isinstance(inner, Ipv4) and (inner.src, inner.dst, inner.ttl) == ("10.1.0.2", "10.2.0.2", 63)


def test_mac_addresses_on_the_way() -> None:
    made = Overlay()
    path = made.path()
    first = path.hops[0].headers[0]
    assert first == Ethernet(made.pod1.mac("eth0"), made.node1.mac("br0"))
    assert path.hops[3].headers[0] == Ethernet(made.node1.mac("vx1"), made.node2.mac("vx1"))


def test_stages_name_what_lies_between() -> None:
    path = Overlay().path()
    shown = {(stage.stage, stage.from_hop, stage.to_hop): stage for stage in path.stages}
    assert shown[("encap", 4, 5)].bytes == 50 and shown[("encap", 4, 5)].detail["vni"] == 1
    assert shown[("decap", 8, 9)].bytes == -50
    assert ("bridge", 6, 7) in shown and ("route", 3, 4) in shown and ("veth", 1, 2) in shown


def test_path_mtu_names_the_narrowest_hop() -> None:
    made = Overlay()
    prediction = made.net.predict(made.pod1.flow("10.2.0.2"))
    assert prediction.path_mtu is not None
    assert (prediction.path_mtu.ip, prediction.path_mtu.payload, prediction.path_mtu.limited_by_hop) == (1450, 1422, 1)
    made.node1.change("up0", mtu=1400)
    prediction = made.net.predict(made.pod1.flow("10.2.0.2"))
    assert prediction.path_mtu is not None and (prediction.path_mtu.ip, prediction.path_mtu.limited_by_hop) == (1350, 5)


def test_nodes_and_workloads_are_named() -> None:
    path = Overlay().path()
    assert [hop.node for hop in path.hops][:3] == ["node1", "node1", "node1"]
    assert path.hops[5].node == "fabric" and path.hops[-1].node == "node2"


def test_protocols() -> None:
    made = Overlay()
    echo = made.net.only(made.pod1.flow("10.2.0.2", "icmp"))
    assert echo.outcome == "delivered" and echo.delivery is not None and echo.delivery.to == "responder"
    tcp = made.path(protocol="tcp", payload=0)
    assert tcp.outcome == "delivered" and tcp.hops[0].ip_length == 52
    six = Overlay(6)
    assert six.net.only(six.pod1.flow("fd02::2", "icmp")).outcome == "delivered"


def test_same_bridge_goes_from_port_to_port() -> None:
    made = Overlay()
    third = made.net.ns("pod3")
    made.net.wire(third, "eth0", made.node1, "veth1", mtu=1450)
    third.addr("eth0", "10.1.0.3/24")
    made.node1.plug("br0", "veth1")
    path = made.net.only(made.pod1.flow("10.1.0.3"))
    assert hops(path) == ["pod1.eth0.tx", "node1.veth0.rx", "node1.veth1.tx", "pod3.eth0.rx"]
    assert path.delivery is not None and path.delivery.to == "local"  # the sockets of pod3 are not known


def test_loopback_is_a_tx_and_an_rx() -> None:
    made = Overlay()
    made.node1.listen("udp", 7777)
    for address in ("127.0.0.1", "10.1.0.1"):
        path = made.net.only(made.node1.flow(address))
        assert hops(path) == ["node1.lo.tx", "node1.lo.rx"] and path.outcome == "delivered"


def test_the_reply_comes_back_the_same_way() -> None:
    made = Overlay()
    snapshot, flow = made.net.snapshot(), made.pod1.flow("10.2.0.2")
    (forward,) = predict(snapshot, flow, evaluators=no_rules).paths
    (back,) = predict_reply(snapshot, flow, forward, evaluators=no_rules).paths
    assert back.direction == "return" and back.outcome == "delivered"
    swapped = [text.replace("1.", "#.").replace("2.", "1.").replace("#.", "2.") for text in hops(back)]
    assert len(swapped) == len(WAY) and hops(back)[0] == "pod2.eth0.tx" and hops(back)[-1] == "pod1.eth0.rx"


def test_a_tunnel_in_another_namespace_than_its_underlay() -> None:
    """A VXLAN device that was made in one namespace and moved to another still sends from the first."""
    net = Build()
    a, b, inner = net.ns("a"), net.ns("b"), net.ns("inner")
    net.wire(a, "e0", b, "e0")
    a.addr("e0", "192.0.2.1/24")
    b.addr("e0", "192.0.2.2/24").vxlan("vx", 7).addr("vx", "10.0.0.2/24")
    inner.vxlan("vx", 7, local="192.0.2.1", remote="192.0.2.2", lower_nsid=4).addr("vx", "10.0.0.1/24")
    inner.more["nsids"] = ((4, a.inode),)
    inner.neigh("vx", "10.0.0.2", b.mac("vx"), "PERMANENT")
    assert hops(net.only(inner.flow("10.0.0.2"))) == ["inner.vx.tx", "a.e0.tx", "b.e0.rx", "b.vx.rx"]


def test_ip_in_ip_adds_twenty_bytes() -> None:
    net = Build()
    a, b = net.ns("a", forward=True), net.ns("b", forward=True)
    net.wire(a, "e0", b, "e0")
    for ns, number in ((a, 1), (b, 2)):
        ns.addr("e0", f"192.0.2.{number}/24").tunnel("tunl0").addr("tunl0", f"10.{number}.0.1/32")
    a.route("10.2.0.0/24", via="192.0.2.2", dev="tunl0", onlink=True)
    path = net.only(a.flow("10.2.0.1"))
    assert hops(path) == ["a.tunl0.tx", "a.e0.tx", "b.e0.rx", "b.tunl0.rx"] and path.outcome == "delivered"
    assert [hop.ip_length for hop in path.hops] == [92, 112, 112, 92]
    assert path.hops[0].length == 92  # a device without a link layer


def vlan_pair() -> tuple[Build, Ns, Ns, Ns]:
    from netpath.model.snapshot import BridgeVlan

    net = Build()
    a, b, switch = net.ns("a"), net.ns("b"), net.ns("switch")
    net.wire(a, "e0", switch, "p0")
    net.wire(b, "e0", switch, "p1")
    a.addr("e0", "10.0.0.1/24")
    b.addr("e0", "10.0.0.2/24")
    switch.bridge("br", vlan_filtering=True)
    for port in ("p0", "p1"):
        switch.plug("br", port, vlans=(BridgeVlan(30, pvid=True, untagged=True),))
    return net, a, b, switch


def test_a_vlan_aware_bridge() -> None:
    from netpath.model.snapshot import BridgeVlan

    net, a, _, switch = vlan_pair()
    assert hops(net.only(a.flow("10.0.0.2"))) == ["a.e0.tx", "switch.p0.rx", "switch.p1.tx", "b.e0.rx"]
    switch.change("p1", vlans=(BridgeVlan(31, pvid=True, untagged=True),))
    path = net.only(a.flow("10.0.0.2"))
    assert path.outcome == "dropped" and path.drop is not None and path.drop.reason == "NEIGH_FAILED"


def test_a_frame_in_the_wrong_vlan_is_dropped_at_the_port() -> None:
    net, a, b, switch = vlan_pair()
    a.neigh("e0", "10.0.0.2", b.mac("e0"))
    switch.change("p0", vlans=())
    path = net.only(a.flow("10.0.0.2"))
    assert hops(path) == ["a.e0.tx", "switch.p0.rx"] and path.drop is not None
    assert "PVID" in path.drop.cause and path.drop.remedy is not None and "bridge vlan add dev p0" in path.drop.remedy


def test_a_vlan_device_on_a_bridge() -> None:
    from netpath.model.snapshot import BridgeVlan

    net, a, _, switch = vlan_pair()
    switch.vlan("gw", "br", 30).addr("gw", "10.0.0.254/24")
    switch.change("br", vlans=(BridgeVlan(30),)).fdb("br", switch.mac("br"), state="permanent", master="br", vlan=30)
    path = net.only(a.flow("10.0.0.254"))
    assert hops(path) == ["a.e0.tx", "switch.p0.rx", "switch.br.rx", "switch.gw.rx"] and path.outcome == "delivered"
    back = net.only(switch.flow("10.0.0.1"))
    assert hops(back) == ["switch.gw.tx", "switch.br.tx", "switch.p0.tx", "a.e0.rx"]
    assert [type(header).__name__ for header in back.hops[1].headers][:2] == ["Ethernet", "Vlan"]
    assert back.hops[1].length == back.hops[0].length + 4
    assert path.hops[-1].note is not None and "VLAN" in path.hops[-1].note


def test_macvlan_siblings_meet_below() -> None:
    net = Build()
    host, one, two = net.ns("host"), net.ns("one"), net.ns("two")
    host.dev("e0", "physical")
    from netpath.model.snapshot import DeviceId

    for ns, number in ((one, 1), (two, 2)):
        ns.dev("mv", "macvlan", mode="bridge", peer=DeviceId(host.inode, host.index("e0"))).addr("mv", f"10.0.0.{number}/24")
    assert hops(net.only(one.flow("10.0.0.2"))) == ["one.mv.tx", "two.mv.rx"]
    path = net.only(one.flow("10.0.0.9"))
    assert path.outcome == "uncertain" and path.uncertain


def test_a_physical_device_leads_out_of_the_snapshot() -> None:
    net = Build()
    host = net.ns("host")
    host.dev("ens3", "physical").addr("ens3", "192.0.2.1/24").neigh("ens3", "192.0.2.9", "02:00:00:00:00:09")
    path = net.only(host.flow("192.0.2.9"))
    assert hops(path) == ["host.ens3.tx"] and path.outcome == "uncertain"
    assert path.delivery is not None and path.delivery.to == "wire"


def test_a_veth_whose_peer_is_not_in_the_snapshot() -> None:
    net = Build()
    host = net.ns("host")
    from netpath.model.snapshot import DeviceId

    host.dev("v0", "veth", peer=DeviceId(999, 2)).addr("v0", "192.0.2.1/24").neigh("v0", "192.0.2.9", "02:00:00:00:00:09")
    path = net.only(host.flow("192.0.2.9"))
    assert path.outcome == "uncertain" and "not have" in path.uncertain[0]


def test_programs_and_ipsec_make_a_step_uncertain_and_the_walk_goes_on() -> None:
    from netpath.model.snapshot import Program

    made = Overlay()
    made.node1.change("veth0", programs=(Program("tcx ingress", 5, "cil_from_container"),))
    path = made.path()
    assert path.outcome == "delivered" and hops(path) == WAY
    assert any("cil_from_container" in reason for reason in path.uncertain)
    assert path.hops[1].status == "uncertain" and path.hops[0].status == "predicted"
    other = Overlay()
    other.node2.more["xfrm_policies"] = 3
    assert any("IPsec" in reason for reason in other.path().uncertain)


def test_an_unknown_namespace_is_no_crash() -> None:
    made = Overlay()
    from netpath.model.packet import Flow

    (path,) = made.net.predict(Flow(4711, "10.2.0.2", "udp")).paths
    assert path.outcome == "uncertain" and path.hops == ()


def test_prediction_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, no socket, no clock: everything it knows is in the snapshot."""
    import builtins
    import os
    import socket
    import time

    made = Overlay()
    snapshot, flow = made.net.snapshot(), made.pod1.flow("10.2.0.2")
    predict(snapshot, flow, evaluators=no_rules)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("prediction is pure")

    for module, name in ((builtins, "open"), (os, "open"), (socket, "socket"), (time, "time"), (time, "monotonic")):
        monkeypatch.setattr(module, name, forbidden)
    assert predict(snapshot, flow, evaluators=no_rules).outcome == "delivered"


def test_the_default_lab_takes_less_than_ten_milliseconds() -> None:
    import time

    made = Overlay()
    snapshot, flow = made.net.snapshot(), made.pod1.flow("10.2.0.2")
    best = min(_timed(time.perf_counter, lambda: predict(snapshot, flow, evaluators=no_rules)) for _ in range(5))
    assert best < 0.01


def test_ten_thousand_routes() -> None:
    import time

    made = Overlay()
    for number in range(10_000):
        made.node1.route(
            f"100.{64 + number // 4096}.{number // 16 % 256}.{number % 16 * 16}/28", via="10.2.0.0", dev="vx1", onlink=True
        )
    snapshot, flow = made.net.snapshot(), made.pod1.flow("10.2.0.2")
    best = min(_timed(time.perf_counter, lambda: predict(snapshot, flow, evaluators=no_rules)) for _ in range(3))
    assert predict(snapshot, flow, evaluators=no_rules).outcome == "delivered"
    assert best < 0.5


def _timed(clock: object, action: object) -> float:
    assert callable(clock) and callable(action)
    started: float = clock()
    action()
    return float(clock() - started)


def test_nothing_hides_in_ipv6() -> None:
    path: Path = Overlay(6).path()
    first = path.hops[0].headers[1]
    assert isinstance(first, Ipv6) and first.length == 112 and first.ttl == 64
