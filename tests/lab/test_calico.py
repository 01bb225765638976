"""Calico's labs: real BIRDs whose routes are in the kernel, sessions as configured, and nothing left when they go."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netpath import lab
from netpath.errors import NetpathError
from netpath.lab import Lab, bird, state
from tests.lab import kinds
from tests.lab.helpers import alive, inhabitants, leftovers, read

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def routes(made: Lab, node: str) -> dict[str, tuple[str, str | None]]:
    """BIRD's routes in a node's kernel: destination to type and gateway."""
    table = read(made.node(node).netns, "ip", "-4", "-j", "-d", "route", "show", "proto", "bird")
    return {route["dst"]: (route["type"], route.get("gateway")) for route in table}


def ask(made: Lab, node: str, question: str) -> str:
    """What a node's BIRD answers on its control socket (nest/cmds.c, doc/reply_codes: a code and a space end an answer)."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(str(bird.folder(made.name) / node / "bird.ctl"))
        with link.makefile("rw") as talk:
            talk.readline()
            talk.write(question + "\n")
            talk.flush()
            lines = []
            for line in talk:
                lines.append(line)
                if line[:4].isdigit() and line[4:5] == " " and line[:1] in "0389":
                    break
            return "".join(lines)


def sessions(made: Lab, node: str) -> dict[str, str]:
    """A node's BGP sessions: name to state."""
    words = [line.strip().removeprefix("1002-").split() for line in ask(made, node, "show protocols").splitlines()]
    return {found[0]: found[-1] for found in words if len(found) > 5 and found[1] == "BGP"}


@pytest.fixture(scope="module")
def four() -> Iterator[Lab]:
    kinds.need("bird")
    with lab.running("calico-bgp", f"npt{os.urandom(3).hex()}", nodes=4, pods_per_node=1) as made:
        yield made


@pytest.fixture(scope="module")
def reflected() -> Iterator[Lab]:
    kinds.need("bird")
    with lab.running("calico-rr", f"npt{os.urandom(3).hex()}", pods_per_node=1) as made:
        yield made


def expected(made: Lab, number: int) -> dict[str, tuple[str, str | None]]:
    return {
        f"10.244.{other}.64/26": ("blackhole", None) if other == number else ("unicast", node.address)
        for other, node in enumerate(made.nodes, start=1)
    }


def test_every_node_tells_every_other(four: Lab) -> None:
    for number, node in enumerate(four.nodes, start=1):
        assert routes(four, node.name) == expected(four, number)
        peers = {f"Mesh_{other.address.replace('.', '_')}" for other in four.nodes if other is not node}
        assert sessions(four, node.name) == dict.fromkeys(peers, "Established")


def test_a_reflector_tells_its_clients_of_each_other(reflected: Lab) -> None:
    """The clients have one session each, and yet the routes go straight from node to node."""
    assert [node.name for node in reflected.nodes] == ["node1", "node2", "node3"]
    assert reflected.options["nodes"] == 3
    for number, node in enumerate(reflected.nodes, start=1):
        assert routes(reflected, node.name) == expected(reflected, number)
    for client in ("node1", "node2"):
        assert sessions(reflected, client) == {"Mesh_192_168_50_13": "Established"}
    assert sessions(reflected, "node3") == {"Node_192_168_50_11": "Established", "Node_192_168_50_12": "Established"}
    # The originator's mark, which only a reflector sets (RFC 4456, section 8).
    assert "BGP.originator_id: 192.168.50.12" in ask(reflected, "node1", "show route 10.244.2.64/26 all")


def test_the_daemons_are_on_record_and_go_with_the_lab(lab_name: str) -> None:
    kinds.need("bird")
    made = lab.up("calico-bgp", lab_name)
    stored = state.load(lab_name)
    assert stored is not None
    daemons = {process.role: process for process in stored.processes if process.role.startswith("bird")}
    assert sorted(daemons) == ["bird node1", "bird node2"]
    for name, process in daemons.items():
        assert Path(f"/proc/{process.pid}/exe").readlink().name == "bird"
        assert Path(f"/proc/{process.pid}/ns/net").stat().st_ino == made.node(name.removeprefix("bird ")).inode
    inside = inhabitants({member.inode for member in (*made.nodes, *made.pods)})
    assert {(process.pid, process.start_time) for process in daemons.values()} <= inside
    lab.down(lab_name)
    assert leftovers(lab_name) == []
    assert not alive(inside)


_DYING = """
import os, signal, sys
from netpath import lab
from netpath.lab import bird
real, count = bird._start, [0]
def start(*arguments):
    process = real(*arguments)
    count[0] += 1
    if count[0] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return process
bird._start = start
lab.up("calico-bgp", sys.argv[1])
"""


@pytest.mark.parametrize("daemons", [1, 2])
def test_a_builder_killed_among_its_daemons_leaves_nothing(lab_name: str, daemons: int) -> None:
    kinds.need("bird")
    done = subprocess.run([sys.executable, "-c", _DYING, lab_name, str(daemons)], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    inside = inhabitants({path.stat().st_ino for path in Path("/run/netns").glob(f"{lab_name}-*")})
    stored = state.load(lab_name)
    assert stored is not None
    recorded = {(process.pid, process.start_time) for process in stored.processes}
    assert len(recorded) == daemons
    lab.down(lab_name)
    assert leftovers(lab_name) == []
    assert not alive(inside | recorded)


def test_a_daemon_that_refuses_its_configuration_is_named(lab_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds.need("bird")
    monkeypatch.setattr(bird, "configuration", lambda *_arguments, **_more: "nonsense;\n")
    with pytest.raises(NetpathError, match=f"lab: {lab_name}-node1: BIRD ended: .*bird.conf:1") as caught:
        lab.up("calico-bgp", lab_name)
    assert "\n" not in str(caught.value)
    assert leftovers(lab_name) == []


def test_routes_that_never_come_are_named(lab_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons without sessions: what is missing, on what node, and nothing left."""
    kinds.need("bird")
    alone = [
        bird.Speaker(f"node{number}", f"192.168.50.{10 + number}", ipaddress.IPv4Network(f"10.244.{number}.64/26"), ())
        for number in (1, 2)
    ]
    monkeypatch.setattr(bird, "mesh", lambda *_arguments: tuple(alone))
    monkeypatch.setattr(bird, "_READY_S", 1.0)
    with pytest.raises(NetpathError, match=f"lab: {lab_name}-node1: no route to 10.244.2.64/26 from BIRD within 1 s"):
        lab.up("calico-bgp", lab_name)
    assert leftovers(lab_name) == []
