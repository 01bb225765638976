"""Pods made by the real CNI plugins: each datapath recognised, each flow predicted, seen on every hop, and its rewrites told."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path as File
from typing import Any

import pytest

from netpath import lab
from netpath.cni import recognise
from netpath.lab import Lab
from netpath.lab.modes.kubenet import OUTSIDE
from tests.lab import kinds
from tests.netns import Netns
from tests.topology import ECHO_PORT, echo
from tests.trace.nat import as_predicted, rewrites, trace
from tests.trace.test_nat_live import agrees_with_tcpdump

pytestmark = [pytest.mark.root, pytest.mark.ebpf, pytest.mark.timeout(300)]

MASQUERADE, DNAT = "masquerade", "dnat"
NODE = {"node1": "192.168.50.11", "node2": "192.168.50.12"}


@dataclass(frozen=True)
class Flow:
    """A packet's way, by what it crosses on the nodes beside pods' veths, and by what is rewritten."""

    source: str
    target: str
    """``pod2a`` (its echo server), ``node1`` (its address), ``node1:PORT``, ``outside`` or ``127.0.0.1:PORT``."""
    devices: tuple[str, ...]
    translations: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ("udp", "tcp", "icmp")


@dataclass(frozen=True)
class Datapath:
    mode: str
    cni: tuple[str, str]
    flows: tuple[Flow, ...]


def among_pods(
    bridge: tuple[str, ...], across: tuple[str, ...] = (), to_node: tuple[str, ...] = (), tunnel: tuple[str, ...] = ()
) -> tuple[Flow, ...]:
    """Flows that every datapath has; `across` and `to_node` are the rewrites between pods of two nodes and to the other node."""
    between = (*tunnel, "eth0", "eth0", *tunnel)
    return (
        Flow("pod1a", "pod1b", (), protocols=("udp",)),
        Flow("pod1a", "pod2a", (*bridge, *between, *bridge), across),
        Flow("pod1a", "node1", bridge, protocols=("icmp",)),
        Flow("pod1a", "node2", (*bridge, "eth0", "eth0"), to_node, protocols=("icmp",)),
        Flow("node1", "pod1b", bridge, protocols=("icmp",)),
        Flow("node1", "pod2b", (*between, *bridge), protocols=("tcp",)),
    )


def host_port(source: str, target: str, devices: tuple[str, ...], *translations: str) -> Flow:
    return Flow(source, target, devices, translations, ("tcp" if target.endswith("12345") else "udp",))


OUT = ("tcp", "icmp")
DATAPATHS = (
    Datapath(
        "cni-bridge",
        ("bridge", "ipmasq"),
        (
            *among_pods(("cni0",), (MASQUERADE,), (MASQUERADE,)),
            host_port("node2", "node1:12346", ("eth0", "eth0", "cni0"), DNAT),
            host_port("node2", "node1:12345", ("eth0", "eth0", "cni0"), DNAT),
            host_port("pod2b", "node1:12346", ("cni0", "eth0", "eth0", "cni0"), MASQUERADE, DNAT),
            host_port("pod2b", "node1:12345", ("cni0", "eth0", "eth0", "cni0"), MASQUERADE, DNAT),
            host_port("pod1b", "node1:12346", (), DNAT, MASQUERADE),
            host_port("pod1a", "node1:12346", (), DNAT, MASQUERADE),
            host_port("node1", "node1:12346", ("cni0",), DNAT),
            host_port("node1", "127.0.0.1:12346", ("cni0",), DNAT, MASQUERADE),
        ),
    ),
    Datapath("ptp", ("ptp", "routed"), among_pods(())),
    Datapath(
        "kubenet",
        ("kubenet", "bridge"),
        (*among_pods(("cbr0",), (), (MASQUERADE,)), Flow("pod1a", "outside", ("cbr0", "eth0"), (MASQUERADE,), OUT)),
    ),
    Datapath("canal", ("canal", "vxlan"), among_pods((), tunnel=("flannel.1",), to_node=(MASQUERADE,))),
    Datapath("gke", ("gke", "ptp"), (*among_pods(()), Flow("pod1a", "outside", ("eth0",), (MASQUERADE,), OUT))),
)
CASES = [
    pytest.param(datapath, flow, protocol, id=f"{datapath.mode}-{flow.source}-{flow.target}-{protocol}")
    for datapath in DATAPATHS
    for flow in datapath.flows
    for protocol in flow.protocols
]


@pytest.fixture(scope="module")
def labs() -> Iterator[dict[str, Lab]]:
    """Labs by mode, made when first asked for."""
    made: dict[str, Lab] = {}
    try:
        yield made
    finally:
        for each in made.values():
            lab.down(each.name)


def of_mode(labs: dict[str, Lab], mode: str) -> Lab:
    if mode in kinds.NEEDS:
        kinds.need(kinds.NEEDS[mode])
    if mode not in labs:
        labs[mode] = lab.up(mode, f"npt{os.urandom(3).hex()}")
    return labs[mode]


def ends(made: Lab, flow: Flow, protocol: str) -> tuple[str, str]:
    """Both ends, named by their namespaces: other labs may hold the same addresses."""
    source = f"netns:{made.name}-{flow.source}"
    target, _, port = flow.target.partition(":")
    if target == "127.0.0.1":
        return source, flow.target
    if target == "outside":
        target, address, port = "fabric", str(OUTSIDE), str(ECHO_PORT)
    elif target in NODE:
        address = NODE[target]
    else:
        address, port = made.pod(target).address, "7070"
    return source, f"netns:{made.name}-{target}@{address}" + (f":{port}" if port and protocol != "icmp" else "")


@pytest.mark.parametrize(("datapath", "flow", "protocol"), CASES)
def test_each_flow_is_predicted_and_seen(labs: dict[str, Lab], datapath: Datapath, flow: Flow, protocol: str) -> None:
    made = of_mode(labs, datapath.mode)
    with echo([(Netns(f"{made.name}-fabric"), str(OUTSIDE))] if flow.target == "outside" and protocol != "icmp" else []):
        done = trace(*ends(made, flow, protocol), protocol)
    (forward,), (back,) = as_predicted(done)
    (predicted,) = done.trace.prediction.paths
    assert [(hop.netns, hop.device, hop.direction) for hop in forward.hops] == [
        (hop.netns, hop.device, hop.direction) for hop in predicted.hops
    ]
    nodes = {node.netns for node in made.nodes}
    crossed = [
        hop.device.name for hop in forward.hops if hop.netns.name in nodes and not hop.device.name.startswith(("veth", "cali"))
    ]
    # From one port to another of a bridge: with a neighbour that is not fresh the packet is sent by the bridge itself (br_netfilter).
    turned = not flow.devices and DNAT in flow.translations
    assert crossed == list(flow.devices) or (turned and crossed == ["cni0"])
    assert [kind for kind, _ in rewrites(forward)] == list(flow.translations)
    assert sorted(kind for kind, _ in rewrites(back)) == sorted(flow.translations)
    # The one tunnel adds its headers and takes them away again; nothing else adds anything.
    changes = [
        after.ip_length - before.ip_length for before, after in pairwise(forward.hops) if after.ip_length != before.ip_length
    ]
    assert changes == ([50, -50] if "flannel.1" in flow.devices else [])


@pytest.mark.parametrize("datapath", DATAPATHS, ids=lambda datapath: datapath.mode)
def test_each_datapath_is_recognised(labs: dict[str, Lab], datapath: Datapath) -> None:
    made = of_mode(labs, datapath.mode)
    done = trace(f"netns:{made.name}-pod1a", f"netns:{made.name}-pod2a:7777", count=1)
    found = recognise(done.snapshot, done.index)
    for node in made.nodes:
        (known,) = found[node.netns]
        assert (known.cni, known.mode) == datapath.cni
        assert known.confidence >= 0.7 and len(known.evidence) >= 2, known
    # The cloud's router has routes over veths too, and is no node of any kind.
    assert found.get(f"{made.name}-fabric", ()) == ()


@pytest.mark.parametrize(
    ("mode", "source", "target"),
    [
        ("cni-bridge", "pod1a", "pod2a"),
        ("cni-bridge", "pod2b", "node1:12346"),
        ("cni-bridge", "node1", "127.0.0.1:12346"),
        ("ptp", "pod1a", "pod1b"),
        ("kubenet", "pod1a", "pod2a"),
        ("gke", "pod1a", "pod2a"),
        ("canal", "pod1a", "pod2a"),
    ],
)
def test_tcpdump_on_every_device_agrees(labs: dict[str, Lab], mode: str, source: str, target: str, tmp_path: File) -> None:
    made = of_mode(labs, mode)
    agrees_with_tcpdump(made, *ends(made, Flow(source, target, ()), "udp"), tmp_path)


@pytest.mark.parametrize("mode", ["kubenet", "gke"])
def test_a_route_that_the_cloud_lacks(mode: str) -> None:
    """The nodes can't know: the packet ends in the router, and there netpath says so."""
    kinds.need("plugins")
    with lab.running(mode, f"npt{os.urandom(3).hex()}") as made:
        Netns(f"{made.name}-fabric").ip("route", "del", "10.244.2.0/24")
        done = trace(f"netns:{made.name}-pod1a", f"netns:{made.name}-pod2a:7777", round_trip=False)
        (path,) = done.trace.paths
        assert (done.trace.outcome, done.trace.diverged) == ("dropped", False)
        assert path.hops[-1].netns.name == f"{made.name}-fabric" and {hop.status for hop in path.hops} == {"observed"}
        assert path.drop is not None and path.drop.reason == "IP_INNOROUTES" and path.drop.remedy


def test_a_forwarding_policy_beside_the_firewall_plugin() -> None:
    """The plugin accepts what pods send and what answers them; what a policy of DROP leaves over is named with it."""
    kinds.need("plugins")
    with lab.running("cni-bridge", f"npt{os.urandom(3).hex()}") as made:
        node = Netns(made.node("node2").netns)
        subprocess.run(["nsenter", f"--net={node.path}", "iptables-nft", "-P", "FORWARD", "DROP"], check=True)
        as_predicted(trace(f"netns:{made.name}-pod2a", f"netns:{made.name}-node1@{NODE['node1']}", "icmp"))
        done = trace(f"netns:{made.name}-pod1a", f"netns:{made.name}-pod2a:7777", round_trip=False)
        (path,) = done.trace.paths
        assert (done.trace.outcome, done.trace.diverged) == ("dropped", False)
        assert path.drop is not None and path.drop.rule is not None
        assert (path.drop.rule.chain, path.drop.rule.text) == ("FORWARD", "policy DROP")
        assert path.hops[-1].netns.name == node.name


def _silent(made: Lab) -> None:
    node, pod = Netns(made.node("node1").netns), made.pod("pod1a")
    device = next(word for word in node.run("ip", "-o", "route", "show", pod.address).split() if word.startswith("cali"))
    node.sysctl(f"net.ipv4.conf.{device}.proxy_arp", 0)
    Netns(pod.netns).run("ip", "neigh", "flush", "all")


@dataclass(frozen=True)
class Fault:
    """What is done to a lab, and where and how a packet then ends."""

    name: str
    mode: str
    inflict: Callable[[Lab], object]
    flow: Flow
    last: tuple[str, str] | None
    """Namespace and device of the last hop; None: it does not leave its pod."""
    cause: str
    options: dict[str, Any] = field(default_factory=dict)


FAULTS = (
    Fault(
        "hairpin off",
        "cni-bridge",
        lambda _: None,
        host_port("pod1a", "node1:12346", ()),
        ("node1", "cni0"),
        "hairpin mode is off",
        {"hairpin": False},
    ),
    Fault(
        "a pod's route is gone",
        "ptp",
        lambda made: Netns(made.node("node2").netns).ip("route", "del", "10.244.2.2/32"),
        Flow("pod1a", "pod2a", ()),
        ("node2", "eth0"),
        "nobody answers ARP for 192.168.50.1 on eth0",
    ),
    Fault(
        "loopback is not let out",
        "cni-bridge",
        lambda made: Netns(made.node("node1").netns).sysctl("net.ipv4.conf.cni0.route_localnet", 0),
        host_port("node1", "127.0.0.1:12346", ()),
        None,
        "net.ipv4.conf.cni0.route_localnet=0",
    ),
    Fault("proxy ARP off", "canal", _silent, Flow("pod1a", "pod2a", ()), None, "nobody answers ARP for 169.254.1.1 on eth0"),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_where_it_is_and_was_predicted(fault: Fault) -> None:
    kinds.need("plugins")
    with lab.running(fault.mode, f"npt{os.urandom(3).hex()}", **fault.options) as made:
        fault.inflict(made)
        done = trace(*ends(made, fault.flow, "udp"), count=1, round_trip=False, timeout=5.0)
        (path,), (predicted,) = done.trace.paths, done.trace.prediction.paths
        assert (done.trace.outcome, done.trace.prediction.outcome, done.trace.diverged) == ("dropped", "dropped", False)
        assert {hop.status for hop in path.hops} <= {"observed"}
        places = [(hop.netns.name.removeprefix(f"{made.name}-"), hop.device.name) for hop in path.hops]
        assert (places[-1] if places else None) == fault.last
        assert path.drop is not None and predicted.drop is not None and path.drop.reason == predicted.drop.reason
        assert fault.cause in (path.drop.cause or "") and path.drop.remedy


@pytest.mark.parametrize(("mode", "services"), [("cni-bridge", "nftables"), ("gke", "iptables-nft"), ("canal", "iptables-nft")])
def test_a_service_beside_the_plugins_rules(mode: str, services: str) -> None:
    """kube-proxy's DNAT, and what the datapath itself rewrites for an endpoint on another node."""
    kinds.need("plugins")
    with lab.running(mode, f"npt{os.urandom(3).hex()}", services=services) as made:
        forward, back = as_predicted(trace(f"netns:{made.name}-pod1a", "10.96.7.8:5353", count=6))
        for path in forward:
            away = path.hops[-1].netns.name == made.pod("pod2a").netns
            kinds_ = [kind for kind, _ in rewrites(path)]
            assert kinds_ == [DNAT, *([MASQUERADE] if away and mode == "cni-bridge" else [])], path.translations
        for path in back:
            assert "10.96.7.8:5353" in [item.after.src for item in path.translations if item.kind == DNAT]


def test_canal_with_calicos_policy() -> None:
    """The policy's chains are a sign of Calico's half, and name what they drop."""
    kinds.need("plugins")
    if shutil.which("ipset") is None:
        pytest.skip("no ipset")
    with lab.running("canal", f"npt{os.urandom(3).hex()}", policy=True) as made:
        target = f"netns:{made.name}-pod2b@{made.pod('pod2b').address}"
        (forward,), _ = as_predicted(trace(f"netns:{made.name}-pod1a", f"{target}:7070", "tcp"))
        assert "flannel.1" in [hop.device.name for hop in forward.hops]
        for source, port in (("pod1a", 7071), ("pod1b", 7070)):
            done = trace(f"netns:{made.name}-{source}", f"{target}:{port}", "tcp", count=1, round_trip=False)
            (path,) = done.trace.paths
            assert (done.trace.outcome, done.trace.diverged) == ("dropped", False)
            assert path.drop is not None and path.drop.rule is not None and (path.drop.rule.chain or "").startswith("cali-tw-")
            assert path.hops[-1].netns.name == made.node("node2").netns
        (known,) = recognise(done.snapshot, done.index)[made.node("node1").netns]
        assert (known.cni, known.mode) == ("canal", "vxlan") and any(line.startswith("chain cali-") for line in known.evidence)
