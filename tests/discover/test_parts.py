"""Parts of discovery that need neither root nor a kernel that has everything."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpath import discover
from netpath.discover import conntrack, links, namespaces, rulesets, workloads
from netpath.discover.namespaces import Process
from netpath.discover.nl import Netlink, attribute, attributes
from netpath.errors import MissingError
from netpath.model.packet import Flow
from netpath.model.snapshot import BridgeVlan, Xtables


class Recorded:
    """A netlink socket that answers every dump with the same messages."""

    def __init__(self, *bodies: bytes) -> None:
        self.bodies = bodies

    def dump(self, kind: int, payload: bytes) -> list[tuple[int, bytes]]:
        return [(16, body) for body in self.bodies]


def test_vlan_ranges_of_bridge_ports() -> None:
    def member(flags: int, vid: int) -> bytes:
        return attribute(2, struct.pack("=HH", flags, vid))

    spec = member(0x2 | 0x4, 1) + member(0x8, 20) + member(0x10, 23) + member(0, 100)
    body = struct.pack("=BxHiII", 7, 1, 9, 0, 0) + attribute(3, b"p0\0") + attribute(26 | 0x8000, spec)
    found = links.read_vlans(cast(Netlink, Recorded(body)))
    assert found == {9: (BridgeVlan(1, True, True), *(BridgeVlan(vid) for vid in (20, 21, 22, 23, 100)))}


def test_tunnels_and_vlans_are_decoded() -> None:
    def device(index: int, kind: bytes, arphrd: int, data: bytes, *more: bytes) -> bytes:
        info = attribute(1, kind + b"\0") + attribute(2 | 0x8000, data)
        return (
            struct.pack("=BxHiII", 0, arphrd, index, 0x1 | 0x40 | 0x10000, 0)
            + attribute(3, b"d%d\0" % index)
            + attribute(4, struct.pack("=I", 1480))
            + attribute(18, info)
            + b"".join(more)
        )

    ipip = attribute(2, bytes([10, 0, 0, 1])) + attribute(3, bytes([10, 0, 0, 2])) + attribute(4, b"\x09") + attribute(10, b"\0")
    gre = attribute(6, bytes([10, 0, 0, 1])) + attribute(7, bytes(4)) + attribute(8, b"\x07") + attribute(18, b"")
    vlan = attribute(1, struct.pack("=H", 10)) + attribute(5, b"\x88\xa8")
    vrf = attribute(1, struct.pack("=I", 900))
    parent = attribute(5, struct.pack("=I", 3)) + attribute(37, struct.pack("=i", 4))
    bodies = (
        device(4, b"vlan", 1, vlan, parent),
        device(1, b"ipip", 768, ipip),
        device(2, b"gre", 778, gre),
        device(3, b"vrf", 1, vrf),
    )
    found = links.read(cast(Netlink, Recorded(*bodies))).links
    assert [each.ifindex for each in found] == [1, 2, 3, 4]
    assert found[0].tunnel is not None and found[1].tunnel is not None
    assert (found[0].tunnel.local, found[0].tunnel.remote, found[0].tunnel.ttl, found[0].tunnel.pmtudisc) == (
        "10.0.0.1",
        "10.0.0.2",
        9,
        False,
    )
    assert (found[1].tunnel.remote, found[1].tunnel.ttl, found[1].tunnel.external) == (None, 7, True)
    assert found[2].vrf_table == 900
    assert (found[3].vlan_id, found[3].vlan_protocol, found[3].lower, found[3].lower_nsid) == (10, "802.1ad", 3, 4)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_attributes_of_any_bytes_end(data: bytes) -> None:
    assert all(len(value) <= len(data) for value in attributes(data).values())
    conntrack.decode(b"\2\0\0\0" + data[:3])


def entry(original: tuple[str, str, int, int], reply: tuple[str, str, int, int], protocol: int = 17) -> bytes:
    def side(one: tuple[str, str, int, int]) -> bytes:
        ends = attribute(1, ipaddress.ip_address(one[0]).packed) + attribute(2, ipaddress.ip_address(one[1]).packed)
        upper = attribute(1, bytes([protocol])) + attribute(2, struct.pack(">H", one[2])) + attribute(3, struct.pack(">H", one[3]))
        return attribute(1 | 0x8000, ends) + attribute(2 | 0x8000, upper)

    return b"\2\0\0\0" + attribute(1, side(original)) + attribute(2, side(reply)) + attribute(3, struct.pack(">I", 2 | 4 | 8))


def test_a_flow_is_followed_through_translations_in_other_namespaces() -> None:
    first = entry(("10.1.0.1", "10.96.0.1", 4000, 53), ("10.2.0.9", "192.0.2.1", 5353, 61000))
    second = entry(("192.0.2.1", "10.2.0.9", 61000, 5353), ("10.2.0.9", "192.0.2.1", 5353, 61000))
    foreign = entry(("10.7.0.1", "10.7.0.2", 1, 2), ("10.7.0.2", "10.7.0.1", 2, 1))
    tcp = entry(("10.1.0.1", "10.96.0.1", 4000, 53), ("10.96.0.1", "10.1.0.1", 53, 4000), 6)
    flow = Flow(1, "10.96.0.1", "udp", src="10.1.0.1", dport=53)
    found = conntrack.of_flow({1: [foreign, first, tcp], 2: [second, foreign]}, flow)
    assert [(len(entries), entries[0].original.source) for entries in found.values()] == [(1, "10.1.0.1"), (1, "192.0.2.1")]
    assert found[1][0].flags == ("assured",)
    assert conntrack.of_flow({1: [first]}, Flow(1, "10.9.9.9", "udp")) == {1: ()}


def test_nft_runs_only_for_what_save_does_not_say() -> None:
    text = "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"
    assert rulesets._covered({(2, "filter")}, [Xtables(4, "nft", text)])
    assert not rulesets._covered({(2, "filter"), (1, "mine")}, [Xtables(4, "nft", text)])
    assert not rulesets._covered({(10, "filter")}, [Xtables(4, "nft", text)])
    assert not rulesets._covered({(2, "filter")}, [Xtables(4, "nft", "# Table `filter' is incompatible, use 'nft' tool.\n" + text)])
    assert not rulesets._covered({(2, "filter")}, [Xtables(4, "legacy", text)])


def test_a_tool_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    unread: list[str] = []
    assert rulesets._Run(("/bin/sh", "-c", "echo broken >&2; exit 3")).finish(unread, "rules") is None
    assert rulesets._Run(("/nowhere/tool",)).finish(unread, "rules") is None
    assert unread == ["rules: sh failed with exit code 3: broken", "rules: tool could not be started: No such file or directory"]


def test_without_privileges_the_missing_ones_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.read_text

    def status(path: Path, *args: Any, **options: Any) -> str:
        return "Name:\tx\nCapEff:\t0000000000001000\n" if str(path) == "/proc/self/status" else original(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", status)
    with pytest.raises(MissingError, match="needs CAP_SYS_ADMIN: run as root"):
        discover.take()


# Workloads


@contextmanager
def daemon(path: Path, answers: dict[str, tuple[int, object]]) -> Iterator[None]:
    """A Unix socket that answers GET requests from a table."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                request = connection.recv(65536).decode()
                code, body = answers.get(request.split()[1], (404, {"message": "no such container"}))
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                connection.sendall(b"HTTP/1.0 %d X\r\nContent-Type: application/json\r\n\r\n" % code + data)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_containers_are_read_from_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.sock"
    monkeypatch.setattr(workloads, "DOCKER_SOCKET", str(tmp_path / "none"))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("NETPATH_DOCKER_SOCKETS", f"{path}:{tmp_path}/missing")
    processes = [Process(os.getpid(), 77, "x"), Process(4_000_000, 88, "y"), Process(4_000_001, 77, "z")]

    def container(pid: int, name: str, mode: str) -> tuple[int, object]:
        return 200, {
            "Name": f"/{name}",
            "State": {"Pid": pid},
            "HostConfig": {"NetworkMode": mode},
            "NetworkSettings": {"SandboxKey": ""},
        }

    answers = {
        "/containers/json": (200, [{"Id": "aa"}, {"Id": "bb"}, {"Id": "ended"}, {"Id": "../x"}, 5]),
        "/containers/aa/json": container(4_000_000, "web", "bridge"),
        "/containers/bb/json": container(4_000_001, "onhost", "host"),
    }
    problems: list[str] = []
    with daemon(path, answers):
        found = workloads.read(processes, 77, problems)
    assert [(each.reference, each.netns, each.id, each.node) for each in found.workloads] == [
        ("docker:onhost", 77, "bb", "77"),
        ("docker:web", 88, "aa", "77"),
    ]
    assert found.names == {88: "web"}
    assert problems == []


@pytest.mark.parametrize("answer", [(500, {}), (200, b"{"), (200, {"message": "odd"})])
def test_a_daemon_that_answers_rubbish_is_a_problem_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, object]
) -> None:
    monkeypatch.setattr(workloads, "DOCKER_SOCKET", str(tmp_path / "d.sock"))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.delenv("NETPATH_DOCKER_SOCKETS", raising=False)
    problems: list[str] = []
    with daemon(tmp_path / "d.sock", {"/containers/json": answer}):
        assert workloads.read([], 1, problems).workloads == []
    assert len(problems) == (0 if answer[1] == {"message": "odd"} else 1)


def test_running_daemons_tell_their_sockets() -> None:
    assert list(
        workloads._hosts(["dockerd", "--host", "unix:///a", "-H=unix:///b", "-Hunix:///c", "--host=tcp://0.0.0.0:1", "-H"])
    ) == [
        "/a",
        "/b",
        "/c",
    ]


def test_pods_are_known_by_cgroup_and_log_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = "0a1b2c3d-1111-2222-3333-444455556666"
    (tmp_path / f"shop_cart-0_{uid}").mkdir()
    monkeypatch.setattr(workloads, "POD_LOGS", str(tmp_path))
    first, second, third = "a" * 64, "b" * 64, "c" * 64
    slice_ = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid.replace('-', '_')}.slice"
    groups = {
        5: f"{slice_}/cri-containerd-{first}.scope",
        6: f"{slice_}/cri-containerd-{second}.scope",
        7: f"/system.slice/crio-{third}.scope",
        8: "/user.slice",
    }
    monkeypatch.setattr(workloads, "_cgroup", groups.get)
    found = workloads.Read()
    workloads._cgroups([Process(pid, 100 + (pid > 6), "p") for pid in groups], 1, found)
    assert [(each.reference, each.netns, each.id, each.containers) for each in found.workloads] == [
        ("pod:shop/cart-0", 100, uid, (first, second)),
        (f"container:{third[:12]}", 101, third, ()),
    ]


def test_a_survey_holds_our_own_namespace_and_process() -> None:
    found = namespaces.survey()
    assert found.own == os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116
    assert os.getpid() in found.namespaces[found.own].pids
