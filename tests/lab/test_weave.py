"""The weave lab: the state of a recorded node, the frames on the wire, its traffic, and its end."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from netpath import lab
from netpath.errors import UsageError
from netpath.lab import Lab, state
from tests import recordings
from tests.lab.helpers import Space, alive, inhabitants, leftovers, read, rules
from tests.lab.test_lifecycle import gone
from tests.lab.test_traffic import check_pairs, tcp_echo, udp_echo

pytestmark = pytest.mark.root

NETWORK = "10.32.0.0/12"
ETH_P_ALL = 3
"""A bridge takes what comes to its port before others see it, but for captures of everything."""


def shape(links: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """What makes the datapath: kinds, MTUs, queues, bridges and their ports. Pods' ports by a common name."""
    found = {}
    for link in links:
        info = link.get("linkinfo", {})
        port = info.get("info_slave_data", {})
        name = "vethwepl" if link["ifname"].startswith("vethwepl") else link["ifname"]
        found[name] = (
            info.get("info_kind"),
            link["mtu"],
            link.get("txqlen", 0),
            link.get("master"),
            link["operstate"],
            tuple(port.get(key) for key in ("state", "hairpin", "learning", "flood", "isolated")),
            info.get("info_data", {}).get("ageing_time"),
            info.get("info_data", {}).get("vlan_filtering"),
        )
    return found


def test_a_node_is_as_a_recorded_one(lab_name: str) -> None:
    made = lab.up("weave-sleeve", lab_name)
    real = json.loads((recordings.folder("weave-sleeve") / "fcn1" / "link.json").read_text())
    for node in made.nodes:
        ours = read(node.netns, "ip", "-d", "-j", "link")
        assert shape(ours) == shape(real)
        bridge = next(link for link in ours if link["ifname"] == "weave")
        assert bridge["address"] == next(process for process in peers(made) if process[0] == node.name)[1]
    pod = next(link for link in read(made.pod("pod1a").netns, "ip", "-d", "-j", "link") if link["ifname"] == "eth0")
    theirs = next(
        link
        for link in json.loads((recordings.folder("weave-sleeve") / "fcp1a" / "link.json").read_text())
        if link["ifname"] == "ethwe"
    )
    assert (pod["mtu"], pod["txqlen"]) == (theirs["mtu"], theirs["txqlen"])


def peers(made: Lab) -> list[tuple[str, str]]:
    """Node and name of each relay, from its command line."""
    stored = state.load(made.name)
    assert stored is not None
    found = []
    for process in stored.processes:
        if process.role.startswith("lab relay "):
            words = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
            found.append((process.role.removeprefix("lab relay "), words[5]))
    return found


def test_its_rules_are_the_recorded_ones_and_those_of_expose(lab_name: str) -> None:
    made = lab.up("weave-sleeve", lab_name)
    real: dict[str, set[str]] = {}
    table = ""
    for line in (recordings.folder("weave-sleeve") / "fcn1" / "iptables-nft.save").read_text().splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif "-A " in line:
            real.setdefault(table, set()).add(line.partition("] ")[2])
    ours = rules(made.node("node1").netns)
    exposed = {
        "filter": {f"-A WEAVE-EXPOSE -d {NETWORK} -j ACCEPT"},
        "nat": {
            f"-A WEAVE -s {NETWORK} -d 224.0.0.0/4 -j RETURN",
            f"-A WEAVE ! -s {NETWORK} -d {NETWORK} -j MASQUERADE",
            f"-A WEAVE -s {NETWORK} ! -d {NETWORK} -j MASQUERADE",
        },
    }
    for name in ("filter", "nat"):
        assert {line for line in ours[name] if line.startswith("-A")} == real[name] | exposed[name]


def test_a_frame_on_the_wire_is_a_sleeves(lab_name: str) -> None:
    """20 bytes: the sender's name, the frame's origin, its target, its length; then the frame itself."""
    made = lab.up("weave-sleeve", lab_name)
    source, target = made.pod("pod1a"), made.pod("pod2a")
    assert udp_echo(source.netns, target.address, 7777)[0] == b"netpath"
    names = {node: bytes.fromhex(name.replace(":", "")) for node, name in peers(made)}
    with Space(f"{lab_name}-fabric").socket(socket.AF_PACKET, socket.SOCK_DGRAM) as wire:
        wire.bind(("port1", ETH_P_ALL))
        wire.settimeout(5)
        udp_echo(source.netns, target.address, 7777, payload=b"a frame to be found")
        while b"a frame to be found" not in (seen := wire.recv(2048)):
            pass
    assert seen[12:20] == socket.inet_aton("192.168.50.11") + socket.inet_aton("192.168.50.12")
    assert struct.unpack("!HH", seen[20:24]) == (6783, 6783)
    carried = seen[28:]
    assert carried[:18] == names["node1"] * 2 + names["node2"]
    (length,) = struct.unpack("!H", carried[18:20])
    frame = carried[20:]
    assert len(frame) == length == 14 + 28 + len(b"a frame to be found")
    assert frame[12:14] == b"\x08\x00" and frame.endswith(b"a frame to be found")
    assert len(seen) - (length - 14) == 62
    # Not fragmentable if the frame's own packet is not, as with weaver's second socket.
    assert bool(seen[6] & 0x40) == bool(frame[20] & 0x40)


def test_every_pod_reaches_every_other_and_the_nodes_all_of_them(lab_name: str) -> None:
    made = lab.up("weave-sleeve", lab_name, nodes=3)
    check_pairs(made)
    for node in made.nodes:
        for pod in made.pods:
            assert udp_echo(node.netns, pod.address, 7777)[0] == b"netpath"


def test_streams_and_large_datagrams(lab_name: str) -> None:
    """Segments of full size, and fragments, cross the process whole: nothing relies on a device that finishes checksums."""
    made = lab.up("weave-sleeve", lab_name)
    payload = bytes(range(256)) * 800
    source, target = made.pod("pod1a"), made.pod("pod2a")
    assert tcp_echo(source.netns, target.address, 7070, payload) == payload
    assert udp_echo(source.netns, target.address, 7777, payload=b"y" * 20_000)[0] == b"y" * 20_000
    assert tcp_echo(made.node("node1").netns, target.address, 7070, payload) == payload


def test_a_known_frame_goes_to_its_node_alone(lab_name: str) -> None:
    """The relay learns where a MAC address is; only what nobody knows is sent to all."""
    made = lab.up("weave-sleeve", lab_name, nodes=3, pods_per_node=1)
    assert udp_echo(made.pod("pod1a").netns, made.pod("pod2a").address, 7777)[0] == b"netpath"
    with Space(f"{lab_name}-fabric").socket(socket.AF_PACKET, socket.SOCK_DGRAM) as wire:
        wire.bind(("port3", ETH_P_ALL))
        wire.settimeout(1)
        assert udp_echo(made.pod("pod1a").netns, made.pod("pod2a").address, 7777, payload=b"for one node")[0] == b"for one node"
        with pytest.raises(TimeoutError):
            while b"for one node" not in wire.recv(2048):
                pass


def test_what_is_no_frame_of_a_peer_is_dropped(lab_name: str) -> None:
    """Garbage, foreign names and lengths that lie leave the tunnel as it was."""
    made = lab.up("weave-sleeve", lab_name)
    names = {node: bytes.fromhex(name.replace(":", "")) for node, name in peers(made)}
    one, two = names["node1"], names["node2"]
    sender = b"\x02stray"
    frame = b"\xff" * 6 + sender + b"\x88\xb5" + bytes(40)
    with Space(made.pod("pod1a").netns).socket(socket.AF_PACKET, socket.SOCK_RAW) as pod:
        pod.bind(("eth0", ETH_P_ALL))
        pod.settimeout(5)
        with Space(made.node("node2").netns).socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for data in (
                b"",
                b"x" * 5,
                two,
                two + two + one + b"\xff\xff" + frame,
                two + b"nobody" + one + struct.pack("!H", len(frame)) + frame,
                two + two + b"others" + struct.pack("!H", len(frame)) + frame,
                two + two + one + b"\0\x05" + b"short",
            ):
                sock.sendto(data, ("192.168.50.11", 6783))
            sock.sendto(two + two + one + struct.pack("!H", len(frame)) + frame, ("192.168.50.11", 6783))
        seen: list[bytes] = []
        while frame not in seen:
            seen.append(pod.recv(2048))
    # Multicast of the bridges' own may be among it.
    assert [data for data in seen if data[6:12] == sender] == [frame]
    assert udp_echo(made.pod("pod1a").netns, made.pod("pod2a").address, 7777)[0] == b"netpath"


def test_up_and_down_leaves_nothing(lab_name: str) -> None:
    for _ in range(3):
        made = lab.up("weave-sleeve", lab_name)
        inside = inhabitants({member.inode for member in (*made.nodes, *made.pods)})
        assert len(peers(made)) == 2
        lab.down(lab_name)
        gone(lab_name)
        assert leftovers(lab_name) == [] and not alive(inside)


def test_ipv6_is_refused(lab_name: str) -> None:
    with pytest.raises(UsageError, match="IPv4 only"):
        lab.up("weave-sleeve", lab_name, ipv6=True)
    assert leftovers(lab_name) == []
