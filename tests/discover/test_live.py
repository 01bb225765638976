"""Discovery of real namespaces, with iproute2 and the rulesets' own tools as witnesses."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netpath import discover, snapshotfile
from netpath.discover import iproute
from netpath.model.packet import Flow
from netpath.model.snapshot import DeviceId, Link, Namespace, Snapshot
from tests.netns import Netns, namespaces, run, veth_pair

pytestmark = pytest.mark.root

LIBC = ctypes.CDLL(None, use_errno=True)


def read(*wanted: Netns, **options: Any) -> Snapshot:
    return discover.take(only=[each.inode for each in wanted], **options)


def of(snapshot: Snapshot, netns: Netns) -> Namespace:
    (found,) = [each for each in snapshot.namespaces if each.inode == netns.inode]
    return found


def link(namespace: Namespace, name: str) -> Link:
    (found,) = [each for each in namespace.links if each.name == name]
    return found


def names(namespace: Namespace) -> iproute.Names:
    return iproute.Names({each.name: each.ifindex for each in namespace.links})


OPTIONAL = (
    "ip link set br0 type bridge vlan_filtering 1 vlan_default_pvid 5",
    "bridge vlan add dev p0 vid 20-23",
    "bridge vlan add dev p0 vid 30 pvid untagged",
    "bridge vlan add dev br0 vid 30 self",
    "ip link add link up.7 v10 type vlan id 10 protocol 802.1ad",
    "ip link add link up.7 iv0 type ipvlan mode l3",
    "ip link add vrf0 type vrf table 900",
    "ip link add tun4 type ipip local 10.9.0.1 remote 10.9.0.2 ttl 9",
    "ip link add gre4 type gre local 10.9.0.1 remote 10.9.0.3 key 5",
    "ip link add ip6t type ip6tnl local fd09::1 remote fd09::2",
    "ip link add du0 type dummy",
    "ip link add bo0 type bond mode 802.3ad",
)


@pytest.fixture(scope="module")
def furnished() -> Iterator[tuple[Netns, Netns]]:
    """A namespace with one of everything that this kernel can make, and one at the other end of its veth."""
    with namespaces(2) as (a, b):
        run("ip", "link", "add", "up.7", "netns", a.name, "type", "veth", "peer", "far", "netns", b.name)
        a.batch(
            "link add br0 type bridge stp_state 0 mcast_snooping 0 nf_call_iptables 1 group_fwd_mask 8",
            "link add p0 type veth peer p1",
            "link set p0 master br0",
            "link set p0 type bridge_slave hairpin on isolated on flood off learning off neigh_suppress on",
            "link add link up.7 mv0 type macvlan mode bridge",
            "link add vx0 mtu 1400 type vxlan id 77 dstport 4790 local 10.9.0.1 dev up.7 nolearning ttl 33 df set",
            "link add vxg type vxlan id 78 dstport 4791 group 239.1.1.1 dev up.7 udpcsum",
            "link add vxm type vxlan external dstport 4792",
            "tuntap add t0 mode tun",
            "tuntap add t1 mode tap",
            "addr add 10.9.0.1/24 brd + dev up.7",
            "addr add 10.9.0.9/24 dev up.7",
            "addr add 10.8.0.1 peer 10.8.0.2/32 dev t0",
            "addr add fd09::1/64 dev up.7 nodad",
            "link set br0 up",
            "link set p0 up",
            "link set p1 up",
            "link set up.7 up",
            "link set vx0 up",
            "link set t0 up",
            "neigh add 10.9.0.5 lladdr 02:00:00:00:00:05 dev up.7 nud permanent",
            "neigh add fd09::5 lladdr 02:00:00:00:00:05 dev up.7 nud permanent",
            "neigh add 10.9.0.6 lladdr 02:00:00:00:00:06 dev up.7 nud noarp",
            "neigh add proxy 10.9.0.77 dev up.7",
            "neigh add proxy fd09::77 dev up.7",
        )
        b.batch("addr add 10.9.0.2/24 dev far", "addr add fd09::2/64 dev far nodad", "link set far up")
        a.batch(
            "route add 10.20.0.0/16 via 10.9.0.2 metric 50 mtu 1300",
            "route add 10.21.0.0/16 via 172.30.0.1 dev up.7 onlink src 10.9.0.1",
            "route add 10.22.0.0/16 nexthop via 10.9.0.2 weight 3 nexthop via 10.9.0.3 weight 1 onlink dev up.7",
            "route add blackhole 10.23.0.0/16",
            "route add unreachable 10.24.0.0/16 table 700",
            "route add prohibit 10.25.0.0/16 proto 80",
            "route add throw 10.26.0.0/16 table 700",
            "route add 10.27.0.0/16 via inet6 fd09::2 dev up.7",
            "route add 10.28.0.0/16 dev t0 scope link proto bird tos 0x10",
            "nexthop add id 11 via 10.9.0.2 dev up.7",
            "nexthop add id 12 via 10.9.0.3 dev up.7",
            "nexthop add id 13 group 11,5/12",
            "nexthop add id 14 blackhole",
            "nexthop add id 15 via fd09::2 dev up.7",
            "nexthop add id 16 via 10.9.0.4 fdb",
            "route add 10.29.0.0/16 nhid 13",
            "route add 10.30.0.0/16 nhid 11",
            "route add fd20::/48 via fd09::2 metric 77",
            "route add fd21::/48 nexthop via fd09::2 dev up.7 weight 2 nexthop via fd09::3 dev up.7",
            "route add fd22::/48 from fd09::/64 via fd09::2",
            "route add unreachable fd23::/48",
            "route add fd24::/48 nhid 15",
            "rule add from 10.9.0.0/24 to 10.20.0.0/16 iif br0 oif up.7 fwmark 0x4000/0x4000 table 700 priority 100",
            "rule add not from 10.1.0.0/16 ipproto udp sport 53 dport 100-200 lookup main suppress_prefixlength 0 priority 101",
            "rule add priority 102 goto 105",
            "rule add priority 103 blackhole",
            "rule add priority 105 nop",
            "rule add priority 106 uidrange 100-200 prohibit",
        )  # fmt: skip
        a.ip("-6", "rule", "add", "from", "fd09::/64", "table", "800", "priority", "90")
        # What not every kernel has: it is compared where it is.
        for words in OPTIONAL:
            program, *rest = words.split()
            subprocess.run([program, "-n", a.name, *rest], check=False, capture_output=True)
        run("bridge", "-n", a.name, "fdb", "append", "00:00:00:00:00:00", "dev", "vx0", "dst", "10.9.0.2", "self", "permanent")
        run("bridge", "-n", a.name, "fdb", "append", "00:00:00:00:00:00", "dev", "vx0", "dst", "10.9.0.3", "port", "9999",
            "vni", "5", "self", "permanent")  # fmt: skip
        run("bridge", "-n", a.name, "fdb", "add", "02:00:00:00:00:99", "dev", "p0", "master", "static")
        yield a, b


def test_links_equal_what_ip_says(furnished: tuple[Netns, Netns]) -> None:
    a, _ = furnished
    got = of(read(a), a)
    problems: list[str] = []
    expected = iproute.links(a.ip("-d", "-j", "link"), problems)
    vlans = iproute.vlans(run("bridge", "-n", a.name, "-j", "vlan"), names(got), problems)
    assert problems == []
    assert len(expected) >= 11
    for ours, theirs in zip(got.links, expected, strict=True):
        flags = tuple(flag for flag in theirs.flags if flag != "M-DOWN")
        mine = replace(ours, peer=None, tx_checksum_offload=None, programs=(), vlans=())
        assert mine == replace(theirs, flags=flags), ours.name
        assert ours.vlans == vlans.get(ours.ifindex, ())
    assert {each.kind for each in got.links} >= {"veth", "bridge", "macvlan", "vxlan", "tun", "loopback"}


def test_peers_are_found_across_and_within_namespaces(furnished: tuple[Netns, Netns]) -> None:
    a, b = furnished
    snapshot = read(a, b)
    here, there = of(snapshot, a), of(snapshot, b)
    assert link(here, "up.7").peer == DeviceId(b.inode, link(there, "far").ifindex)
    assert link(there, "far").peer == DeviceId(a.inode, link(here, "up.7").ifindex)
    assert link(here, "p0").peer == DeviceId(a.inode, link(here, "p1").ifindex)
    assert link(here, "mv0").peer == DeviceId(a.inode, link(here, "up.7").ifindex)
    assert link(here, "vx0").peer is None
    assert dict(here.nsids)[link(here, "up.7").lower_nsid or 0] == b.inode
    # Nobody reads the other namespace now: its end is known by number only.
    assert link(of(read(a), a), "up.7").peer is None


def test_addresses_routes_rules_and_nexthops_equal_what_ip_says(furnished: tuple[Netns, Netns]) -> None:
    a, _ = furnished
    got = of(read(a), a)
    known, problems = names(got), list[str]()
    assert sorted(got.addresses, key=repr) == sorted(iproute.addresses(a.ip("-j", "addr"), known, problems), key=repr)
    for family, option in ((4, "-4"), (6, "-6")):
        theirs = iproute.routes(a.ip(option, "-j", "-d", "route", "show", "table", "all"), family, known, problems, "route")
        ours = [each for each in got.routes if each.family == family]
        assert sorted(ours, key=repr) == sorted(theirs, key=repr)
        rules = iproute.rules(a.ip(option, "-j", "-d", "rule"), family, known, problems, "rule")
        assert [each for each in got.rules if each.family == family] == list(rules)
    assert list(got.nexthops) == sorted(iproute.nexthops(a.ip("-j", "-d", "nexthop"), known, problems), key=lambda each: each.id)
    assert problems == []
    assert [each.destination for each in got.routes if each.nexthop_id == 13] == ["10.29.0.0/16"]
    assert [hop.gateway for each in got.routes if each.destination == "10.27.0.0/16" for hop in each.nexthops] == ["fd09::2"]


def test_neighbours_and_fdb_equal_what_iproute2_says(furnished: tuple[Netns, Netns]) -> None:
    a, _ = furnished
    got = of(read(a), a)
    known, problems = names(got), list[str]()
    theirs = [
        *iproute.neighbours(a.ip("-j", "neigh", "show", "nud", "permanent"), known, problems),
        *iproute.neighbours(a.ip("-j", "neigh", "show", "proxy"), known, problems, proxy=True),
        *iproute.neighbours(a.ip("-j", "-6", "neigh", "show", "proxy"), known, problems, proxy=True),
    ]
    ours = [each for each in got.neighbours if each.state in ("PERMANENT", "NONE")]
    assert sorted(ours, key=repr) == sorted(set(theirs), key=repr)
    assert [each.address for each in got.neighbours if each.state == "NOARP"] == ["10.9.0.6"]
    entries = iproute.fdb(run("bridge", "-n", a.name, "-j", "-d", "fdb"), known, problems)
    assert sorted(got.fdb, key=repr) == sorted(entries, key=repr)
    assert {(each.destination, each.port, each.vni) for each in got.fdb if each.device == link(got, "vx0").ifindex} >= {
        ("10.9.0.2", None, None),
        ("10.9.0.3", 9999, 5),
    }
    assert problems == []


def test_sysctls_equal_the_files(furnished: tuple[Netns, Netns]) -> None:
    a, _ = furnished
    changed = {
        "ipv4": {"rp_filter": 2, "accept_local": 1, "arp_ignore": 3, "disable_policy": 1, "route_localnet": 1, "src_valid_mark": 1},
        "ipv6": {"proxy_ndp": 1, "accept_ra": 2, "disable_policy": 1, "use_oif_addrs_only": 1, "disable_ipv6": 1},
    }
    for family, values in changed.items():
        for setting, value in values.items():
            a.sysctl(f"net.{family}.conf.br0.{setting}", value)
    a.sysctl("net.ipv4.ip_default_ttl", 63)
    got = of(read(a), a).sysctls
    assert got["net.ipv4.conf.br0.rp_filter"] == "2"
    assert "net.ipv4.conf.up/7.forwarding" in got

    def files() -> dict[str, str]:
        found = {}
        for name in got:
            path = Path("/proc/sys", *[part.replace("/", ".") for part in name.split(".")])
            found[name] = path.read_text().strip()
        return found

    assert got == a.call(files)
    listed = {line.split(" = ")[0] for line in a.run("sysctl", "-a").splitlines()}
    assert set(got) <= listed


def test_checksum_offload_equals_ethtool(furnished: tuple[Netns, Netns]) -> None:
    a, _ = furnished
    got = of(read(a), a)
    assert link(got, "up.7").tx_checksum_offload is True
    assert link(got, "t0").tx_checksum_offload is False


def test_a_snapshot_of_an_unchanged_system_is_the_same_and_survives_a_file(furnished: tuple[Netns, Netns], tmp_path: Path) -> None:
    first, second = read(*furnished), read(*furnished)
    assert replace(first, taken_at="") == replace(second, taken_at="")
    assert snapshotfile.encode(first) == snapshotfile.encode(first)
    file = tmp_path / "snapshot.json"
    file.write_bytes(snapshotfile.encode(first))
    assert snapshotfile.load(file) == first


# Rulesets


def test_an_empty_namespace_has_no_rulesets_and_starts_no_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a tool was started")

    with namespaces(1) as (a,):
        monkeypatch.setattr("netpath.discover.rulesets._Run", forbidden)
        got = of(read(a), a).netfilter
        assert got is not None
        assert (got.xtables, got.nft, got.ipset, got.unread) == ((), None, None, ())


def without_counters(text: str) -> list[str]:
    return [line.partition("]")[2] if line.startswith("[") else line for line in text.splitlines() if not line.startswith("#")]


def test_rulesets_are_what_the_tools_print() -> None:
    with namespaces(3) as (xt, legacy, native):
        xt.run("iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-s", "10.0.0.0/8", "-j", "MASQUERADE", "--random-fully")
        xt.run(
            "ip6tables-nft", "-A", "FORWARD", "-p", "tcp", "--dport", "80", "-m", "comment", "--comment", 'a "b" ü', "-j", "DROP"
        )
        legacy.run("iptables-legacy", "-A", "INPUT", "-p", "udp", "-j", "REJECT")
        native.run("nft", "add table inet t; add chain inet t c { type filter hook input priority 0; }")
        native.run("nft", "add rule inet t c udp dport 9 drop")
        snapshot = read(xt, legacy, native)
        got = of(snapshot, xt).netfilter
        assert got is not None and got.unread == ()
        assert [(each.family, each.backend) for each in got.xtables] == [(4, "nft"), (6, "nft")]
        assert without_counters(got.xtables[0].text) == without_counters(xt.run("iptables-nft-save", "-c"))
        assert without_counters(got.xtables[1].text) == without_counters(xt.run("ip6tables-nft-save", "-c"))
        assert got.nft is None, "iptables-nft-save says it all"
        got = of(snapshot, legacy).netfilter
        assert got is not None and [(each.family, each.backend) for each in got.xtables] == [(4, "legacy")]
        assert "-j REJECT" in got.xtables[0].text
        got = of(snapshot, native).netfilter
        assert got is not None and got.nft is not None and got.xtables == ()
        assert json.loads(got.nft) == json.loads(native.run("nft", "-j", "list", "ruleset"))
        xt.run("nft", "add table ip6 own")
        got = of(read(xt), xt).netfilter
        assert got is not None and got.nft is not None and '"own"' in got.nft and len(got.xtables) == 2


def test_rules_without_their_tool_are_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    from netpath.discover import rulesets

    with namespaces(1) as (a,):
        a.run("nft", "add table inet t")
        monkeypatch.setattr(rulesets, "_which", lambda name: None)
        got = of(read(a), a).netfilter
    assert got is not None and got.nft is None
    assert got.unread == ("nftables rules: nft is not installed (Debian: apt install nftables)",)


def test_sets_are_read_when_rules_use_them() -> None:
    with namespaces(1) as (a,):
        a.run("ipset", "create", "npts", "hash:ip")
        a.run("ipset", "add", "npts", "10.1.2.3")
        a.run("iptables-nft", "-A", "INPUT", "-m", "set", "--match-set", "npts", "src", "-j", "DROP")
        got = of(read(a), a).netfilter
        a.run("iptables-nft", "-F")
    assert got is not None and got.ipset is not None and "add npts 10.1.2.3" in got.ipset


# Programs, IPsec, conntrack, sockets


def test_filters_are_seen() -> None:
    with namespaces(1) as (a,):
        a.batch("link add d0 type veth peer d1", "link add d2 type veth peer d3")
        a.run("tc", "qdisc", "add", "dev", "d0", "clsact")
        a.run("tc", "filter", "add", "dev", "d0", "ingress", "bpf", "da", "bytecode", "1,6 0 0 0")
        a.run("tc", "filter", "add", "dev", "d0", "egress", "protocol", "ip", "u32", "match", "u32", "0", "0", "action", "mirred",
              "egress", "redirect", "dev", "d2")  # fmt: skip
        a.run("tc", "qdisc", "add", "dev", "d2", "clsact")
        got = of(read(a), a)
        assert [(each.hook, each.id, each.name) for each in link(got, "d0").programs] == [
            ("tc ingress", None, "bpf"),
            ("tc egress", None, "u32 mirred"),
        ]
        assert link(got, "d1").programs == () and link(got, "d2").programs == ()


def bpf(command: int, layout: str, *values: int | bytes) -> int:
    """bpf(2) with the attributes packed; the descriptor it returns."""
    attr = ctypes.create_string_buffer(struct.pack(layout, *values), 128)
    result: int = LIBC.syscall(321, command, attr, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


@pytest.mark.ebpf
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of bpf(2) is x86-64's")
@pytest.mark.parametrize(("kind", "attach", "hook"), [(3, 46, "tcx ingress"), (3, 47, "tcx egress"), (6, 37, "xdp")])
def test_programs_without_a_qdisc_are_seen(kind: int, attach: int, hook: str) -> None:
    code = struct.pack("=BBhi", 0xB7, 0, 0, 2 if hook == "xdp" else -1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    instructions, licence, name = ctypes.create_string_buffer(code, 16), ctypes.create_string_buffer(b"GPL"), b"npt_pass"
    with namespaces(1) as (a,), ExitStack() as stack:
        a.batch("link add d0 type veth peer d1", "link set d0 up")
        program = bpf(5, "=IIQQIIQI I16s", kind, 2, ctypes.addressof(instructions), ctypes.addressof(licence), 0, 0, 0, 0, 0, name)
        stack.callback(os.close, program)
        index = a.call(lambda: socket.if_nametoindex("d0"))
        stack.callback(os.close, a.call(lambda: bpf(28, "=IIII", program, index, attach, 0)))
        (seen,) = link(of(read(a), a), "d0").programs
        assert (seen.hook, seen.name) == (hook, "npt_pass")
        assert seen.id is not None and seen.id > 0
        assert link(of(read(a), a), "d1").programs == ()


def test_ipsec_policies_are_counted() -> None:
    with namespaces(1) as (a,):
        assert of(read(a), a).xfrm_policies == 0
        for direction in ("in", "out", "fwd"):
            a.ip("xfrm", "policy", "add", "src", "10.1.0.0/16", "dst", "10.2.0.0/16", "dir", direction)
        assert of(read(a), a).xfrm_policies == 3


def test_conntrack_entries_of_the_flow_only() -> None:
    with veth_pair() as (a, b):
        b.run("iptables-nft", "-t", "nat", "-A", "PREROUTING", "-p", "udp", "--dport", "53", "-j", "REDIRECT", "--to-ports", "5353")
        with a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, b.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("10.9.0.2", 5353))
            receiver.settimeout(5)
            sender.bind(("10.9.0.1", 4444))
            sender.sendto(b"x", ("10.9.0.2", 53))
            receiver.recv(10)
            snapshot = read(a, b, conntrack_for=Flow(a.inode, "10.9.0.2", "udp", dport=53))
            other = read(a, b, conntrack_for=Flow(a.inode, "10.9.0.99", "udp", dport=53))
            none = read(a, b)
            late = discover.with_conntrack(none, Flow(a.inode, "10.9.0.2", "udp", dport=53))
        found = [of(each, b).conntrack for each in (snapshot, other, none)]
        assert replace(late, taken_at="", namespaces=()) == replace(none, taken_at="", namespaces=())
        assert len(of(late, b).conntrack or ()) == 1
    (entry,) = found[0] or ()
    assert (entry.protocol, entry.family, entry.flags) == ("udp", 4, ("unreplied",))
    assert (entry.original.sport, entry.original.dport, entry.reply.sport) == (4444, 53, 5353)
    assert found[1:] == [(), None]


def test_sockets_and_their_owners() -> None:
    with (
        veth_pair() as (a, _),
        a.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        a.socket(socket.AF_INET6, socket.SOCK_STREAM) as tcp,
        a.socket(socket.AF_INET, socket.SOCK_DGRAM) as connected,
    ):
        udp.bind(("10.9.0.1", 700))
        tcp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"a0")
        tcp.bind(("::", 701))
        tcp.listen()
        connected.bind(("10.9.0.1", 702))
        connected.connect(("10.9.0.2", 9))
        got = of(read(a), a).sockets
    assert got is not None
    assert [(s.protocol, s.address, s.port, s.device, s.connected, s.v6only) for s in got] == [
        ("tcp", "::", 701, "a0", False, True),
        ("udp", "10.9.0.1", 700, None, False, False),
        ("udp", "10.9.0.1", 702, None, True, False),
    ]
    assert all(each.pid is not None and each.process for each in got)


# Change and size


def test_a_namespace_that_vanishes_midway_is_reported_and_skipped() -> None:
    with namespaces(2) as (stays, goes):
        inode, kept = goes.inode, stays.inode

        def hook(_: str) -> None:
            run("ip", "netns", "del", goes.name)

        snapshot = discover.take(only=[kept, inode], progress=hook)
    assert [each.inode for each in snapshot.namespaces] == [kept]
    assert snapshot.problems == (f"the network namespace {goes.name} vanished while it was to be read",)


def test_a_device_that_vanishes_midway_leaves_the_rest_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from netpath.discover import links

    with namespaces(1) as (a,):
        a.batch("link add d0 type veth peer d1", "link add d2 type veth peer d3")
        original = links.checksum_offload

        def meanwhile(raw_names: Any) -> dict[int, bool]:
            a.ip("link", "del", "d0")
            return original(raw_names)

        monkeypatch.setattr(links, "checksum_offload", meanwhile)
        got = of(read(a), a)
    assert link(got, "d2").tx_checksum_offload is not None and link(got, "d0").tx_checksum_offload is None
    assert got.problems == ()


def test_the_calling_thread_stays_where_it_was() -> None:
    before = Path("/proc/thread-self/ns/net").readlink()
    with namespaces(1) as (a,):
        read(a)
    assert Path("/proc/thread-self/ns/net").readlink() == before


@contextmanager
def large() -> Iterator[Netns]:
    with namespaces(1) as (a,):
        a.batch(
            *(f"link add a{i} type veth peer b{i}" for i in range(100)),
            "link set a0 up",
            "link set b0 up",
            "addr add 10.9.0.1/24 dev a0",
            *(f"route add 10.{100 + i // 250}.{i % 250}.0/24 via 10.9.0.2" for i in range(1000)),
        )
        yield a


def test_a_thousand_routes_are_complete_and_fast() -> None:
    with large() as a:
        started = time.process_time()
        got = of(read(a), a)
        spent = time.process_time() - started
    assert len([each for each in got.routes if each.nexthops and each.nexthops[0].gateway == "10.9.0.2"]) == 1000
    assert len(got.links) == 201
    assert spent < 1.0
