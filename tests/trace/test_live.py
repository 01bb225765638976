"""Real packets through real devices: what `run` reports is what happened, and what `predict` said would."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import pytest

from netpath.model.path import Path, Trace
from netpath.trace.request import TraceRequest
from netpath.trace.session import TraceRun, run
from tests.netns import namespaces
from tests.topology import ECHO_PORT, Overlay, Shape, overlay
from tests.trace.capture import FIRST, captured, claimed

pytestmark = [pytest.mark.root, pytest.mark.ebpf]


def trace(overlay_: Overlay, *, node: int = 0, pod: int = 0, to: tuple[int, int] = (1, 0), **options: Any) -> TraceRun:
    source, target = overlay_.pods[node][pod].name, overlay_.pods[to[0]][to[1]].name
    port = options.pop("port", ECHO_PORT)
    destination = f"netns:{target}" + (f":{port}" if port is not None else "")
    settings = {"protocol": "udp", "count": 3, **options}
    return run(TraceRequest(source=f"netns:{source}", destination=destination, **settings))


def way(path: Path) -> list[tuple[str, str, str]]:
    return [(hop.netns.name, hop.device.name, hop.direction) for hop in path.hops]


def only(result: Trace) -> Path:
    (path,) = [path for path in result.paths if path.direction == "forward"]
    return path


def expected_way(made: Overlay, shape: Shape, pod_port: str = "c0") -> list[tuple[str, str, str]]:
    a, b = made.nodes
    return [
        (made.pods[0][0].name, "if0", "tx"),
        (a.name, pod_port, "rx"),
        (a.name, shape.bridge, "rx"),
        (a.name, shape.vxlan, "tx"),
        (a.name, shape.uplink, "tx"),
        (made.fabric.name, "p0", "rx"),
        (made.fabric.name, "p1", "tx"),
        (b.name, shape.uplink, "rx"),
        (b.name, shape.vxlan, "rx"),
        (b.name, shape.bridge, "tx"),
        (b.name, "c0", "tx"),
        (made.pods[1][0].name, "if0", "rx"),
    ]


@pytest.fixture(scope="module")
def plain() -> Iterator[Overlay]:
    with overlay() as made:
        yield made


@pytest.fixture(scope="module")
def six() -> Iterator[Overlay]:
    with overlay(Shape(family=6)) as made:
        yield made


@pytest.mark.parametrize("protocol", ["udp", "tcp", "icmp"])
@pytest.mark.parametrize("family", [4, 6])
def test_every_hop_is_observed_as_predicted(plain: Overlay, six: Overlay, protocol: str, family: int) -> None:
    made, shape = (plain, Shape()) if family == 4 else (six, Shape(family=6))
    result = trace(made, protocol=protocol, port=None if protocol == "icmp" else ECHO_PORT)
    path = only(result.trace)
    assert (result.trace.outcome, path.probes) == ("delivered", 3)
    assert result.trace.completeness.verdict == "COMPLETE", result.trace.completeness
    assert way(path) == expected_way(made, shape)
    assert [hop.status for hop in path.hops] == ["observed"] * 12
    assert [stage.bytes for stage in path.stages if stage.stage in ("encap", "decap")] == [50, -50]
    assert path.hops[4].ip_length - path.hops[3].ip_length == 50
    assert path.delivery is not None and path.delivery.netns.name == made.pods[1][0].name
    times = [hop.since_start_ns.p50 for hop in path.hops if hop.since_start_ns]
    assert times == sorted(times) and times[-1] > 1000


def test_the_way_back_is_a_path_of_its_own(plain: Overlay) -> None:
    result = trace(plain, round_trip=True)
    (back,) = [path for path in result.trace.paths if path.direction == "return"]
    assert back.outcome == "delivered"
    turned = [(netns, device, "rx" if direction == "tx" else "tx") for netns, device, direction in expected_way(plain, Shape())]
    assert way(back) == turned[::-1]
    assert {hop.status for hop in back.hops} == {"observed"}
    assert result.trace.round_trip_ns is not None
    one_way = only(result.trace).overhead
    assert one_way is not None and result.trace.round_trip_ns.mean > one_way["one_way_ns"].mean


def test_headers_are_complete_down_to_the_probe(plain: Overlay) -> None:
    path = only(trace(plain).trace)
    protos = [header.proto for header in path.hops[4].headers]
    assert protos == ["ethernet", "ipv4", "udp", "vxlan", "ethernet", "ipv4", "udp"]
    assert [header.vni for header in path.hops[4].headers if header.proto == "vxlan"] == [Shape().vni]  # type: ignore[union-attr]


def test_a_closed_port_is_rejected_where_it_arrived(plain: Overlay) -> None:
    for protocol in ("udp", "tcp"):
        result = trace(plain, protocol=protocol, port=4)
        path = only(result.trace)
        assert result.trace.outcome == result.trace.prediction.outcome == "rejected", protocol
        assert path.drop is not None and path.drop.hop == 12


def test_50_pods_on_a_node() -> None:
    with overlay(Shape(pods=50)) as made:
        result = trace(made, pod=49, to=(1, 37))
        path = only(result.trace)
        assert result.trace.outcome == "delivered"
        assert [hop.status for hop in path.hops] == ["observed"] * 12
        assert path.hops[1].device.name == "c49" and path.hops[10].device.name == "c37"


def _vlan_aware_bridges() -> bool:
    with namespaces(1) as (one,):
        made = subprocess.run(
            ["ip", "-n", one.name, "link", "add", "name", "br0", "type", "bridge", "vlan_filtering", "1"],
            capture_output=True,
            check=False,
        )
        return made.returncode == 0


def test_a_vlan_aware_bridge() -> None:
    if not _vlan_aware_bridges():
        pytest.skip("this kernel has no VLAN filtering on bridges")
    with overlay(Shape(vlan=77)) as made:
        result = trace(made)
        path = only(result.trace)
        assert result.trace.outcome == result.trace.prediction.outcome == "delivered"
        assert ("gw-vlan", "tx") in [(hop.device.name, hop.direction) for hop in path.hops]
        assert {hop.status for hop in path.hops} <= {"observed", "unprobed"}
        # The stack takes a VLAN's tag off below the hook: its device's rx is predicted, and said to be unwatched.
        assert [hop.device.name for hop in path.hops if hop.status == "unprobed"] == ["gw-vlan"]


def test_both_nodes_may_use_the_same_addresses() -> None:
    """Pods of one address on both nodes: a name says which is meant, and each reaches its own neighbour."""
    with overlay(Shape(pods=2)) as first, overlay(Shape(pods=2)) as second:
        for made in (first, second):
            result = trace(made, to=(0, 1))
            path = only(result.trace)
            assert result.trace.outcome == "delivered"
            assert [hop.status for hop in path.hops] == ["observed"] * len(path.hops)
            assert {hop.netns.name for hop in path.hops} == {made.pods[0][0].name, made.nodes[0].name, made.pods[0][1].name}


@dataclass(frozen=True)
class Fault:
    """A way to break the overlay: what is done, the reason that must be named, and the last hop before the end."""

    name: str
    inflict: Callable[[Overlay], None]
    reasons: frozenset[str]
    last: tuple[int, str, str]
    """Namespace (0 pod, 1 first node, 3 second node, 4 second pod), device, direction of the last hop; device "" for none."""
    options: dict[str, Any]
    outcome: str = "dropped"


def _no_fdb(made: Overlay) -> None:
    made.nodes[0].run("bridge", "fdb", "del", "02:77:00:00:00:02", "dev", "tunnel-x", "dst", "172.31.7.2")


def _no_route(made: Overlay) -> None:
    made.nodes[0].ip("route", "del", "10.78.3.0/24")


def _no_forwarding(made: Overlay) -> None:
    made.nodes[0].sysctl("net.ipv4.ip_forward", 0)


def _strict_rp_filter(made: Overlay) -> None:
    node = made.nodes[1]
    node.ip("route", "replace", "10.77.3.0/24", "dev", "up_0")
    node.sysctl("net.ipv4.conf.all.rp_filter", 1)


def _no_neighbour(made: Overlay) -> None:
    made.nodes[0].ip("neigh", "del", "10.99.0.2", "dev", "tunnel-x")


def _down(made: Overlay) -> None:
    made.nodes[1].ip("link", "set", "c0", "down")
    # The bridge has lost its carrier. Up to a second later the kernel says so, and throws away what waits for a neighbour then.
    deadline = time.monotonic() + 20
    while " state DOWN " not in made.nodes[1].ip("-o", "link", "show", "sw.itch"):
        assert time.monotonic() < deadline, "the bridge still has its carrier"
        time.sleep(0.01)


def _nothing(made: Overlay) -> None:
    pass


FAULTS = [
    Fault("missing FDB entry", _no_fdb, frozenset({"VXLAN_NO_REMOTE", "NO_TX_TARGET"}), (1, "tunnel-x", "tx"), {}),
    Fault("missing route", _no_route, frozenset({"IP_INNOROUTES"}), (1, "sw.itch", "rx"), {}),
    Fault("ip_forward=0", _no_forwarding, frozenset({"IP_INADDRERRORS"}), (1, "sw.itch", "rx"), {}),
    Fault("strict rp_filter", _strict_rp_filter, frozenset({"IP_RPFILTER"}), (3, "tunnel-x", "rx"), {}),
    Fault("TTL 1", _nothing, frozenset({"IP_INHDR", "TTL_EXPIRED"}), (1, "sw.itch", "rx"), {"ttl": 1}),
    Fault("too large, and not to be fragmented", _nothing, frozenset({"PKT_TOO_BIG"}), (0, "", ""), {"df": True, "size": 1500}),
    Fault("missing neighbour", _no_neighbour, frozenset({"NEIGH_FAILED"}), (1, "sw.itch", "rx"), {"timeout": 5.0}),
    # Its only port down, the bridge has no carrier, and nobody answers ARP behind it.
    Fault("down device", _down, frozenset({"NEIGH_FAILED"}), (3, "tunnel-x", "rx"), {"timeout": 5.0}),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_where_it_is_and_was_predicted(fault: Fault) -> None:
    with overlay() as made:
        if fault.name == "missing neighbour":
            # Nobody answers ARP on a nolearning VXLAN device; the first probe's queue holds until the kernel gives up.
            made.nodes[0].run("bridge", "fdb", "del", "02:77:00:00:00:02", "dev", "tunnel-x", "dst", "172.31.7.2")
        fault.inflict(made)
        result = trace(made, **fault.options)
        path = only(result.trace)
        places = {0: made.pods[0][0], 1: made.nodes[0], 3: made.nodes[1], 4: made.pods[1][0]}
        assert result.trace.outcome == fault.outcome, path.drop
        assert result.trace.prediction.outcome == fault.outcome
        assert path.drop is not None
        netns, device, direction = fault.last
        observed = [entry for entry, hop in zip(way(path), path.hops, strict=True) if hop.status == "observed"]
        assert (observed[-1] if observed else None) == ((places[netns].name, device, direction) if device else None)
        assert [hop.status for hop in path.hops] == ["observed"] * len(path.hops)
        if fault.reasons:
            assert path.drop.reason in fault.reasons
            (predicted,) = result.trace.prediction.paths
            assert predicted.drop is not None and predicted.drop.reason == path.drop.reason
        assert path.drop.cause and path.drop.remedy


def test_tcpdump_on_every_device_sees_the_same(tmp_path: File) -> None:
    """Devices, order and lengths, there and back, from captures in all namespaces at once."""
    with overlay() as made:
        everywhere = [*made.pods[0], made.nodes[0], made.fabric, made.nodes[1], *made.pods[1]]
        with captured({netns.inode: netns.path for netns in everywhere}, tmp_path) as captures:
            result = trace(made, count=1, round_trip=True)
        (back,) = [path for path in result.trace.paths if path.direction == "return"]
        assert len(back.hops) == 12
        assert captures.of(FIRST) == claimed(only(result.trace), back)


def test_unrelated_namespaces_do_not_matter(plain: Overlay) -> None:
    with namespaces(2):
        assert trace(plain).trace.outcome == "delivered"
