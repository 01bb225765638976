"""Rulesets on the way: the hooks are called where the kernel calls them, and what they do shows at the next hop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from netpath.model.packet import Ipv4, Udp
from netpath.model.snapshot import Namespace, Netfilter, Xtables
from netpath.netfilter.types import Evaluator, HookContext, HookOutcome, PacketState
from netpath.predict import predict, predict_reply
from netpath.predict.walker import rulesets
from tests.predict.build import Build, Ns, Overlay, hops


class Recorder:
    """An evaluator that lets everything pass and notes what it was asked."""

    def __init__(self, log: list[tuple[str, HookContext, PacketState]], name: str) -> None:
        self._log, self._name = log, name

    def run(self, packet: PacketState, context: HookContext) -> tuple[HookOutcome, ...]:
        self._log.append((self._name, context, packet))
        return (HookOutcome(1.0, "accept", packet),)


def asked(made: Overlay) -> list[tuple[str, HookContext, PacketState]]:
    log: list[tuple[str, HookContext, PacketState]] = []

    def record(namespace: Namespace) -> Evaluator:
        return Recorder(log, namespace.name)

    made.net.predict(made.pod1.flow("10.2.0.2"), record)
    return log


def test_every_hook_in_order() -> None:
    calls = [(name, context.hook, context.in_device, context.out_device) for name, context, _ in asked(Overlay())]
    assert calls == [
        ("pod1", "output", None, "eth0"),
        ("pod1", "postrouting", None, "eth0"),
        ("node1", "prerouting", "br0", None),
        ("node1", "forward", "br0", "vx1"),
        ("node1", "postrouting", None, "vx1"),
        ("node1", "output", None, "up0"),
        ("node1", "postrouting", None, "up0"),
        ("node2", "prerouting", "up0", None),
        ("node2", "input", "up0", None),
        ("node2", "prerouting", "vx1", None),
        ("node2", "forward", "vx1", "br0"),
        ("node2", "postrouting", None, "br0"),
        ("pod2", "prerouting", "eth0", None),
        ("pod2", "input", "eth0", None),
    ]


def test_bridged_packets_cross_the_hooks_only_when_the_sysctl_says_so() -> None:
    made = Overlay()
    assert not [name for name, _, _ in asked(made) if name == "fabric"]
    made.fabric.sysctl("net.bridge.bridge-nf-call-iptables", 1)
    seen = [
        (context.hook, context.in_device, context.physical_in, context.physical_out, context.bridged)
        for name, context, _ in asked(made)
        if name == "fabric"
    ]
    assert seen == [
        ("prerouting", "sw0", "p0", None, False),
        ("forward", "sw0", "p0", "p1", True),
        ("postrouting", None, "p0", "p1", True),
    ]


def test_prerouting_runs_once_for_what_a_bridge_passes_up() -> None:
    made = Overlay()
    made.node1.sysctl("net.bridge.bridge-nf-call-iptables", 1)
    hooks = [(context.hook, context.physical_in) for name, context, _ in asked(made) if name == "node1"]
    assert hooks[:3] == [("prerouting", "veth0"), ("forward", "veth0"), ("postrouting", "veth0")]


def with_rules(ns: Ns, text: str) -> None:
    ns.more["netfilter"] = Netfilter(xtables=(Xtables(4, "nft", text),))


def service() -> tuple[Overlay, str]:
    made = Overlay()
    with_rules(
        made.node1,
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
        "-A PREROUTING -d 10.96.0.10/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.2.0.2:7777\n"
        "-A POSTROUTING -s 10.1.0.0/24 -o vx1 -j MASQUERADE\nCOMMIT\n",
    )
    return made, "10.96.0.10"


def test_destination_and_source_rewritten_and_back() -> None:
    made, address = service()
    snapshot, flow = made.net.snapshot(), made.pod1.flow(address, dport=53)
    (path,) = predict(snapshot, flow).paths
    assert path.outcome == "delivered"
    assert next((each.hop, each.kind, each.before.dst, each.after.dst) for each in path.translations) == (
        4,
        "dnat",
        "10.96.0.10:53",
        "10.2.0.2:7777",
    )
    masquerade = path.translations[1]
    assert masquerade.kind == "masquerade" and masquerade.after.src.startswith("10.1.0.0:") and not masquerade.reverse
    assert masquerade.rule is not None and "MASQUERADE" in masquerade.rule.text
    header = next(header for header in path.hops[3].headers if isinstance(header, Ipv4))
    assert (header.src, header.dst) == ("10.1.0.0", "10.2.0.2")
    (back,) = predict_reply(snapshot, flow, path).paths
    assert back.outcome == "delivered" and hops(back)[-1] == "pod1.eth0.rx"
    last = back.hops[-1].headers
    assert (
        next(h for h in last if isinstance(h, Ipv4)).src == "10.96.0.10" and next(h for h in last if isinstance(h, Udp)).sport == 53
    )
    assert back.translations and all(each.reverse for each in back.translations)


def test_a_drop_names_its_rule() -> None:
    made = Overlay()
    with_rules(made.node2, "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n")
    path = made.net.only(made.pod1.flow("10.2.0.2"), rulesets)
    assert path.outcome == "dropped" and path.drop is not None and path.drop.reason == "NETFILTER_DROP"
    assert path.drop.rule is not None and hops(path)[-1] == "node2.vx1.rx"
    with_rules(
        made.node2,
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
        '-A FORWARD -d 10.2.0.2/32 -m comment --comment "no $(id) here" -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n',
    )
    path = made.net.only(made.pod1.flow("10.2.0.2"), rulesets)
    assert path.outcome == "rejected" and path.drop is not None and path.drop.rule is not None
    assert path.drop.remedy == (
        "ip netns exec node2 iptables -t filter -D FORWARD -d 10.2.0.2/32 -m comment --comment 'no $(id) here'"
        " -j REJECT --reject-with icmp-port-unreachable"
    )


def test_a_choice_of_endpoints_is_a_path_each() -> None:
    made = Overlay()
    with_rules(
        made.node1,
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
        "-A PREROUTING -d 10.96.0.10/32 -p udp -m statistic --mode random --probability 0.25 -j DNAT --to-destination 10.2.0.2:7777\n"
        "-A PREROUTING -d 10.96.0.10/32 -p udp -j DNAT --to-destination 10.2.0.2:9\nCOMMIT\n",
    )
    paths = made.net.predict(made.pod1.flow("10.96.0.10", dport=53), rulesets).paths
    assert [(path.outcome, round(path.share, 6)) for path in paths] == [("rejected", 0.75), ("delivered", 0.25)]


def test_output_dnat_is_routed_again() -> None:
    made = Overlay()
    with_rules(
        made.pod1,
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
        "-A OUTPUT -d 10.2.0.2/32 -j DNAT --to-destination 127.0.0.1\nCOMMIT\n",
    )
    path = made.net.only(made.pod1.flow("10.2.0.2"), rulesets)
    assert hops(path) == ["pod1.lo.tx", "pod1.lo.rx"]


def same_bridge(state: str | None) -> tuple[Build, Ns]:
    """A service address whose endpoint is a neighbour on the client's own bridge."""
    net = Build()
    client, server, node = net.ns("client"), net.ns("server"), net.ns("node", forward=True)
    net.wire(client, "e0", node, "v0")
    net.wire(server, "e0", node, "v1")
    node.bridge("br", "v0", "v1").addr("br", "10.0.0.1/24").sysctl("net.bridge.bridge-nf-call-iptables", 1)
    for ns, number in ((client, 2), (server, 3)):
        ns.addr("e0", f"10.0.0.{number}/24").route("0.0.0.0/0", via="10.0.0.1", dev="e0")
    with_rules(
        node,
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
        "-A PREROUTING -d 10.96.0.10/32 -p udp -j DNAT --to-destination 10.0.0.3:7777\nCOMMIT\n",
    )
    if state is not None:
        node.neigh("br", "10.0.0.3", server.mac("e0"), state)
    return net, client


@pytest.mark.parametrize("state", ["REACHABLE", "PERMANENT", "STALE", "DELAY", None])
def test_dnat_back_onto_the_same_bridge(state: str | None) -> None:
    """br_netfilter passes it from port to port where the neighbour is connected, else through the bridge device."""
    net, client = same_bridge(state)
    path = net.only(client.flow("10.96.0.10", dport=53), rulesets)
    through = [] if state in ("REACHABLE", "PERMANENT") else ["node.br.tx"]
    assert hops(path) == ["client.e0.tx", "node.v0.rx", *through, "node.v1.tx", "server.e0.rx"]


def test_a_user_space_proxy_is_followed() -> None:
    net = Build()
    client, node, box = net.ns("client"), net.ns("node", forward=True), net.ns("box")
    net.wire(client, "e0", node, "e0")
    net.wire(box, "e0", node, "v0")
    node.addr("e0", "192.0.2.1/24").bridge("docker0", "v0").addr("docker0", "172.17.0.1/16")
    client.addr("e0", "192.0.2.9/24")
    box.addr("e0", "172.17.0.2/16").route("0.0.0.0/0", via="172.17.0.1", dev="e0").listen("udp", 7071)
    node.listen(
        "udp",
        12346,
        process="docker-proxy",
        command="/usr/bin/docker-proxy -proto udp -host-ip 0.0.0.0 -host-port 12346 -container-ip 172.17.0.2 -container-port 7071",
    )
    snapshot, flow = net.snapshot(), client.flow("192.0.2.1", dport=12346)
    (path,) = predict(snapshot, flow).paths
    assert (
        hops(path) == ["client.e0.tx", "node.e0.rx", "node.docker0.tx", "node.v0.tx", "box.e0.rx"] and path.outcome == "delivered"
    )
    (proxy,) = path.translations
    assert (proxy.kind, proxy.hop, proxy.after.dst) == ("proxy", 3, "172.17.0.2:7071") and proxy.after.src == "172.17.0.1:*"
    assert any(stage.stage == "userspace" for stage in path.stages)
    (back,) = predict_reply(snapshot, flow, path).paths
    assert hops(back)[-2:] == ["node.e0.tx", "client.e0.rx"] and back.outcome == "delivered"


def test_a_tcp_handshake_ends_at_the_proxy() -> None:
    """The proxy connects to the container once the handshake is complete, which a SYN alone never makes it."""
    net = Build()
    client, node = net.ns("client"), net.ns("node")
    net.wire(client, "e0", node, "e0")
    node.addr("e0", "192.0.2.1/24")
    client.addr("e0", "192.0.2.9/24")
    node.listen("tcp", 80, process="docker-proxy", command="docker-proxy -container-ip 172.17.0.2 -container-port 8080")
    path = net.only(client.flow("192.0.2.1", "tcp", dport=80, payload=0))
    assert path.outcome == "delivered" and path.delivery is not None
    assert (path.delivery.to, path.delivery.process) == ("proxy", "docker-proxy") and hops(path)[-1] == "node.e0.rx"


def test_rulesets_that_could_not_be_read_are_a_doubt() -> None:
    made = Overlay()
    made.node1.more["netfilter"] = None
    path = made.net.only(made.pod1.flow("10.2.0.2"), rulesets)
    assert path.outcome == "delivered" and any("rulesets of node1" in reason for reason in path.uncertain)


def tun_nodes() -> tuple[Build, Ns, Ns]:
    net = Build()
    nodes = [net.ns(f"n{number}", forward=True) for number in (1, 2)]
    net.wire(nodes[0], "up", nodes[1], "up")
    for number, node in enumerate(nodes, 1):
        node.addr("up", f"192.0.2.{number}/24")
        node.dev("tunx", "tun", link_type="none", mac=None, flags=("NOARP", "UP", "LOWER_UP"), mtu=1472, mode="tun")
        node.addr("tunx", f"10.{number}.0.0/32").route("10.0.0.0/8", dev="tunx")
        node.dev("d0", "dummy").addr("d0", f"10.{number}.0.1/24")
        node.listen("udp", 8285, f"192.0.2.{number}", process="relayd")
    return net, nodes[0], nodes[1]


def test_a_tunnel_made_by_a_process() -> None:
    net, one, two = tun_nodes()
    two.listen("udp", 7777)
    path = net.only(one.flow("10.2.0.1"))
    assert hops(path) == ["n1.tunx.tx", "n1.up.tx", "n2.up.rx", "n2.tunx.rx"] and path.outcome == "delivered"
    assert [hop.ip_length for hop in path.hops] == [92, 120, 120, 92]
    assert [stage.stage for stage in path.stages].count("userspace") == 2
    ttls = [[h.ttl for h in hop.headers if isinstance(h, Ipv4)] for hop in path.hops]
    assert ttls == [[64], [64, 63], [64, 63], [62]]


def test_a_tunnel_whose_other_end_is_not_known() -> None:
    net, one, two = tun_nodes()
    two.sockets = []
    path = net.only(one.flow("10.2.0.1"))
    assert hops(path) == ["n1.tunx.tx"] and path.outcome == "uncertain" and "process" in path.uncertain[0]


def test_recordings_of_real_nodes() -> None:
    """One overlay of each kind from real components: hops as captured (all flows are compared in tests/golden)."""
    from netpath.discover.dump import read

    folder = Path(__file__).resolve().parents[1] / "recordings"
    for case, source, target in (("flannel-vxlan-kubeproxy-nft", "fcp1a", "10.244.2.2"), ("calico-bgp", "fcp1a", "10.42.99.129")):
        snapshot = read(folder / f"{case}.tar.xz")
        pod = next(namespace for namespace in snapshot.namespaces if namespace.name == source)
        flow = Overlay().pod1.flow(target, dport=7071, payload=32)
        prediction = predict(snapshot, replace(flow, netns=pod.inode))
        assert prediction.outcome == "delivered" and not prediction.paths[0].uncertain
        assert prediction.paths[0].hops[-1].netns.name == "fcp2a"


def test_a_mark_set_at_output_chooses_another_route() -> None:
    made = Overlay()
    made.net.wire(made.pod1, "eth1", made.node2, "direct", mtu=1450)
    made.pod1.addr("eth1", "198.51.100.1/24").rule(100, fwmark=5, table=66)
    made.node2.addr("direct", "198.51.100.2/24")
    made.pod1.route("0.0.0.0/0", via="198.51.100.2", dev="eth1", table=66)
    with_rules(
        made.pod1,
        "*mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
        ":POSTROUTING ACCEPT [0:0]\n-A OUTPUT -p udp -j MARK --set-xmark 0x5/0xffffffff\nCOMMIT\n",
    )
    path = made.net.only(made.pod1.flow("10.2.0.2"), rulesets)
    assert hops(path)[0] == "pod1.eth1.tx" and path.outcome == "delivered"
    source = next(header for header in path.hops[0].headers if isinstance(header, Ipv4)).src
    assert source == "10.1.0.2", "the source was chosen before the mark"
    assert hops(made.net.only(made.pod1.flow("10.2.0.2", protocol="tcp"), rulesets))[0] == "pod1.eth0.tx"
    made.pod1.routes = [route for route in made.pod1.routes if route.table != 66]
    made.pod1.route("0.0.0.0/0", type="unreachable", table=66)
    path = made.net.only(made.pod1.flow("10.2.0.2"), rulesets)
    assert path.drop is not None and path.drop.reason == "IP_OUTNOROUTES" and not path.hops
