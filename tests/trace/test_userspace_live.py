"""Datapaths that go through a process on each node: predicted, followed across the copy, and their time in user space told apart."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path as File

import pytest

from netpath import lab
from netpath.cli.trace import exit_code
from netpath.cni import recognise
from netpath.lab import Lab, state
from netpath.model.packet import Tcp, Udp
from netpath.model.path import Path
from netpath.trace.userspace import LAB_RELAY
from tests.netns import Netns
from tests.trace.nat import as_predicted, rewrites, trace
from tests.trace.test_nat_live import agrees_with_tcpdump

pytestmark = [pytest.mark.root, pytest.mark.ebpf, pytest.mark.timeout(300)]

NODE = {"node1": "192.168.50.11", "node2": "192.168.50.12"}
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17
PROTOCOLS = ("udp", "tcp", "icmp")


@dataclass(frozen=True)
class Datapath:
    mode: str
    cni: tuple[str, str]
    added: int
    """Bytes on the wire."""
    real: str
    """The component that the lab relay stands for."""
    ports: frozenset[int]


FLANNEL = Datapath("flannel-udp", ("flannel", "udp"), 28, "flanneld", frozenset({8285}))
WEAVE = Datapath("weave-sleeve", ("weave", "sleeve"), 62, "weaver", frozenset({6783}))
DATAPATHS = (FLANNEL, WEAVE)


@dataclass(frozen=True)
class Flow:
    source: str
    target: str
    relayed: bool
    translations: tuple[str, ...] = ()


FLOWS = (
    Flow("pod1a", "pod1b", False),
    Flow("pod1a", "pod2a", True),
    Flow("pod1a", "node1", False),
    Flow("pod1a", "node2", False, ("masquerade",)),
    Flow("node1", "pod1b", False),
    Flow("node1", "pod2b", True),
)
CASES = [
    pytest.param(datapath, flow, protocol, id=f"{datapath.mode}-{flow.source}-{flow.target}-{protocol}")
    for datapath in DATAPATHS
    for flow in FLOWS
    # Only pods have servers.
    for protocol in (PROTOCOLS if flow.target.startswith("pod") else ("icmp",))
]
modes = pytest.mark.parametrize("datapath", DATAPATHS, ids=lambda datapath: datapath.mode)


@pytest.fixture(scope="module")
def labs() -> Iterator[dict[str, Lab]]:
    made: dict[str, Lab] = {}
    try:
        yield made
    finally:
        for each in made.values():
            lab.down(each.name)


def of_mode(labs: dict[str, Lab], mode: str) -> Lab:
    if mode not in labs:
        labs[mode] = lab.up(mode, f"npt{os.urandom(3).hex()}")
    return labs[mode]


def ends(made: Lab, flow: Flow, protocol: str) -> tuple[str, str]:
    address = NODE[flow.target] if flow.target in NODE else made.pod(flow.target).address
    port = "" if protocol == "icmp" else ":7070"
    return f"netns:{made.name}-{flow.source}", f"netns:{made.name}-{flow.target}@{address}{port}"


def added(path: Path) -> list[int]:
    return [after.ip_length - before.ip_length for before, after in pairwise(path.hops) if after.ip_length != before.ip_length]


def crossings(path: Path) -> list[tuple[str, str | None, str]]:
    assert path.overhead is not None
    return [(each["netns"], each["process"], each["into"]) for each in path.overhead["userspace"]["boundary"]]


@pytest.mark.parametrize(("datapath", "flow", "protocol"), CASES)
def test_each_flow_is_predicted_and_seen(labs: dict[str, Lab], datapath: Datapath, flow: Flow, protocol: str) -> None:
    made = of_mode(labs, datapath.mode)
    done = trace(*ends(made, flow, protocol), protocol)
    (forward,), (back,) = as_predicted(done)
    (predicted,) = done.trace.prediction.paths
    assert done.trace.prediction.outcome == "delivered" and predicted.uncertain == ()
    assert [(hop.netns, hop.device, hop.direction, hop.ip_length) for hop in forward.hops] == [
        (hop.netns, hop.device, hop.direction, hop.ip_length) for hop in predicted.hops
    ]
    for path in (forward, back):
        assert added(path) == ([datapath.added, -datapath.added] if flow.relayed else [])
        assert path.overhead is not None
        user = path.overhead["userspace"]
        assert user["crossings"] == (2 if flow.relayed else 0)
        assert (user["ns"] is not None) == flow.relayed
        wrapped = [hop for hop in path.hops if sum(isinstance(header, Udp | Tcp) for header in hop.headers) > 1]
        if protocol != "icmp":
            assert bool(wrapped) == flow.relayed
        for hop in wrapped:
            outer = next(header for header in hop.headers if isinstance(header, Udp))
            assert outer.dport in datapath.ports
    assert [kind for kind, _ in rewrites(forward)] == list(flow.translations)
    label = [note for note in done.trace.notes if note.startswith(LAB_RELAY)]
    assert bool(label) == flow.relayed and all(f"not {datapath.real}:" in note for note in label)


@modes
def test_the_crossings_of_the_kernels_boundary(labs: dict[str, Lab], datapath: Datapath) -> None:
    """Into the kernel from the sender, out of it and back at each relay, and out of it to the server: six on the way, six back."""
    made = of_mode(labs, datapath.mode)
    one, two = (made.node(name).netns for name in ("node1", "node2"))
    flow = Flow("pod1a", "pod2a", True)
    relays = [(one, LAB_RELAY, "process"), (one, LAB_RELAY, "kernel"), (two, LAB_RELAY, "process"), (two, LAB_RELAY, "kernel")]
    sender, server = made.pod("pod1a").netns, made.pod("pod2a").netns
    (there,), (back,) = as_predicted(trace(*ends(made, flow, "udp")))
    assert crossings(there)[0] == (sender, None, "kernel") and crossings(there)[1:5] == relays
    assert crossings(there)[5][0] == server and crossings(there)[5][2] == "process" and len(crossings(there)) == 6
    assert len(crossings(back)) == 6 and crossings(back)[1:5] == [*relays[2:], *relays[:2]]
    # A handshake is the kernels' own work but for the two relays; the kernel answers an echo request by itself.
    (there,), (back,) = as_predicted(trace(*ends(made, flow, "tcp"), "tcp"))
    assert (len(crossings(there)), len(crossings(back))) == (5, 4)
    (there,), (back,) = as_predicted(trace(*ends(made, flow, "icmp"), "icmp"))
    assert len(crossings(there)) == 5 and crossings(back)[:4] == [*relays[2:], *relays[:2]]


@modes
def test_the_time_in_user_space_begins_and_ends_where_the_process_does(labs: dict[str, Lab], datapath: Datapath) -> None:
    """Sending: from the device to the relay's own LOCAL_OUT. Receiving: from its socket's being readable to the device."""
    made = of_mode(labs, datapath.mode)
    done = trace(*ends(made, Flow("pod1a", "pod2a", True), "udp"), count=5)
    (forward,), _ = as_predicted(done)
    wire = [hop.index for hop in forward.hops if hop.ip_length > forward.hops[0].ip_length]
    for between, size in (((wire[0] - 1, wire[0]), datapath.added), ((wire[-1], wire[-1] + 1), -datapath.added)):
        stages = [stage for stage in forward.stages if (stage.from_hop, stage.to_hop) == between]
        inside = [stage for stage in stages if stage.stage == "userspace"]
        assert inside and inside[0].detail["process"] == LAB_RELAY and sum(stage.bytes for stage in stages) == size
        assert all(stage.ns is not None and stage.ns.p50 > 0 for stage in inside)
        # The kernel's own work on the datagram is told apart from it: it comes after on the one side, before on the other.
        others = [stage for stage in stages if stage not in inside]
        assert others and (stages[-1] in others if size > 0 else stages[0] in others)
        hop = forward.hops[between[1] - 1].segment_ns
        total = sum(stage.ns.mean for stage in stages if stage.ns is not None)
        assert hop is not None and total == pytest.approx(hop.mean, abs=1)
    work = [stage.detail.get("work") for stage in forward.stages if stage.stage == "userspace"]
    assert work[-1] == "wake-up, receive and write"
    if datapath is FLANNEL:
        assert work == ["wake-up and read", "look-up and send", "wake-up, receive and write"]


@modes
def test_the_way_back_from_the_wire_ends_at_a_stopped_relay(datapath: Datapath) -> None:
    """A relay that does not run: the packet ends where it should have been read, and nothing is said to have arrived."""
    with lab.running(datapath.mode, f"npt{os.urandom(3).hex()}") as made:
        stored = state.load(made.name)
        assert stored is not None
        (relay,) = [process for process in stored.processes if process.role == f"{LAB_RELAY} node2"]
        as_predicted(trace(*ends(made, Flow("pod1a", "pod2a", True), "udp")))
        os.kill(relay.pid, signal.SIGSTOP)
        done = trace(*ends(made, Flow("pod1a", "pod2a", True), "udp"), count=1, round_trip=False, cold=True, timeout=1.0)
        (path,) = done.trace.paths
        assert path.outcome == "lost" and exit_code(done.trace, None, None) != 0
        assert path.hops[[hop.status for hop in path.hops].count("observed") - 1].device.name == "eth0"
        os.kill(relay.pid, signal.SIGCONT)
        as_predicted(trace(*ends(made, Flow("pod1a", "pod2a", True), "udp")))


def test_without_its_process_flannels_device_and_route_are_gone() -> None:
    """The packet then takes the default route, and ends where nobody is the gateway; prediction says the same."""
    with lab.running("flannel-udp", f"npt{os.urandom(3).hex()}") as made:
        stored = state.load(made.name)
        assert stored is not None
        (relay,) = [process for process in stored.processes if process.role == f"{LAB_RELAY} node1"]
        os.kill(relay.pid, signal.SIGTERM)
        deadline = time.monotonic() + 5
        while "flannel0" in Netns(made.node("node1").netns).ip("link") and time.monotonic() < deadline:
            time.sleep(0.01)
        done = trace(*ends(made, Flow("pod1a", "pod2a", True), "udp"), count=1, round_trip=False, timeout=5.0)
        (path,) = done.trace.paths
        assert (done.trace.outcome, done.trace.diverged) == ("dropped", False)
        assert path.drop is not None and path.drop.reason == "NEIGH_FAILED" and "192.168.50.1 " in path.drop.cause


def checksums_left_to_others() -> None:
    """``ethtool -K eth0 tx on`` in the calling thread's namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        wanted = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_STXCSUM, 1))
        fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sP", b"eth0", ctypes.addressof(wanted)))


def test_a_device_that_leaves_checksums_to_others_is_named() -> None:
    """Weave switches them off, since nobody completes them for what a process injects. Switched on again, the receiver drops the packet."""
    with lab.running("weave-sleeve", f"npt{os.urandom(3).hex()}") as made:
        flow = Flow("pod1a", "pod2a", True)
        as_predicted(trace(*ends(made, flow, "udp")))
        Netns(made.pod("pod1a").netns).call(checksums_left_to_others)
        done = trace(*ends(made, flow, "udp"), count=1, round_trip=False)
        (path,) = done.trace.paths
        assert path.drop is not None and path.drop.reason == "UDP_CSUM" and "tx off" in (path.drop.remedy or "")
        assert path.hops[-1].netns.name == made.pod("pod2a").netns


@modes
def test_it_is_recognised(labs: dict[str, Lab], datapath: Datapath) -> None:
    made = of_mode(labs, datapath.mode)
    done = trace(*ends(made, FLOWS[1], "udp"), count=1)
    found = recognise(done.snapshot, done.index)
    for node in made.nodes:
        (known,) = found[node.netns]
        assert (known.cni, known.mode) == datapath.cni
        assert known.confidence >= 0.7 and len(known.evidence) >= 2, known


@modes
@pytest.mark.parametrize("target", ["pod1b", "pod2a"])
def test_tcpdump_on_every_device_agrees(labs: dict[str, Lab], datapath: Datapath, target: str, tmp_path: File) -> None:
    made = of_mode(labs, datapath.mode)
    source, destination = ends(made, Flow("pod1a", target, False), "udp")
    agrees_with_tcpdump(made, source, destination, tmp_path)


@modes
@pytest.mark.parametrize("target", ["pod1b", "pod2a"])
def test_another_network_of_the_same_addresses_is_no_way(labs: dict[str, Lab], datapath: Datapath, target: str) -> None:
    made = of_mode(labs, datapath.mode)
    with lab.running(datapath.mode, f"npt{os.urandom(3).hex()}"):
        # Unresolved, so that the prediction asks everywhere.
        Netns(made.pod("pod1a").netns).ip("neighbour", "flush", "all")
        done = trace(*ends(made, Flow("pod1a", target, False), "udp"), count=1)
        as_predicted(done)
        (predicted,) = done.trace.prediction.paths
        assert not predicted.uncertain
