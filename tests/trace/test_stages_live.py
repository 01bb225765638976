"""Stages of real packets, with rules that are really there."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence

import pytest

from netpath.cli.trace import exit_code
from netpath.ebpf import sys as bpf
from netpath.ebpf.tracer import Tracer
from netpath.measure.plan import LEAST_CALIBRATIONS, MOST_CALIBRATIONS, MeasureRequest
from netpath.measure.session import run as measure
from netpath.model import nonce as layout
from netpath.model.event import Boundary
from netpath.model.path import Path
from netpath.trace import calibrate
from netpath.trace.account import Unseen
from netpath.trace.request import TraceRequest
from netpath.trace.session import run
from tests.netns import Netns
from tests.topology import ECHO_PORT, Overlay, Shape, overlay

pytestmark = [pytest.mark.root, pytest.mark.ebpf]


@pytest.fixture(scope="module", params=[4, 6])
def made(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    with overlay(Shape(family=request.param)) as found:
        tool = "iptables" if request.param == 4 else "ip6tables"
        node = found.nodes[0]
        # Where it is on, bridged packets cross these hooks at the bridge's port already.
        with contextlib.suppress(FileNotFoundError):
            node.sysctl(f"net.bridge.bridge-nf-call-{tool}", 0)
        node.run(tool, "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
        node.run(tool, "-t", "nat", "-A", "POSTROUTING", "-p", "sctp", "-j", "ACCEPT")
        yield found


def traced(made: Overlay, protocol: str = "udp", **options: object) -> Path:
    port = "" if protocol == "icmp" else f":{ECHO_PORT}"
    names = made.pods[0][0].name, made.pods[1][0].name
    asked = TraceRequest(f"netns:{names[0]}", f"netns:{names[1]}{port}", protocol, count=3, **options)  # type: ignore[arg-type]
    result = run(asked).trace
    assert result.outcome == "delivered" and result.completeness.verdict == "COMPLETE", result.completeness
    (path,) = [path for path in result.paths if path.direction == "forward"]
    assert [hop.status for hop in path.hops] == ["observed"] * 12
    for hop in path.hops[1:]:
        inside = [stage.ns for stage in path.stages if stage.to_hop == hop.index == stage.from_hop + 1]
        assert hop.segment_ns is not None and {ns.count for ns in inside if ns} == {3}
        assert sum(ns.mean for ns in inside if ns) == pytest.approx(hop.segment_ns.mean)
    return path


def spent(path: Path, hop: int) -> list[str]:
    """The stages of the segment that ends at a hop."""
    return [stage.stage for stage in path.stages if stage.from_hop == hop - 1 and stage.to_hop == hop]


@pytest.mark.parametrize("protocol", ["udp", "tcp", "icmp"])
def test_a_routed_segment_is_split_by_what_is_registered(made: Overlay, protocol: str) -> None:
    path = traced(made, protocol)
    # cni0 rx -> the tunnel's tx on the node that has rules, and on the one that has none.
    assert spent(path, 4) == ["other", "conntrack", "nat", "route", "filter", "route", "nat", "other"]
    assert spent(path, 10) == ["other", "route", "other"]
    encap = [stage for stage in path.stages if stage.stage == "encap"]
    assert [(stage.from_hop, stage.bytes) for stage in encap] == [(4, 50)]
    assert path.overhead is not None and path.overhead["conntrack"]["ns"].mean > 0 < path.overhead["nat"]["ns"].mean
    whole = sum(stage.ns.mean for stage in path.stages if stage.from_hop and stage.ns)
    assert whole == pytest.approx(path.overhead["one_way_ns"].mean)


def test_stages_can_be_left_out(made: Overlay) -> None:
    path = traced(made, stages=False)
    assert spent(path, 4) == ["other"]
    assert path.overhead is not None and path.overhead["conntrack"] == {"ns": None, "share": None}


def test_two_runs_mark_the_same_hooks_at_once(made: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lets no two eBPF programs have one priority at a hook: the second run takes the next."""
    inside: list[Path] = []
    check = Tracer.self_check

    def second(tracer: Tracer) -> None:
        check(tracer)
        if not inside:
            monkeypatch.setattr(Tracer, "self_check", check)
            inside.append(traced(made))

    monkeypatch.setattr(Tracer, "self_check", second)
    first = traced(made)
    assert spent(first, 4) == spent(inside[0], 4) == ["other", "conntrack", "nat", "route", "filter", "route", "nat", "other"]


def test_without_such_links_hops_and_exit_code_are_as_ever(made: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bpf.link_netfilter

    def refuse(program: int, family: int, hook: int, priority: int) -> int:
        if abs(priority) == 1000:
            return real(program, family, hook, priority)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(bpf, "link_netfilter", refuse)
    names = made.pods[0][0].name, made.pods[1][0].name
    result = run(TraceRequest(f"netns:{names[0]}", f"netns:{names[1]}:{ECHO_PORT}", "udp", count=2)).trace
    assert result.completeness.verdict == "COMPLETE" and exit_code(result, None, None) == 0
    assert result.completeness.missing_hooks and all("shown as other" in text for text in result.completeness.missing_hooks)
    (path,) = result.paths
    assert spent(path, 4) == ["other"]


def test_marks_cost_other_packets_nothing_but_a_look(made: Overlay) -> None:
    """A datagram of the same size without the mark, and one of another size with it, leave no stamp."""
    node: Netns = made.nodes[0]
    family = 6 if ":" in made.address(0, 0) else 4
    nonce = layout.new_nonce()
    with Tracer() as tracer:
        tracer.load()
        marks = {node.path: (Boundary(family, "output", 7, 9),)}
        tracer.arm(nonce, count=5, tunnel_ports={}, payload=64, stages=marks)
        assert tracer.missing_stages == ()
        kind = socket.AF_INET6 if family == 6 else socket.AF_INET
        address = "::1" if family == 6 else "127.0.0.1"
        with node.socket(kind, socket.SOCK_DGRAM) as one, node.socket(kind, socket.SOCK_DGRAM) as other:
            other.bind((address, 0))
            other.settimeout(5)
            for payload in (bytes(64), layout.pack(nonce, 1, 65), layout.pack(nonce, 9, 64), layout.pack(nonce, 3, 64)):
                one.sendto(payload, other.getsockname())
                assert other.recv(100) == payload
        tracer.drain()
        (only,) = tracer.take_stamps()
    assert (only.netns, only.family, only.hook, only.priority, only.sequence) == (node.inode, family, "output", 7, 3)
    assert only.skb and 0 < only.cost_ns < 10**6


def test_marks_can_be_had_in_some_of_the_namespaces(made: Overlay) -> None:
    nonce = layout.new_nonce()
    nodes = made.nodes
    with Tracer() as tracer:
        tracer.load()
        marks = {node.path: (Boundary(4, "output", 7, 9),) for node in nodes}
        tracer.arm(nonce, count=9, tunnel_ports={}, payload=64, stages=marks)
        assert tracer.missing_stages == () and tracer.marks_by_namespace
        numbers = iter(range(1, 10))

        def marked() -> set[int]:
            """The namespaces in which a packet meets a mark."""
            for node in nodes:
                with node.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                    one.sendto(layout.pack(nonce, next(numbers), 64), ("127.0.0.1", 9))
            tracer.drain()
            return {stamp.netns for stamp in tracer.take_stamps()}

        assert marked() == {node.inode for node in nodes}
        tracer.mark([nodes[1].path])
        assert marked() == {nodes[1].inode}
        with tracer.without("stamp"):
            assert marked() == set()
        assert marked() == {nodes[1].inode}


def test_a_measurement_has_marks_in_a_part_of_the_way_at_a_time(made: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Collection[str] | None] = []
    real = Tracer.mark

    def mark(tracer: Tracer, paths: Collection[str] | None = None) -> None:
        asked.append(paths)
        real(tracer, paths)

    monkeypatch.setattr(Tracer, "mark", mark)
    names = made.pods[0][0].name, made.pods[1][0].name
    wanted = MeasureRequest(f"netns:{names[0]}", f"netns:{names[1]}:{ECHO_PORT}", "udp", count=120, rate=5000.0, flow="established")
    done = measure(wanted)
    turns = [frozenset(paths) for paths in asked if paths is not None]
    assert len(set(turns)) == 4 and not frozenset.intersection(*set(turns))
    # What events cost is found with all of them.
    assert asked.count(None) >= LEAST_CALIBRATIONS
    (path,) = done.trace.paths
    assert spent(path, 4) == ["other", "conntrack", "nat", "route", "filter", "route", "nat", "other"]
    assert spent(path, 10) == ["other", "route", "other"]
    counts = {stage.from_hop: stage.ns.count for stage in path.stages if stage.ns}
    assert path.probes and counts[4] < path.probes / 2 and counts[10] < path.probes / 2
    assert {hop.segment_ns.count for hop in path.hops if hop.segment_ns} == {path.probes}
    shares = done.series[0].stages
    assert done.series[0].one_way_ns is not None
    assert sum(share.ns for share in shares) == pytest.approx(done.series[0].one_way_ns.mean, rel=0.01)


@pytest.mark.parametrize(("protocol", "doubt", "turns"), [("udp", -1e9, LEAST_CALIBRATIONS), ("tcp", 1e9, MOST_CALIBRATIONS)])
def test_a_measurement_finds_on_the_path_what_events_cost_unseen(
    made: Overlay, protocol: str, doubt: float, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on until that is known well enough, and not for ever."""
    calls: list[Sequence[Mapping[str, Sequence[calibrate.Sample]]]] = []
    real = calibrate.estimate

    def estimate(given: Sequence[Mapping[str, Sequence[calibrate.Sample]]]) -> Unseen:
        calls.append(tuple(given))
        return Unseen(dict.fromkeys(real(given).ns, 1000.0), dict.fromkeys(real(given).ns, doubt))

    monkeypatch.setattr(calibrate, "estimate", estimate)
    source, target = made.pods[0][0].name, made.pods[1][0].name
    asked = MeasureRequest(f"netns:{source}", f"netns:{target}:{ECHO_PORT}", protocol, count=6, rate=2000.0, baseline=False)
    done = measure(asked)
    rounds = calls[-1]
    assert len(rounds) == turns
    complete = [each for each in rounds if each and all(each.values())]
    assert len(complete) > turns / 2
    for each in complete:
        kinds = {name: {kind for sample in samples for kind in sample.counts} for name, samples in each.items()}
        assert {"tx", "rx", "stamp"} <= kinds["all"] and "stamp" not in kinds["devices"]
        assert "tx" not in kinds["receptions"] and "rx" not in kinds["sends"]
    # What was found is in the cost of an event, and out of every time: 12 hops, the marks, half of what lies at the ends.
    assert done.trace.probe_cost.ns_per_event is not None and done.trace.probe_cost.ns_per_event > 1000
    overhead = done.trace.paths[0].overhead
    assert overhead is not None
    one_way = overhead["one_way_ns"]
    assert one_way.uncorrected_mean - one_way.mean > 1000 * 20
