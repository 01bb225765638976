"""Virtual servers: who is asked, which backends may be chosen with what share, and where the packet goes then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from netpath.model.packet import Ipv4
from netpath.model.path import Path, Prediction
from netpath.model.snapshot import IpvsBackend, Namespace, Netfilter, VirtualServer, Xtables
from netpath.netfilter.types import Evaluator, HookContext, HookOutcome, PacketState
from netpath.predict import predict, predict_reply
from netpath.predict.ipvs import find, shares
from netpath.predict.packet import Packet
from netpath.predict.walker import rulesets
from tests.predict.build import Ns, Overlay, hops

VIP = "10.96.0.7"
TRACKING = (
    "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
    "-A POSTROUTING -m mark --mark 0x1 -j MASQUERADE\nCOMMIT\n"
)


def server(*backends: IpvsBackend, **more: Any) -> VirtualServer:
    settings: dict[str, Any] = {"family": 4, "protocol": "udp", "address": VIP, "port": 53, "scheduler": "rr", **more}
    return VirtualServer(backends=backends, **settings)


def backend(address: str, weight: int = 1, port: int = 7777, method: str = "masq") -> IpvsBackend:
    return IpvsBackend(address, port, weight, method)


def balanced(*servers: VirtualServer | None, rules: str = TRACKING) -> Overlay:
    """An overlay whose first node holds a service's address, as kube-proxy has it: on a dummy device that is down."""
    made = Overlay()
    node = made.node1
    node.dev("kube-ipvs0", "dummy", flags=("BROADCAST", "NOARP")).addr("kube-ipvs0", f"{VIP}/32")
    node.more["netfilter"] = Netfilter((Xtables(4, "nft", rules),))
    if None not in servers:
        node.more["ipvs"] = tuple(servers)
    third = made.net.ns("pod3")
    made.net.wire(third, "eth0", node, "veth1", mtu=1450)
    third.addr("eth0", "10.1.0.3/24").route("0.0.0.0/0", via="10.1.0.1", dev="eth0").listen("udp", 7777).listen("tcp", 7777)
    node.plug("br0", "veth1")
    return made


def ask(made: Overlay, source: Ns | None = None, **more: Any) -> Prediction:
    flow = replace((source or made.pod1).flow(VIP, **more), dport=53)
    return predict(made.net.snapshot(), flow, evaluators=rulesets)


def test_every_backend_with_its_share() -> None:
    made = balanced(server(backend("10.1.0.3"), backend("10.2.0.2"), backend("10.9.9.9", weight=0)))
    prediction = ask(made)
    assert prediction.outcome == "delivered"
    ways = {path.translations[0].after.dst: path for path in prediction.paths}
    assert {target: path.share for target, path in ways.items()} == {"10.1.0.3:7777": 0.5, "10.2.0.2:7777": 0.5}
    near, far = ways["10.1.0.3:7777"], ways["10.2.0.2:7777"]
    assert hops(near) == [
        "pod1.eth0.tx", "node1.veth0.rx", "node1.br0.rx", "node1.br0.tx", "node1.veth1.tx", "pod3.eth0.rx",
    ]  # fmt: skip
    assert hops(far)[:6] == ["pod1.eth0.tx", "node1.veth0.rx", "node1.br0.rx", "node1.vx1.tx", "node1.up0.tx", "fabric.p0.rx"]
    for path in prediction.paths:
        (item,) = path.translations
        assert (item.kind, item.reverse, item.hook, item.before.dst) == ("ipvs", False, "input", f"{VIP}:53")
        assert item.rule is not None and item.rule.table == "ipvs"
        assert item.rule.text == f"UDP {VIP}:53 rr -> {item.after.dst} Masq 1"
        assert not path.uncertain


def test_the_balancer_is_a_hop_of_its_own_for_the_ttl() -> None:
    path: Path
    (path,) = ask(balanced(server(backend("10.2.0.2")))).paths
    ttls = [[header.ttl for header in hop.headers if isinstance(header, Ipv4)][-1] for hop in path.hops]
    assert ttls[2:4] == [64, 63]
    (ended,) = ask(balanced(server(backend("10.2.0.2"))), ttl=1).paths
    assert ended.outcome == "dropped" and ended.drop is not None and "TTL" in ended.drop.cause


def test_the_answer_is_translated_back_by_the_same_virtual_server() -> None:
    made = balanced(server(backend("10.2.0.2")))
    snapshot, flow = made.net.snapshot(), replace(made.pod1.flow(VIP), dport=53)
    (path,) = predict(snapshot, flow, evaluators=rulesets).paths
    (back,) = predict_reply(snapshot, flow, path, evaluators=rulesets).paths
    assert (back.outcome, hops(back)[-1]) == ("delivered", "pod1.eth0.rx")
    (item,) = back.translations
    assert (item.kind, item.reverse) == ("ipvs", True)
    assert (item.before.src, item.after.src) == ("10.2.0.2:7777", f"{VIP}:53")


def test_a_mark_set_before_has_it_masqueraded_after() -> None:
    rules = (
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
        f"-A PREROUTING -d {VIP}/32 -j MARK --set-xmark 0x4000/0x4000\n"
        "-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE\nCOMMIT\n"
    )
    (path,) = ask(balanced(server(backend("10.2.0.2")), rules=rules)).paths
    assert [item.kind for item in path.translations] == ["ipvs", "masquerade"]
    assert path.translations[1].after.src.startswith("10.1.0.0:")


def test_a_packet_of_the_nodes_own_is_balanced_at_output() -> None:
    made = balanced(server(backend("10.2.0.2")))
    (path,) = ask(made, made.node1).paths
    (item,) = path.translations
    assert (item.kind, item.hook, item.hop) == ("ipvs", "output", 1)
    # The service's address is the node's: it is what the route to itself gives as source.
    assert item.before.src == f"{VIP}:40000" and path.hops[0].device.name == "vx1"


def test_rules_are_asked_where_the_kernel_asks_them() -> None:
    log: list[tuple[str, str, str | None]] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, packet: PacketState, context: HookContext) -> tuple[HookOutcome, ...]:
            if self.name == "node1" and packet.protocol == "udp" and packet.dport in (53, 7777):
                log.append((context.hook, packet.dst, context.out_device))
            return (HookOutcome(1.0, "accept", packet),)

    def record(namespace: Namespace) -> Evaluator:
        return Recorder(namespace.name)

    made = balanced(server(backend("10.1.0.3")))
    predict(made.net.snapshot(), replace(made.pod1.flow(VIP), dport=53), evaluators=record)
    assert log == [
        ("prerouting", VIP, None),
        ("input", VIP, None),
        ("output", "10.1.0.3", "br0"),
        ("postrouting", "10.1.0.3", "br0"),
    ]


def test_nobody_with_a_weight_is_a_refusal_that_names_the_server() -> None:
    for backends in ((), (backend("10.2.0.2", weight=0),)):
        prediction = ask(balanced(server(*backends)))
        (path,) = prediction.paths
        assert prediction.outcome == "rejected" and path.drop is not None
        assert f"UDP {VIP}:53 rr" in path.drop.cause and path.drop.rule is not None and path.drop.remedy


def test_a_backend_on_the_node_itself_is_delivered_there() -> None:
    made = balanced(server(backend("10.1.0.1", port=7777)))
    made.node1.listen("udp", 7777)
    (path,) = ask(made).paths
    assert path.outcome == "delivered" and path.delivery is not None and path.delivery.netns.name == "node1"
    assert [item.kind for item in path.translations] == ["ipvs"]


def test_what_is_no_virtual_server_is_delivered_as_ever() -> None:
    made = balanced(server(backend("10.2.0.2"), port=54), server(backend("10.2.0.2"), protocol="tcp"))
    made.node1.listen("udp", 53)
    (path,) = ask(made).paths
    assert path.outcome == "delivered" and not path.translations and hops(path)[-1] == "node1.br0.rx"


def test_a_snapshot_without_virtual_servers_says_that_it_does_not_know() -> None:
    made = balanced(None)
    assert any("virtual servers of node1 are not in the snapshot" in why for path in ask(made).paths for why in path.uncertain)
    made.node1.more["ipvs"] = ()
    assert not any("virtual servers" in why for path in ask(made).paths for why in path.uncertain)


@pytest.mark.parametrize(
    ("scheduler", "flags", "word"),
    [
        ("rr", (), None),
        ("wrr", (), None),
        ("sh", (), "hash"),
        ("lc", (), "what each backend has to do"),
        ("rr", ("persistent",), "300 s"),
    ],
)
def test_shares_that_are_not_known_are_said_to_be(scheduler: str, flags: tuple[str, ...], word: str | None) -> None:
    two = server(backend("10.1.0.3"), backend("10.2.0.2", weight=3), scheduler=scheduler, flags=flags, timeout=300)
    prediction = ask(balanced(two))
    found = {path.translations[0].after.dst: path.share for path in prediction.paths}
    assert found["10.2.0.2:7777"] == (0.5 if scheduler == "rr" else 0.75)
    doubts = {why for path in prediction.paths for why in path.uncertain}
    assert (word is None and not doubts) or any(word in why for why in doubts if word)


def test_tunnelled_and_routed_backends_are_not_guessed() -> None:
    (path,) = ask(balanced(server(backend("10.2.0.2", method="tunnel")))).paths
    assert path.outcome == "uncertain" and any("tunnel" in why for why in path.uncertain)


def test_the_order_in_which_servers_are_found() -> None:
    by_mark = server(address=None, port=None, protocol=None, fwmark=7)
    any_port, exact = server(port=0), server()
    packet = Packet(4, "10.1.0.2", VIP, "udp", 40000, 53)
    assert find((any_port, exact, by_mark), packet, 7) is by_mark
    assert find((any_port, exact, by_mark), packet, 0) is exact
    assert find((any_port, by_mark), packet, 0) is any_port
    assert find((by_mark,), packet, 0) is None
    assert find((exact,), replace(packet, protocol="tcp"), 0) is None


def test_round_robin_counts_heads_and_the_others_weights() -> None:
    two = [backend("a", 1), backend("b", 3)]
    assert [share for share, _ in shares(server(scheduler="rr"), two)] == [0.5, 0.5]
    assert [share for share, _ in shares(server(scheduler="wrr"), two)] == [0.25, 0.75]
