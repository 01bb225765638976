"""Whose time it was, where the kernel's boundary was crossed, and whose figures they are: pure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from netpath.model.packet import Headers, Icmp, Ipv4, Tcp, Udp
from netpath.model.path import Delivery, DeviceRef, Hop, NetnsRef, Path, Stage
from netpath.model.snapshot import Link, Namespace, Snapshot
from netpath.trace.attribute import Step
from netpath.trace.session import may_relay
from netpath.trace.userspace import LAB_RELAY, boundary, imitations, named

IP = Ipv4("10.0.0.1", "10.0.0.2")
UDP: Headers = (IP, Udp(4000, 7777))
TCP: Headers = (IP, Tcp(4000, 7070))
ECHO: Headers = (IP, Icmp(8))
SPACES = ("pod1", "node1", "node1", "node2", "node2", "pod2")
STEPS = (
    Step("veth", 1, 2, 0, {}),
    Step("userspace", 2, 3, 28, {"kind": "udp", "process": "one"}),
    Step("wire", 3, 4, 0, {}),
    Step("userspace", 4, 5, -28, {"kind": "udp", "process": "two"}),
    Step("veth", 5, 6, 0, {}),
)


def hop(index: int, kind: str) -> Hop:
    return Hop(index, "observed", None, NetnsRef(1, "n"), None, DeviceRef("d", index, kind), "tx", 92, 92, None, UDP)


def path(direction: str = "forward", to: str | None = "socket", stages: tuple[Stage, ...] = (), kinds: str = "veth") -> Path:
    delivery = Delivery(NetnsRef(9, "pod2"), to, process="server") if to is not None else None
    hops = tuple(hop(index, kinds if index in (2, 5) else "veth") for index in range(1, 7))
    return Path(direction, 1.0, "delivered", hops, stages=stages, delivery=delivery)


RELAYS = [("node1", "one", "process"), ("node1", "one", "kernel"), ("node2", "two", "process"), ("node2", "two", "kernel")]
SENT, READ = ("pod1", None, "kernel"), ("pod2", "server", "process")


@pytest.mark.parametrize(
    ("way", "headers", "expected"),
    [
        (path(), UDP, [SENT, *RELAYS, READ]),
        (path("return"), UDP, [SENT, *RELAYS, READ]),
        # A handshake: the call comes from a process, all else from the kernels.
        (path(), TCP, [SENT, *RELAYS]),
        (path("return"), TCP, RELAYS),
        # An echo request is answered by the kernel, and its answer read by the sender.
        (path(to="responder"), ECHO, [SENT, *RELAYS]),
        (path("return"), ECHO, [*RELAYS, READ]),
        (path(to=None), UDP, [SENT, *RELAYS]),
    ],
    ids=["udp", "udp back", "tcp", "tcp back", "echo", "echo back", "not delivered"],
)
def test_each_crossing_in_order(way: Path, headers: Headers, expected: list[tuple[str, str | None, str]]) -> None:
    found = [(each["netns"], each["process"], each["into"]) for each in boundary(way, STEPS, SPACES, headers)]
    assert found == expected


def test_a_step_gets_the_process_that_was_foreseen_there() -> None:
    bare = tuple(replace(step, detail={"kind": "udp"}) if step.stage == "userspace" else step for step in STEPS)
    stages = tuple(Stage("userspace", number, number + 1, detail={"process": name}) for number, name in ((2, "a"), (4, "b")))
    found = named(bare, path(stages=stages))
    assert [step.detail.get("process") for step in found if step.stage == "userspace"] == ["a", "b"]
    assert [step for step in found if step.stage != "userspace"] == [step for step in bare if step.stage != "userspace"]
    # As many must have been foreseen: otherwise nobody can tell which is which.
    assert named(bare, path(stages=stages[:1])) == bare and named(bare, None) == bare


def test_a_lab_relays_figures_say_so() -> None:
    def through(process: str, kinds: str) -> Path:
        return path(stages=(Stage("userspace", 2, 3, detail={"process": process}),), kinds=kinds)

    (tun,) = imitations([through(LAB_RELAY, "tun"), through(LAB_RELAY, "tun")])
    assert tun.startswith("lab relay, not flanneld:")
    (tap,) = imitations([through(LAB_RELAY, "veth")])
    assert tap.startswith("lab relay, not weaver:")
    assert imitations([through("flanneld", "tun"), path()]) == []


@pytest.mark.parametrize(
    ("kinds", "problem", "machine_problem", "expected"),
    [
        (("veth", "bridge"), None, None, False),
        (("veth", "tun"), None, None, True),
        (("veth",), "links: EPERM", None, True),
        (("veth",), None, "netns: EPERM", True),
    ],
    ids=["none", "tun", "links unread", "namespaces unread"],
)
def test_where_a_process_may_read_packets(
    kinds: tuple[str, ...], problem: str | None, machine_problem: str | None, expected: bool
) -> None:
    links = tuple(Link(number, f"d{number}", kind, None, 1500) for number, kind in enumerate(kinds, start=1))
    space = Namespace(1, "n", links=links, problems=(problem,) if problem else ())
    assert may_relay(Snapshot((space,), problems=(machine_problem,) if machine_problem else ())) == expected
