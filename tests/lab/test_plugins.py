"""Labs whose pods are made by the distribution's CNI plugins."""

from __future__ import annotations

import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from netpath import lab
from netpath.errors import MissingError, NetpathError, UsageError
from netpath.lab import guests
from netpath.lab.modes.kubenet import OUTSIDE
from tests.lab import kinds
from tests.lab.helpers import Space, alive, inhabitants, leftovers, processes, read, rules, run
from tests.lab.test_traffic import check_pairs, tcp_echo, udp_echo

pytestmark = pytest.mark.root

MODES = sorted(mode for mode, kind in kinds.NEEDS.items() if kind == "plugins")


@pytest.fixture(autouse=True)
def _plugins() -> None:
    kinds.need("plugins")


def plain(lines: list[str]) -> list[str]:
    """Rules without what differs from one run to the next: the hashes in chain names, the containers' names."""
    text = [re.sub(r"CNI-(DN-)?[0-9a-f]{21,24}\b", lambda found: f"CNI-{found[1] or ''}X", line) for line in lines]
    return sorted(re.sub(r'\\"(?!podnet)npt\w+-(pod\w+)\\"', r'\\"\1\\"', line) for line in text if line.startswith("-A"))


def masquerade(address: str, pod: str) -> list[str]:
    comment = rf'-m comment --comment "name: \"podnet\" id: \"{pod}\""'
    return [
        f"-A POSTROUTING -s {address}/32 {comment} -j CNI-X",
        f"-A CNI-X -d 10.244.1.0/24 {comment} -j ACCEPT",
        f"-A CNI-X ! -d 224.0.0.0/4 {comment} -j MASQUERADE",
    ]


def host_port(protocol: str, port: int, target: str) -> list[str]:
    match = f"-p {protocol} -m {protocol} --dport {port}"
    comment = r'-m comment --comment "dnat name: \"podnet\" id: \"pod1a\""'
    return [
        f"-A CNI-HOSTPORT-DNAT -p {protocol} {comment} -m multiport --dports {port} -j CNI-DN-X",
        f"-A CNI-DN-X -s 10.244.1.0/24 {match} -j CNI-HOSTPORT-SETMARK",
        f"-A CNI-DN-X -s 127.0.0.1/32 {match} -j CNI-HOSTPORT-SETMARK",
        f"-A CNI-DN-X {match} -j DNAT --to-destination {target}",
    ]


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy"])
def test_the_plugins_leave_their_rules(lab_name: str, backend: str) -> None:
    """What bridge (ipMasq), portmap (snat) and firewall of version 1.1 program, in the order of their calls."""
    services = {"services": backend} if backend == "iptables-legacy" else {}
    made = lab.up("cni-bridge", lab_name, **services)
    found = rules(made.node("node1").netns, backend)
    nat = [line for line in found["nat"] if "KUBE" not in line]
    assert plain(nat) == sorted(
        [
            "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            '-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ',
            "-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
            '-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000',
            *masquerade("10.244.1.2", "pod1a"),
            *masquerade("10.244.1.3", "pod1b"),
            *host_port("tcp", 12345, "10.244.1.2:7070"),
            *host_port("udp", 12346, "10.244.1.2:7071"),
        ]
    )
    assert plain([line for line in found["filter"] if "KUBE" not in line]) == sorted(
        [
            '-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD',
            '-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN',
            *(f"-A CNI-FORWARD -d 10.244.1.{last}/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT" for last in (2, 3)),
            *(f"-A CNI-FORWARD -s 10.244.1.{last}/32 -j ACCEPT" for last in (2, 3)),
        ]
    )
    other = "iptables-nft" if backend == "iptables-legacy" else "iptables-legacy"
    assert not any("CNI" in line for lines in rules(made.node("node1").netns, other).values() for line in lines)


def test_host_ports_lead_to_the_pod_from_everywhere(lab_name: str) -> None:
    made = lab.up("cni-bridge", lab_name)
    pod = made.pod("pod1a")
    for source, address in (
        ("node2", "192.168.50.11"),
        ("pod2b", "192.168.50.11"),
        ("pod1b", "192.168.50.11"),
        ("pod1a", "192.168.50.11"),
        ("node1", "192.168.50.11"),
        ("node1", "127.0.0.1"),
    ):
        place = f"{lab_name}-{source}"
        assert udp_echo(place, address, 12346, payload=source.encode()) == (source.encode(), address), (source, address)
        assert tcp_echo(place, address, 12345, b"x" * 50_000) == b"x" * 50_000, (source, address)
    with Space(made.node("node1").netns).socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        with pytest.raises(ConnectionRefusedError):
            sock.connect((pod.address, 12345))


def test_the_bridge_is_the_plugins_and_hairpins(lab_name: str) -> None:
    made = lab.up("cni-bridge", lab_name, overlay_mtu=1400, bridge="mybr0", hairpin=False)
    node = made.node("node1").netns
    found = {link["ifname"]: link for link in read(node, "ip", "-d", "-j", "link")}
    assert (found["mybr0"]["mtu"], found["mybr0"]["operstate"]) == (1400, "UP")
    ports = [link for link in found.values() if link.get("master") == "mybr0"]
    assert [(port["mtu"], port["linkinfo"]["info_slave_data"]["hairpin"]) for port in ports] == [(1400, False)] * 2


def test_two_families(lab_name: str) -> None:
    made = lab.up("cni-bridge", lab_name, ipv6=True)
    assert made.pod("pod2b").addresses == ("10.244.2.3", "fd00:10:244:2::3")
    check_pairs(made)
    check_pairs(made, family=1)


def test_addresses_are_leases_in_the_labs_own_folder(lab_name: str) -> None:
    """host-local's files hold the container and the interface; nothing is kept where a runtime of this machine would look."""
    own = Path("/var/lib/cni")
    before = sorted(own.rglob("*")) if own.exists() else None
    made = lab.up("ptp", lab_name, pods_per_node=3)
    folder = Path("/run/netpath/labs", lab_name)
    for pod in made.pods:
        lease = folder / pod.node / "networks" / "podnet" / pod.address
        assert lease.read_text().split() == [pod.netns, "eth0"]
        assert pod.address in [entry["local"] for entry in read(pod.netns, "ip", "-j", "addr", "show", "eth0")[0]["addr_info"]]
    lab.down(lab_name)
    assert not folder.exists()
    assert (sorted(own.rglob("*")) if own.exists() else None) == before


@pytest.mark.parametrize("mode", MODES)
def test_up_and_down_leaves_nothing(mode: str, lab_name: str) -> None:
    def own() -> tuple[str, ...]:
        return (
            run("ip", "-o", "link", "show", "type", "bridge"),
            run("ip", "route"),
            run("sysctl", "-n", "net.ipv4.ip_forward", "net.ipv4.conf.all.route_localnet"),
            run("nft", "list", "ruleset"),
        )

    before = own()
    for _ in range(3):
        made = lab.up(mode, lab_name)
        inside = inhabitants({member.inode for member in (*made.nodes, *made.pods)})
        lab.down(lab_name)
        assert leftovers(lab_name) == []
        assert not alive(inside)
    assert own() == before


def test_killed_while_plugins_run(lab_name: str) -> None:
    """What a plugin is doing then goes on without its builder: it is ended, and its work is removed, by the next down."""
    chance = random.Random(5)
    code = f"from netpath import lab; lab.up('cni-bridge', {lab_name!r})"
    for _ in range(5):
        builder = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
        folder = Path("/run/netpath/labs", lab_name, "bin")
        deadline = time.monotonic() + 30
        while not folder.exists() and builder.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.6))
        builder.kill()
        builder.wait()
        lab.down(lab_name)
        assert leftovers(lab_name) == []
        deadline = time.monotonic() + 5
        while (left := processes(lab_name)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left


def test_what_a_plugin_refuses_is_told_in_its_words(lab_name: str) -> None:
    words = f"lab: {lab_name}-node1: CNI plugin bridge for pod1a: .*eth0.* not a bridge"
    with pytest.raises(NetpathError, match=words) as caught:
        lab.up("cni-bridge", lab_name, bridge="eth0")
    assert "\n" not in str(caught.value)
    assert leftovers(lab_name) == []


def test_a_plugin_that_dies_is_told(lab_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is no CNI plugin: its words on stderr, or at least its exit code."""
    for script, words in (("echo oh dear >&2; exit 3", "oh dear"), ("exit 3", "exit code 3"), ("echo '[]'", "exit code 0")):
        folder = tmp_path / words.replace(" ", "") / "usr/lib/cni"
        folder.mkdir(parents=True)
        (folder / "loopback").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "loopback").chmod(0o755)
        monkeypatch.setattr(guests, "fetch", lambda *_args, root=folder.parents[2]: root)
        with pytest.raises(NetpathError, match=f"CNI plugin loopback for pod1a: {words}$"):
            lab.up("ptp", lab_name)
        assert leftovers(lab_name) == []
    (folder / "loopback").unlink()
    with pytest.raises(MissingError, match="has no loopback; remove the folder"):
        lab.up("ptp", lab_name)
    assert leftovers(lab_name) == []


@pytest.mark.parametrize("mode", ["kubenet", "gke"])
def test_only_the_clouds_router_knows_the_pods(mode: str, lab_name: str) -> None:
    made = lab.up(mode, lab_name, nodes=3)
    for number, node in enumerate(made.nodes, start=1):
        known = {(route["dst"], route.get("gateway")) for route in read(node.netns, "ip", "-j", "route")}
        elsewhere = [f"10.244.{other}." for other in (1, 2, 3) if other != number]
        assert ("default", "192.168.50.1") in known
        assert not [dst for dst, _ in known if dst.startswith(tuple(elsewhere))]
    router = {route["dst"]: route.get("gateway") for route in read(f"{lab_name}-fabric", "ip", "-j", "route")}
    assert {dst: gateway for dst, gateway in router.items() if dst.startswith("10.")} == {
        f"10.244.{number}.0/24": f"192.168.50.{10 + number}" for number in (1, 2, 3)
    }
    check_pairs(made)


def sender_seen_by(place: str, address: str, source: str) -> str:
    """The source address of a datagram from `source`, at a socket in `place`."""
    with Space(place).socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.settimeout(5)
        server.bind((address, 9000))
        with Space(source).socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"who am I", (address, 9000))
            return str(server.recvfrom(100)[1][0])


def test_kubenet_masquerades_all_that_leaves_the_cluster(lab_name: str) -> None:
    made = lab.up("kubenet", lab_name)
    assert rules(made.node("node1").netns)["nat"][-1] == (
        '-A POSTROUTING ! -d 10.0.0.0/8 -m comment --comment "kubenet: SNAT for outbound traffic from cluster"'
        " -m addrtype ! --dst-type LOCAL -j MASQUERADE"
    )
    pod = made.pod("pod1a").netns
    assert sender_seen_by(f"{lab_name}-fabric", str(OUTSIDE), pod) == "192.168.50.11"
    # A node is no part of 10.0.0.0/8.
    assert sender_seen_by(made.node("node2").netns, "192.168.50.12", pod) == "192.168.50.11"
    assert sender_seen_by(made.pod("pod2a").netns, "10.244.2.2", pod) == "10.244.1.2"
    assert [link["ifname"] for link in read(made.node("node1").netns, "ip", "-j", "link", "show", "type", "bridge")] == ["cbr0"]


def test_gke_masquerades_what_leaves_private_networks(lab_name: str) -> None:
    made = lab.up("gke", lab_name)
    found = [line for line in rules(made.node("node1").netns)["nat"] if line.startswith("-A IP-MASQ")]
    targets = [(re.search(r"-d (\S+)", line) or [None, None])[1] for line in found]
    assert targets == ["169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", None]
    assert found[-1].endswith("-j MASQUERADE --random-fully")
    pod = made.pod("pod1a").netns
    assert sender_seen_by(f"{lab_name}-fabric", str(OUTSIDE), pod) == "192.168.50.11"
    assert sender_seen_by(made.node("node2").netns, "192.168.50.12", pod) == "10.244.1.2"
    assert read(made.node("node1").netns, "ip", "-j", "link", "show", "type", "bridge") == []


def test_pods_outside_the_usual_prefixes_are_not_masqueraded_among_themselves(lab_name: str) -> None:
    for mode in ("kubenet", "gke"):
        with lab.running(mode, lab_name, pod_network="100.64.0.0/16") as made:
            target = made.pod("pod2a")
            assert sender_seen_by(target.netns, target.address, made.pod("pod1a").netns) == "100.64.1.2"


def test_canal_is_calicos_pods_in_flannels_subnet(lab_name: str) -> None:
    made = lab.up("canal", lab_name)
    node = made.node("node1").netns
    found = {route["dst"]: route for route in read(node, "ip", "-j", "route")}
    for pod, address in (("pod1a", "10.244.1.2"), ("pod1b", "10.244.1.3")):
        assert made.pod(pod).address == address
        assert found[address]["dev"].startswith("cali") and found[address]["scope"] == "link"
        lease = Path("/run/netpath/labs", lab_name, "node1/networks/k8s-pod-network", address)
        assert lease.read_text().split() == [f"{lab_name}-{pod}", "eth0"]
        (inner,) = read(made.pod(pod).netns, "ip", "-j", "route", "show", "default")
        assert inner["gateway"] == "169.254.1.1"
    assert (found["10.244.2.0/24"]["dev"], found["10.244.2.0/24"]["gateway"]) == ("flannel.1", "10.244.2.0")
    links = {link["ifname"]: link for link in read(node, "ip", "-j", "link")}
    assert [link["mtu"] for name, link in links.items() if name.startswith("cali")] == [1450, 1450]
    assert "FLANNEL-POSTRTG" in " ".join(rules(node)["nat"])


def test_options_that_they_can_not_have() -> None:
    for mode, option in (("ptp", {"ipv6": True}), ("kubenet", {"ipv6": True}), ("gke", {"underlay_vlan": 7})):
        with pytest.raises(UsageError, match=f"lab {mode}: IPv4 only"):
            lab.up(mode, **option)
