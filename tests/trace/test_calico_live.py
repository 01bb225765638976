"""Calico with real BIRDs: policy drops told by their rule, and BGP's failures followed by prediction and trace alike."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from netpath import lab
from netpath.cli.trace import exit_code
from netpath.cni import recognise
from netpath.discover import take
from netpath.lab import Lab, bird, policy, state
from netpath.model.path import Path
from netpath.trace.session import TraceRun
from tests.lab import kinds
from tests.lab.helpers import Space
from tests.lab.test_calico import ask, routes
from tests.trace.nat import as_predicted, trace

pytestmark = [pytest.mark.root, pytest.mark.ebpf, pytest.mark.timeout(300)]

BLOCK2 = "10.244.2.64/26"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Lab]:
    kinds.need("bird")
    with lab.running("calico-bgp", f"npt{os.urandom(3).hex()}", policy=True) as made:
        yield made


@pytest.fixture
def three() -> Iterator[Lab]:
    kinds.need("bird")
    with lab.running("calico-bgp", f"npt{os.urandom(3).hex()}", nodes=3, pods_per_node=1) as made:
        yield made


def end(made: Lab, pod: str, port: int | None = None) -> str:
    return f"netns:{made.name}-{pod}" + (f":{port}" if port is not None else "")


def between(made: Lab, source: str, target: str, port: int = policy.PORT, protocol: str = "udp", **options: object) -> TraceRun:
    return trace(end(made, source), end(made, target, port), protocol, **options)


def until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def stopped(done: TraceRun) -> Path:
    """The one way of a trace that ended early; the prediction ends at the same place for the same reason."""
    (path,) = [path for path in done.trace.paths if path.direction == "forward"]
    assert (done.trace.outcome, done.trace.completeness.verdict) == ("dropped", "COMPLETE"), done.trace
    (predicted,) = [path for path in done.trace.prediction.paths if path.direction == "forward"]
    assert predicted.outcome == "dropped"
    assert [(hop.netns, hop.device, hop.direction) for hop in path.hops] == [
        (hop.netns, hop.device, hop.direction) for hop in predicted.hops
    ]
    assert {hop.status for hop in path.hops} == {"observed"}
    assert path.drop is not None and predicted.drop is not None
    assert (path.drop.hop, path.drop.reason) == (predicted.drop.hop, predicted.drop.reason)
    assert exit_code(done.trace, None, None) == 1
    assert exit_code(done.trace, "dropped", None) == 0
    return path


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_policy_lets_its_clients_through(guarded: Lab, protocol: str) -> None:
    (forward,), _ = as_predicted(between(guarded, "pod1a", "pod2b", protocol=protocol))
    assert forward.hops[-1].netns.name == f"{guarded.name}-pod2b"
    # Who is not selected is not guarded.
    as_predicted(between(guarded, "pod1b", "pod2a", protocol=protocol))


@pytest.mark.parametrize(
    ("source", "port", "protocol"),
    [("pod1a", 7071, "udp"), ("pod1b", 7070, "udp"), ("pod1b", 7070, "tcp"), ("pod2a", 7071, "tcp")],
    ids=["other port", "not a client", "not a client, tcp", "same node"],
)
def test_a_policy_drop_names_its_rule(guarded: Lab, source: str, port: int, protocol: str) -> None:
    drop = stopped(between(guarded, source, "pod2b", port, protocol)).drop
    assert drop is not None and drop.rule is not None
    assert drop.reason == "NETFILTER_DROP"
    rule = drop.rule
    assert rule.chain is not None and rule.chain.startswith("cali-tw-cali") and rule.table == "filter"
    assert '--comment "Drop if no policies passed packet"' in rule.text
    # It is the very rule that the kernel has.
    assert rule.text in Space(guarded.node("node2").netns).run("iptables-nft-save").splitlines()


def test_an_address_that_is_not_the_pods_is_dropped_by_the_raw_tables_rule(guarded: Lab) -> None:
    """felix lets a pod send from where the node would answer it only."""
    pod = Space(f"{guarded.name}-pod1a")
    pod.run("ip", "addr", "add", "10.99.0.1/32", "dev", "lo")
    try:
        drop = stopped(trace(f"{end(guarded, 'pod1a')}@10.99.0.1", end(guarded, "pod2a", policy.PORT), "udp")).drop
    finally:
        pod.run("ip", "addr", "del", "10.99.0.1/32", "dev", "lo")
    assert drop is not None and drop.rule is not None and drop.device is not None
    assert (drop.reason, drop.rule.table, drop.rule.chain) == ("NETFILTER_DROP", "raw", "cali-PREROUTING")
    assert "-m rpfilter --validmark --invert" in drop.rule.text and drop.device.name.startswith("cali")


def test_policy_chains_are_evidence(guarded: Lab) -> None:
    snapshot = take(only=[Space(name).inode for name in guarded.namespaces])
    (found,) = recognise(snapshot)[guarded.node("node1").netns]
    assert (found.cni, found.mode) == ("calico", "bgp")
    assert any("chain cali-" in line for line in found.evidence), found.evidence


def daemon(made: Lab, node: str) -> state.Process:
    stored = state.load(made.name)
    assert stored is not None
    return next(process for process in stored.processes if process.role == f"bird {node}")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_bird_that_ends_takes_its_routes_along(three: Lab, how: signal.Signals) -> None:
    """The block is then nobody's: packets go to the default gateway, which nobody is."""
    as_predicted(between(three, "pod1a", "pod2a"))
    process = daemon(three, "node2")
    assert state.is_alive(process)
    os.kill(process.pid, how)
    until(lambda: BLOCK2 not in routes(three, "node1") and BLOCK2 not in routes(three, "node3"))
    path = stopped(between(three, "pod1a", "pod2a", timeout=5.0))
    last = path.hops[-1]
    assert (last.netns.name, last.direction) == (three.node("node1").netns, "rx")
    assert path.drop is not None and path.drop.reason == "NEIGH_FAILED"
    assert "192.168.50.1" in path.drop.cause
    # The others do not notice.
    as_predicted(between(three, "pod1a", "pod3a"))


def configure(made: Lab, node: str, block: str | None) -> None:
    """Give a node's BIRD another static route, or none, and have it read that."""
    place = bird.folder(made.name) / node / "bird.conf"
    lines = [line for line in place.read_text().splitlines() if not line.startswith("protocol static ")]
    if block is not None:
        lines.append(f"protocol static {{ ipv4; route {block} blackhole; }}")
    place.write_text("\n".join((*lines, "")))
    assert "Reconfigur" in ask(made, node, "configure")


def test_a_block_that_moves_is_followed(three: Lab) -> None:
    """node3 takes over node2's block without its pods: packets go there, and end in its blackhole."""
    as_predicted(between(three, "pod1a", "pod2a"))
    configure(three, "node2", None)
    configure(three, "node3", BLOCK2)
    address = three.node("node3").address
    until(lambda: routes(three, "node1").get(BLOCK2) == ("unicast", address))
    until(lambda: routes(three, "node3").get(BLOCK2) == ("blackhole", None))
    path = stopped(between(three, "pod1a", "pod2a"))
    last = path.hops[-1]
    assert (last.netns.name, last.device.name, last.direction) == (three.node("node3").netns, "eth0", "rx")
    assert path.drop is not None and path.drop.cause is not None
    assert "blackhole" in path.drop.cause and BLOCK2 in path.drop.cause


def test_a_next_hop_that_dies_is_told_while_its_route_is_there(three: Lab) -> None:
    """Nobody answers for the next hop, and BGP's hold time runs: the route still stands, its neighbour does not."""
    as_predicted(between(three, "pod1a", "pod2a"))
    Space(three.node("node2").netns).run("ip", "link", "set", "eth0", "down")
    address = three.node("node2").address
    Space(three.node("node1").netns).run("ip", "neigh", "flush", "dev", "eth0", "to", address)
    assert routes(three, "node1")[BLOCK2] == ("unicast", address)
    path = stopped(between(three, "pod1a", "pod2a", timeout=5.0))
    assert path.hops[-1].netns.name == three.node("node1").netns
    assert path.drop is not None and path.drop.reason == "NEIGH_FAILED"
    assert address in path.drop.cause


def test_cross_subnet_uses_the_tunnel_between_subnets_only() -> None:
    """node1 and node2 share a subnet, node3 is behind a router: 50 bytes more to the one, none to the other."""
    with lab.running("calico-crosssubnet", f"npt{os.urandom(3).hex()}", nodes=3, pods_per_node=1) as made:
        assert [node.address for node in made.nodes] == ["192.168.50.11", "192.168.50.12", "192.168.51.13"]
        for target, added, tunnels in (("pod2a", [], 0), ("pod3a", [50, -50], 2)):
            (forward,), (back,) = as_predicted(between(made, "pod1a", target))
            for path in (forward, back):
                assert [stage.bytes for stage in path.stages if stage.stage in ("encap", "decap")] == added
                assert [hop.device.name for hop in path.hops].count("vxlan.calico") == tunnels
            # The router is a step of its own: the outer packet's time to live falls there.
            assert ([hop.device.name for hop in forward.hops if hop.netns.name.endswith("-fabric")] == ["port1", "port2"]) == (
                not added
            )
        snapshot = take(only=[Space(name).inode for name in made.namespaces])
        (found,) = recognise(snapshot)[made.node("node1").netns]
        assert (found.cni, found.mode) == ("calico", "vxlan+crosssubnet")
