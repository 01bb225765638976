"""Dumps read into snapshots: what the recordings hold, and what is left of damaged ones."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from netpath.discover import dump, iproute
from netpath.errors import UsageError
from netpath.model.snapshot import BridgeVlan, DeviceId, Namespace, Snapshot
from tests import recordings


def _named(snapshot: Snapshot, name: str) -> Namespace:
    return next(namespace for namespace in snapshot.namespaces if namespace.name == name)


@pytest.mark.parametrize("case", recordings.CASES)
def test_recordings_read_whole(case: str) -> None:
    """No problem but the file that recordings don't have, and every veth's peer found, pointing back."""
    snapshot = dump.read(recordings.folder(case))
    assert snapshot.problems == ("no rule6.json in this dump: the kernel's default IPv6 policy rules are assumed",)
    assert len(snapshot.namespaces) == 7
    links = {DeviceId(namespace.inode, link.ifindex): link for namespace in snapshot.namespaces for link in namespace.links}
    for namespace in snapshot.namespaces:
        assert namespace.problems == ()
        assert namespace.netfilter is not None and namespace.netfilter.unread == ()
        assert namespace.routes and namespace.rules and namespace.addresses and namespace.sysctls
        for link in namespace.links:
            if link.kind == "veth":
                assert link.peer is not None
                assert links[link.peer].peer == DeviceId(namespace.inode, link.ifindex)
    assert _named(snapshot, "fcn1").sockets is not None
    assert next(namespace for namespace in snapshot.namespaces if namespace.name in ("fcp1a", "c1")).sockets is None


@pytest.mark.parametrize("case", recordings.CASES)
def test_a_tar_reads_as_its_folder(case: str) -> None:
    assert dump.read(recordings.archive(case)) == dump.read(recordings.folder(case))


@pytest.mark.parametrize("case", recordings.CASES)
def test_namespaces_are_resolved_without_the_table_of_ids(case: str, tmp_path: Path) -> None:
    """nsid.json is this recording's own extra: the names in nsid.txt, and veths that point at each other, do as well."""
    whole = dump.read(recordings.folder(case))
    place = shutil.copytree(recordings.folder(case), tmp_path / case)
    (place / "nsid.json").unlink()
    assert _peers(dump.read(place)) == _peers(whole)
    for file in place.glob("*/nsid.txt"):
        file.unlink()
    # Each pod has the same two ifindexes on both nodes here: what can't be told must stay open, and never be wrong.
    without = _peers(dump.read(place))
    assert all(peer in (None, _peers(whole)[device]) for device, peer in without.items())


def _peers(snapshot: Snapshot) -> dict[DeviceId, DeviceId | None]:
    return {DeviceId(namespace.inode, link.ifindex): link.peer for namespace in snapshot.namespaces for link in namespace.links}


def test_numbers_alone_tell_namespaces_apart_where_they_can(tmp_path: Path) -> None:
    """Three namespaces in a row, without any nsid file."""

    def veth(index: int, name: str, peer: int, nsid: int) -> dict[str, object]:
        return {
            "ifindex": index,
            "ifname": name,
            "link_index": peer,
            "link_netnsid": nsid,
            "mtu": 1500,
            "linkinfo": {"info_kind": "veth"},
        }

    layout = {"left": [veth(2, "a", 5, 0)], "middle": [veth(5, "b", 2, 0), veth(6, "c", 7, 1)], "right": [veth(7, "d", 6, 3)]}
    for number, (name, links) in enumerate(layout.items(), start=100):
        (tmp_path / name).mkdir()
        (tmp_path / name / "link.json").write_text(json.dumps(links))
        (tmp_path / name / "inode.txt").write_text(f"{number}\n")
    snapshot = dump.read(tmp_path)
    assert _peers(snapshot) == {
        DeviceId(100, 2): DeviceId(101, 5),
        DeviceId(101, 5): DeviceId(100, 2),
        DeviceId(101, 6): DeviceId(102, 7),
        DeviceId(102, 7): DeviceId(101, 6),
    }
    assert _named(snapshot, "middle").nsids == ((0, 100), (1, 102))


def test_docker() -> None:
    snapshot = dump.read(recordings.folder("docker"))
    assert [(workload.reference, workload.netns) for workload in snapshot.workloads] == [
        (f"docker:{name}", _named(snapshot, name).inode) for name in ("c1", "c2", "c3", "c4")
    ]
    assert [workload.node for workload in snapshot.workloads] == ["fcn1", "fcn1", "fcn2", "fcn1"]
    sockets = _named(snapshot, "fcn1").sockets
    assert sockets is not None
    proxy = next(socket for socket in sockets if (socket.protocol, socket.address, socket.port) == ("udp", "0.0.0.0", 12346))
    assert (proxy.process, proxy.pid) == ("docker-proxy", 7218)
    assert proxy.command is not None and "-container-ip 172.17.0.2 -container-port 7071" in proxy.command
    # A proxy for IPv6 is in the process list alone: the sockets are IPv4's.
    assert any(socket.address == "::" and socket.port == 12346 and socket.command for socket in sockets)
    node = _named(snapshot, "fcn1")
    assert node.conntrack is not None and len(node.conntrack) == 44
    entry = next(entry for entry in node.conntrack if entry.original.sport == 50001)
    assert (entry.original.source, entry.original.dport, entry.reply.source, entry.reply.sport) == (
        "192.168.50.12",
        12346,
        "172.17.0.2",
        7071,
    )


def test_containers_listed_on_their_node_and_pods(tmp_path: Path) -> None:
    """`docker inspect` of everything, run on the node, and what crictl says of a sandbox."""
    place = _copy(tmp_path)
    inspected = [json.loads((place / name / "docker-inspect.json").read_text())[0] for name in ("c1", "c2", "c4")]
    for name in ("c1", "c2", "c4"):
        (place / name / "docker-inspect.json").unlink()
    (place / "fcn1" / "docker-inspect.json").write_text(json.dumps(inspected))
    pod = {"status": {"id": "5a4d", "metadata": {"name": "web-7", "namespace": "shop"}}, "info": {"pid": 77}}
    (place / "c3" / "crictl-inspectp.json").write_text(json.dumps([pod, {"status": {}}]))
    snapshot = dump.read(place)
    found = {workload.reference: (workload.netns, workload.id, workload.runtime) for workload in snapshot.workloads}
    whole = dump.read(recordings.folder("docker"))
    assert {key: value for key, value in found.items() if key.startswith("docker:")} == {
        workload.reference: (workload.netns, workload.id, "docker") for workload in whole.workloads
    }
    assert found["pod:shop/web-7"] == (_named(snapshot, "c3").inode, "5a4d", "cri")
    assert "c3/crictl-inspectp.json: a sandbox without a name" in snapshot.problems


def test_routes_devices_and_files() -> None:
    snapshot = dump.read(recordings.folder("flannel-vxlan-kubeproxy-nft"))
    node = _named(snapshot, "fcn1")
    device = next(link for link in node.links if link.name == "flannel.1")
    assert device.vxlan is not None and device.vxlan.link == next(link.ifindex for link in node.links if link.name == "eth0")
    assert (device.vxlan.vni, device.vxlan.port, device.vxlan.learning, device.mtu) == (1, 8472, False, 1450)
    route = next(route for route in node.routes if route.destination == "10.244.2.0/24")
    assert (route.table, route.nexthops[0].device, route.nexthops[0].gateway, route.nexthops[0].onlink) == (
        254,
        device.ifindex,
        "10.244.2.0",
        True,
    )
    default = next(route for route in node.routes if route.destination == "0.0.0.0/0")
    assert default.nexthops[0].gateway == "192.168.50.1"
    assert node.sysctls["net.ipv4.conf.flannel/1.rp_filter"] == "0"
    assert "FLANNEL_SUBNET=10.244.1.1/24" in snapshot.files["fcn1/subnet.env"]
    assert {"fcn2/cni.json", "services.json"} <= set(snapshot.files)


def test_two_machines_with_the_same_inodes_and_names(tmp_path: Path) -> None:
    """Every machine's first namespace has the same inode; side by side they stay apart, and their peers stay at home."""
    for name in ("n1", "n2"):
        shutil.copytree(recordings.folder("calico-bgp"), tmp_path / name)
    snapshot = dump.read(tmp_path)
    assert len(snapshot.namespaces) == 14
    assert len({namespace.inode for namespace in snapshot.namespaces}) == 14
    one, two = _named(snapshot, "n1/fcn1"), _named(snapshot, "n2/fcn1")
    assert two.inode == one.inode + dump.INODE_STEP
    home = {namespace.inode: namespace.name.split("/")[0] for namespace in snapshot.namespaces}
    for device, peer in _peers(snapshot).items():
        assert peer is None or home[peer.netns] == home[device.netns]
    assert {"n1/fcn1/bird.conf", "n2/fcn1/bird.conf"} <= set(snapshot.files)


# Damage


def _copy(tmp_path: Path, case: str = "docker") -> Path:
    return shutil.copytree(recordings.folder(case), tmp_path / case)


def test_a_file_cut_off_keeps_what_stands_before(tmp_path: Path) -> None:
    place = _copy(tmp_path)
    whole = _named(dump.read(place), "fcn1")
    routes = place / "fcn1" / "route.json"
    routes.write_text(routes.read_text()[: routes.stat().st_size * 2 // 3])
    cut = _named(dump.read(place), "fcn1")
    assert 0 < len(cut.routes) < len(whole.routes)
    assert set(cut.routes) < set(whole.routes)
    assert any("route.json: not whole JSON" in line for line in cut.problems)


def test_a_ruleset_cut_off_is_told_to_the_evaluator(tmp_path: Path) -> None:
    place = _copy(tmp_path)
    save = place / "fcn1" / "iptables-nft.save"
    save.write_text(save.read_text()[:-200])
    (place / "fcn1" / "nft.json").write_text('{"nftables": [{"tab')
    (place / "fcn2" / "iptables-legacy.save").unlink()
    snapshot = dump.read(place)
    one, two = _named(snapshot, "fcn1").netfilter, _named(snapshot, "fcn2").netfilter
    assert one is not None and two is not None
    assert any("cut off inside table" in line for line in one.unread) and any("nft.json" in line for line in one.unread)
    assert one.nft is None
    assert two.unread == ("iptables-legacy.save is missing",)


@pytest.mark.parametrize(
    "name", ["link.json", "addr.json", "route.json", "route6.json", "rule.json", "neigh.json", "fdb.json", "sysctl.txt", "nft.json"]
)
def test_a_missing_file_is_told(tmp_path: Path, name: str) -> None:
    place = _copy(tmp_path)
    (place / "fcn1" / name).unlink()
    snapshot = dump.read(place)
    if name == "link.json":
        assert any("fcn1: netns.tsv names it" in line for line in snapshot.problems)
    else:
        assert any(name in line for line in _named(snapshot, "fcn1").problems)


def test_files_whose_absence_means_unknown(tmp_path: Path) -> None:
    place = _copy(tmp_path)
    for name in ("ss.txt", "conntrack.txt"):
        (place / "fcn1" / name).unlink()
    (place / "fcn2" / "ss.txt").write_text("")
    (place / "fcn2" / "docker-proxy.txt").unlink()
    (place / "fcn2" / "conntrack.txt").write_text("")
    snapshot = dump.read(place)
    one, two = _named(snapshot, "fcn1"), _named(snapshot, "fcn2")
    assert (one.sockets, one.conntrack) == (None, None)
    assert (two.sockets, two.conntrack) == ((), ())


def test_rubbish_items_are_left_out_one_by_one(tmp_path: Path) -> None:
    place = _copy(tmp_path)
    file = place / "fcn1" / "addr.json"
    entries = json.loads(file.read_text())
    whole = len(_named(dump.read(place), "fcn1").addresses)
    entries[0]["addr_info"].append({"local": "999.1.1.1", "prefixlen": 8})
    entries.append({"ifname": "nosuch", "addr_info": [{"local": "1.2.3.4", "prefixlen": 8}]})
    file.write_text(json.dumps(entries))
    node = _named(dump.read(place), "fcn1")
    assert len(node.addresses) == whole
    assert any("'999.1.1.1' is not an address" in line for line in node.problems)
    assert any("'nosuch' is not in link.json" in line for line in node.problems)


def test_problems_of_one_file_are_few(tmp_path: Path) -> None:
    place = _copy(tmp_path)
    (place / "fcn1" / "conntrack.txt").write_text("rubbish line\n" * 5000)
    node = _named(dump.read(place), "fcn1")
    assert len(node.problems) == iproute.MAX_PROBLEMS + 1 and node.problems[-1] == "conntrack.txt: 4980 more problems"


def _empty_folder(place: Path) -> None:
    place.mkdir()


def _other_folder(place: Path) -> None:
    place.mkdir()
    (place / "readme.txt").write_text("nothing of ours")


def _text(place: Path) -> None:
    place.write_text("just text")


def _nothing(place: Path) -> None:
    pass


def _other_tar(place: Path) -> None:
    with tarfile.open(place, "w") as archive:
        _add(archive, "readme.txt", b"nothing of ours")


def _add(archive: tarfile.TarFile, name: str, content: bytes, kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, target
    archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("make", [_empty_folder, _other_folder, _text, _nothing, _other_tar])
def test_what_is_no_dump_is_one_clear_line(tmp_path: Path, make: Callable[[Path], None]) -> None:
    place = tmp_path / "thing"
    make(place)
    with pytest.raises(UsageError) as caught:
        dump.read(place)
    assert "\n" not in str(caught.value) and str(place) in str(caught.value)


def test_a_hostile_tar_reaches_nothing(tmp_path: Path) -> None:
    """Links, devices, absolute names and names that climb are left out; nothing is written anywhere."""
    (tmp_path / "secret").write_text("10.9.9.9")
    place = tmp_path / "bad.tar"
    with tarfile.open(place, "w") as archive:
        _add(archive, "d/ns/link.json", b"[]")
        _add(archive, "d/ns/inode.txt", b"4026531999")
        _add(archive, "d/ns/addr.json", b"", tarfile.SYMTYPE, str(tmp_path / "secret"))
        _add(archive, "d/ns/route.json", b"", tarfile.LNKTYPE, "/etc/passwd")
        _add(archive, "d/ns/neigh.json", b"", tarfile.FIFOTYPE)
        _add(archive, "../escaped", b"x")
        _add(archive, "/tmp/absolute-netpath-test", b"x")
        _add(archive, "d/ns/subnet.env", b"FLANNEL_MTU=1450\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    snapshot = dump.read(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not Path("/tmp/absolute-netpath-test").exists()
    assert len([line for line in snapshot.problems if "not a regular file inside the archive" in line]) == 5
    assert snapshot.files == {"ns/subnet.env": "FLANNEL_MTU=1450\n"}


def test_a_folder_with_links_and_fifos(tmp_path: Path) -> None:
    import os

    place = _copy(tmp_path)
    (place / "fcn1" / "addr.json").unlink()
    (place / "fcn1" / "addr.json").symlink_to("/etc/passwd")
    os.mkfifo(place / "fcn1" / "extra.txt")
    snapshot = dump.read(place)
    assert sum("not a regular file" in line for line in snapshot.problems) == 2
    assert "addr.json is missing" in _named(snapshot, "fcn1").problems


def test_a_bomb_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netpath.discover.archive.MAX_FILE", 1000)
    monkeypatch.setattr("netpath.discover.archive.MAX_TOTAL", 2500)
    place = tmp_path / "bomb.tar.gz"
    with tarfile.open(place, "w:gz") as archive:
        _add(archive, "d/ns/link.json", b"[]")
        _add(archive, "d/ns/route.json", b"0" * 5000)
        for number in range(9):
            _add(archive, f"d/ns/{number}.txt", b"0" * 900)
    snapshot = dump.read(place)
    assert any("route.json: 5000 bytes are more than" in line for line in snapshot.problems)
    assert any("left out, the dump is larger" in line for line in snapshot.problems)


@pytest.mark.parametrize("case", ["docker", "calico-bgp"])
def test_a_tar_cut_off_gives_what_it_holds(case: str, tmp_path: Path) -> None:
    plain = tmp_path / "whole.tar"
    with tarfile.open(plain, "w") as archive:
        archive.add(recordings.folder(case), arcname=case)
    content = plain.read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(content[: len(content) // 2 + 77])
    snapshot = dump.read(cut)
    assert snapshot.namespaces
    assert any("the archive is damaged" in line or "is missing" in line or "not in the dump" in line for line in snapshot.problems)


# Command output that the recordings don't have


def _names() -> iproute.Names:
    return iproute.Names({"eth0": 2, "eth1": 3, "vx": 4})


def test_routes_of_every_kind() -> None:
    text = json.dumps(
        [
            {
                "type": "unicast",
                "dst": "default",
                "gateway": "fe80::1",
                "dev": "eth0",
                "table": "main",
                "protocol": "ra",
                "scope": "global",
                "metric": 1024,
                "flags": [],
            },
            {
                "type": "unicast",
                "dst": "fd00::/64",
                "from": "fd01::/48",
                "dev": "eth1",
                "metrics": [{"mtu": 1400}],
                "flags": ["linkdown"],
            },
            {"type": "unreachable", "dst": "fd02::1", "dev": "eth0", "table": "1000", "flags": []},
            {"dst": "fd03::/64", "nhid": 7, "flags": []},
            {"dst": "fd04::/64", "encap": "seg6", "dev": "eth0", "flags": []},
        ]
    )
    problems: list[str] = []
    default, source, unreachable, byid, encap = iproute.routes(text, 6, _names(), problems, "route6.json")
    assert problems == []
    assert (default.destination, default.nexthops[0].gateway, default.metric) == ("::/0", "fe80::1", 1024)
    assert (source.source, source.mtu, source.nexthops[0].flags) == ("fd01::/48", 1400, ("linkdown",))
    assert (unreachable.type, unreachable.destination, unreachable.table) == ("unreachable", "fd02::1/128", 1000)
    assert (byid.nexthop_id, byid.nexthops) == (7, ())
    assert encap.nexthops[0].encap == "seg6"
    via = json.dumps([{"dst": "10.0.0.0/8", "via": {"family": "inet6", "host": "fe80::2"}, "dev": "eth0", "flags": ["onlink"]}])
    (route,) = iproute.routes(via, 4, _names(), problems, "route.json")
    assert route.nexthops[0].gateway == "fe80::2" and route.nexthops[0].onlink


def test_rules_of_every_kind() -> None:
    text = json.dumps(
        [
            {
                "priority": 10,
                "not": None,
                "src": "10.0.0.0",
                "srclen": 8,
                "dst": "all",
                "iif": "eth0",
                "table": "main",
                "suppress_prefixlen": 0,
            },
            {
                "priority": 11,
                "src": "all",
                "ipproto": "udp",
                "sport_start": 100,
                "sport_end": 200,
                "dport": 53,
                "action": "unreachable",
            },
            {"priority": 12, "src": "all", "goto": 32766, "fwmark": "0x4000", "fwmask": "0x4000"},
            {"priority": 13, "src": "all", "l3mdev": None, "table": "l3mdev-table"},
        ]
    )
    problems: list[str] = []
    found = iproute.rules(text, 4, _names(), problems, "rule.json")
    first, second, third = found
    assert (first.source, first.destination, first.in_device, first.invert, first.suppress_prefixlength) == (
        "10.0.0.0/8",
        None,
        "eth0",
        True,
        0,
    )
    assert (second.ip_protocol, second.source_ports, second.destination_ports, second.action) == (
        17,
        (100, 200),
        (53, 53),
        "unreachable",
    )
    assert (third.action, third.goto, third.fwmark, third.fwmask) == ("goto", 32766, 0x4000, 0x4000)
    assert problems == ["rule.json: routing table 'l3mdev-table' has no known number (rt_tables is not in the dump)"]


def test_sockets_as_ss_prints_them() -> None:
    text = (
        'udp UNCONN 0 0 127.0.0.53%lo:53 0.0.0.0:* users:(("resolved",pid=12,fd=3))\n'
        "udp ESTAB 0 0 10.0.0.1:5000 10.0.0.2:53\n"
        "tcp LISTEN 0 128 *:80 *:*\n"
        "tcp LISTEN 0 128 [::]:81 [::]:*\n"
        "tcp LISTEN 0 128 [fe80::1]%eth0:82 [::]:*\n"
        "tcp ESTAB 0 0 10.0.0.1:80 10.0.0.2:999\n"
    )
    problems: list[str] = []
    found = iproute.sockets(text, problems)
    assert problems == []
    assert [(s.protocol, s.address, s.port, s.device, s.connected, s.v6only) for s in found] == [
        ("udp", "127.0.0.53", 53, "lo", False, False),
        ("udp", "10.0.0.1", 5000, None, True, False),
        ("tcp", "::", 80, None, False, False),
        ("tcp", "::", 81, None, False, True),
        ("tcp", "fe80::1", 82, "eth0", False, False),
    ]
    assert (found[0].process, found[0].pid) == ("resolved", 12)


def test_conntrack_as_its_tools_print_it() -> None:
    text = (
        "conntrack v1.4.7 (conntrack-tools): 3 flow entries have been shown.\n"
        "udp      17 22 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 [UNREPLIED]"
        " src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 mark=7 use=1\n"
        "ipv6     10 tcp      6 431999 ESTABLISHED src=fd00::1 dst=fd00::2 sport=1 dport=2"
        " src=fd00::2 dst=fd00::1 sport=2 dport=1 [ASSURED] mark=0 zone=3 use=1\n"
        "ipv4     2 icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=77"
        " src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=77 mark=0 use=1\n"
    )
    problems: list[str] = []
    udp, tcp, icmp = iproute.conntrack(text, problems)
    assert problems == []
    assert (udp.family, udp.protocol, udp.flags, udp.mark, udp.timeout, udp.state) == (4, "udp", ("unreplied",), 7, 22, None)
    assert (tcp.family, tcp.state, tcp.flags, tcp.zone, tcp.reply.source) == (6, "ESTABLISHED", ("assured",), 3, "fd00::2")
    assert (icmp.protocol, icmp.original.sport) == ("icmp", 77)


def test_vlans_programs_and_nexthops() -> None:
    problems: list[str] = []
    text = json.dumps(
        [{"ifname": "eth0", "vlans": [{"vlan": 1, "flags": ["PVID", "Egress Untagged"]}, {"vlan": 20, "vlanEnd": 22}]}]
    )
    assert iproute.vlans(text, _names(), problems) == {
        2: (BridgeVlan(1, True, True), BridgeVlan(20), BridgeVlan(21), BridgeVlan(22)),
    }
    tcx = {"devname": "eth0", "ifindex": 2, "kind": "tcx/ingress", "name": "from_pod", "prog_id": 9}
    clsact = {"devname": "eth1", "ifindex": 3, "kind": "clsact/egress", "name": "x", "id": 8}
    net = json.dumps([{"xdp": [], "tc": [tcx, clsact]}])
    programs = iproute.programs(net, _names(), problems)
    assert [(p.hook, p.id, p.name) for p in (*programs[2], *programs[3])] == [("tcx ingress", 9, "from_pod"), ("tc egress", 8, "x")]
    hops = json.dumps(
        [{"id": 1, "gateway": "10.0.0.1", "dev": "eth0", "flags": []}, {"id": 2, "group": [{"id": 1, "weight": 3}], "flags": []}]
    )
    one, two = iproute.nexthops(hops, _names(), problems)
    assert (one.gateway, one.device, one.family, two.group) == ("10.0.0.1", 2, 4, ((1, 3),))
    assert problems == []


def test_the_script_is_shipped() -> None:
    assert dump.script().startswith("#!/bin/sh\n")


@pytest.mark.parametrize("case", recordings.CASES)
def test_the_quick_way_through_conntrack_is_the_slow_one(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Common lines are read by one pattern, all others word by word; both must say the same."""
    text = "".join(path.read_text() for path in sorted(recordings.folder(case).glob("*/conntrack.txt")))
    quick = iproute.conntrack(text, [])
    assert text == "" or any(iproute._PLAIN.fullmatch(line) for line in text.splitlines())
    monkeypatch.setattr(iproute, "_PLAIN", re.compile("(?!)"))
    assert iproute.conntrack(text, []) == quick
