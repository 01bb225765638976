"""The collecting script, run for real by two shells on namespaces made here, and read back."""

from __future__ import annotations

import io
import json
import secrets
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from netpath import discover
from netpath.discover import dump
from netpath.model.snapshot import DeviceId, Namespace, Snapshot
from tests.netns import Netns, namespaces, run

pytestmark = pytest.mark.root

SHELLS = {"dash": ["dash"], "busybox": ["busybox", "sh"]}

# The script sees the machine as this shell shows it: only the namespaces under test in /run/netns, only this shell's processes
# in /proc. The sleeper is a namespace without a name, as a container's is.
CAGE = r"""
mkdir "$OUT/netns" && mount -t tmpfs none "$OUT/netns" || exit 90
for name in "$@"; do
    : >"$OUT/netns/$name" && mount --bind "/run/netns/$name" "$OUT/netns/$name" || exit 91
done
mount --rbind "$OUT/netns" /run/netns || exit 92
: >/run/netns/leftover
unshare -n sleep 600 &
until [ -n "$(readlink /proc/$!/ns/net)" ] && [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
echo $! >"$OUT/pid"
readlink /proc/$!/ns/net >"$OUT/inode"
cat /proc/self/mounts >"$OUT/before"
$SHELL_UNDER_TEST "$SCRIPT" $ARGUMENTS >"$OUT/stdout" 2>"$OUT/stderr"
code=$?
cat /proc/self/mounts >"$OUT/after"
kill $!
exit $code
"""


@dataclass(frozen=True)
class Collected:
    """What one run of the script left."""

    node: Netns
    pod: Netns
    nameless: int
    tar: bytes
    stderr: str
    live: Snapshot
    """What discovery read of the same two namespaces, just after."""
    mounts: tuple[str, str]
    """The cage's mounts before the script ran and after."""

    def snapshot(self, folder: Path) -> Snapshot:
        place = folder / "node.tar"
        place.write_bytes(self.tar)
        return dump.read(place)


def collect(shell: str, spaces: tuple[Netns, ...], folder: Path, arguments: str = "") -> subprocess.CompletedProcess[str]:
    script = folder / "collect.sh"
    script.write_text(dump.script())
    return subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", CAGE, "sh", *(space.name for space in spaces)],
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "OUT": str(folder),
            "SCRIPT": str(script),
            "SHELL_UNDER_TEST": " ".join(SHELLS[shell]),
            "ARGUMENTS": arguments,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module", params=sorted(SHELLS))
def collected(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collected]:
    folder = tmp_path_factory.mktemp("collect")
    with namespaces(2) as (node, pod):
        for netns in (node, pod):
            netns.sysctl("net.ipv6.conf.default.accept_dad", 0)  # or addresses change while two readers look
        node.batch(
            "link add br0 type bridge",
            f"link add host0 type veth peer eth0 netns {pod.name}",
            "link set host0 master br0",
            "link add left type veth peer right",
            "link add vx.100 type vxlan id 100 dstport 4789 local 10.77.0.1 nolearning dev left",
            "addr add 10.77.0.1/24 dev br0",
            "addr add fd77::1/64 dev br0 nodad",
            "link set br0 up",
            "link set host0 up",
            "link set left up",
            "link set right up",
            "link set vx.100 up",
            "route add 10.80.0.0/16 nexthop via 10.77.0.9 dev br0 weight 2 nexthop dev left weight 1",
            "route add blackhole 10.81.0.0/16",
            "route add 10.82.0.0/16 via 10.82.255.1 dev vx.100 onlink proto 80 metric 7",
            "route add 10.83.0.0/16 dev left table 1234",
            "rule add from 10.77.0.0/24 iif br0 fwmark 0x10/0xff lookup 1234 priority 500",
            "neigh add 10.77.0.9 lladdr 02:00:00:00:00:09 dev br0 nud permanent",
            "neigh add proxy 10.77.0.77 dev left",
        )
        node.ip("-6", "rule", "add", "to", "fd99::/16", "lookup", "1234", "priority", "501")
        node.run(
            "bridge", "fdb", "append", "00:00:00:00:00:00", "dev", "vx.100", "dst", "10.77.0.9"
        )  # a neighbour whose state stays
        pod.batch("addr add 10.77.0.2/24 dev eth0", "link set eth0 up", "route add default via 10.77.0.1")
        node.sysctl("net.ipv4.ip_forward", 1)
        node.run("sh", "-c", "echo 2 >/proc/sys/net/ipv4/conf/vx.100/rp_filter")
        node.run("iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-s", "10.77.0.0/24", "-j", "MASQUERADE")
        node.run("iptables-legacy", "-A", "FORWARD", "-p", "udp", "--dport", "53", "-j", "DROP")
        node.run("nft", "add table inet odd { chain c { type filter hook input priority 5; tcp dport 81 reject; }; }")
        listener = node.call(_listening)
        with listener:
            done = collect(request.param, (node, pod), folder)
            live = discover.take(only={node.inode, pod.inode})
        assert done.returncode == 0, (done, (folder / "stderr").read_text() if (folder / "stderr").exists() else "")
        inode = int((folder / "inode").read_text().split("[")[1].rstrip("]\n"))
        mounts = ((folder / "before").read_text(), (folder / "after").read_text())
        yield Collected(node, pod, inode, (folder / "stdout").read_bytes(), (folder / "stderr").read_text(), live, mounts)


def _listening() -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 7999))
    listener.listen()
    return listener


def _named(snapshot: Snapshot, netns: Netns) -> Namespace:
    return next(namespace for namespace in snapshot.namespaces if namespace.name == netns.name)


def test_every_namespace_is_there_named_or_not(collected: Collected, tmp_path: Path) -> None:
    snapshot = collected.snapshot(tmp_path)
    assert {namespace.inode for namespace in snapshot.namespaces} >= {collected.node.inode, collected.pod.inode, collected.nameless}
    nameless = next(namespace for namespace in snapshot.namespaces if namespace.inode == collected.nameless)
    assert nameless.name == f"netns:{collected.nameless}" and nameless.pids
    assert any(namespace.name == "host" for namespace in snapshot.namespaces)
    assert snapshot.kernel and snapshot.hostname and snapshot.taken_at.endswith("Z")
    # A stale file under /run/netns is told, and does not stop anything.
    assert any("leftover" in line for line in snapshot.problems)


def test_what_was_configured_is_read_back(collected: Collected, tmp_path: Path) -> None:
    snapshot = collected.snapshot(tmp_path)
    node, pod = _named(snapshot, collected.node), _named(snapshot, collected.pod)
    assert node.problems == () and pod.problems == ()
    links = {link.name: link for link in node.links}
    eth0 = next(link for link in pod.links if link.name == "eth0")
    assert links["host0"].peer == DeviceId(pod.inode, eth0.ifindex)
    assert eth0.peer == DeviceId(node.inode, links["host0"].ifindex)
    assert links["left"].peer == DeviceId(node.inode, links["right"].ifindex)
    assert links["host0"].master == links["br0"].ifindex and links["host0"].port is not None
    vxlan = links["vx.100"].vxlan
    assert vxlan is not None and (vxlan.vni, vxlan.port, vxlan.local, vxlan.learning) == (100, 4789, "10.77.0.1", False)
    assert vxlan.link == links["left"].ifindex
    routes = {(route.family, route.destination, route.table): route for route in node.routes}
    assert [(hop.gateway, hop.weight) for hop in routes[4, "10.80.0.0/16", 254].nexthops] == [("10.77.0.9", 2), (None, 1)]
    assert routes[4, "10.81.0.0/16", 254].type == "blackhole"
    onlink = routes[4, "10.82.0.0/16", 254]
    assert (onlink.nexthops[0].onlink, onlink.protocol, onlink.metric) == (True, "80", 7)
    assert routes[4, "10.83.0.0/16", 1234].nexthops[0].device == links["left"].ifindex
    assert routes[6, "fd77::/64", 254].nexthops[0].device == links["br0"].ifindex
    rule = next(rule for rule in node.rules if rule.priority == 500)
    assert (rule.source, rule.in_device, rule.fwmark, rule.fwmask, rule.table) == ("10.77.0.0/24", "br0", 0x10, 0xFF, 1234)
    assert any((rule.family, rule.destination, rule.table) == (6, "fd99::/16", 1234) for rule in node.rules)
    states = {(entry.address, entry.state, entry.proxy) for entry in node.neighbours}
    assert ("10.77.0.9", "PERMANENT", False) in states
    assert any(address == "10.77.0.77" and proxy for address, _, proxy in states)
    assert any(entry.destination == "10.77.0.9" and entry.device == links["vx.100"].ifindex for entry in node.fdb)
    assert node.sysctls["net.ipv4.ip_forward"] == "1"
    assert node.sysctls["net.ipv4.ip_default_ttl"] == "64"
    assert node.sysctls["net.ipv4.conf.vx/100.rp_filter"] == "2"
    assert node.sockets is not None and any((s.protocol, s.address, s.port) == ("tcp", "127.0.0.1", 7999) for s in node.sockets)
    assert pod.sockets is not None and pod.conntrack is not None


@pytest.mark.parametrize(
    "field", ["links", "addresses", "routes", "rules", "nexthops", "neighbours", "fdb", "sockets", "xfrm_policies"]
)
def test_it_reads_what_discovery_reads(collected: Collected, tmp_path: Path, field: str) -> None:
    """The node's own tools and netlink say the same of the same namespaces, item by item."""
    dumped = collected.snapshot(tmp_path)
    for netns in (collected.node, collected.pod):
        ours, theirs = getattr(_named(dumped, netns), field), getattr(_named(collected.live, netns), field)
        assert _comparable(ours) == _comparable(theirs)


def _comparable(items: object) -> object:
    """In any order; without what the cage hides (the listener's process) and what a node may lack a tool for (ethtool)."""
    if not isinstance(items, tuple):
        return items
    hidden = ("process=", "pid=", *(() if shutil.which("ethtool") else ("tx_checksum_offload=",)))
    return sorted(", ".join(part for part in repr(item).split(", ") if not part.startswith(hidden)) for item in items)


def test_its_settings_are_those_of_discovery(collected: Collected, tmp_path: Path) -> None:
    dumped = collected.snapshot(tmp_path)
    for netns in (collected.node, collected.pod):
        ours, theirs = _named(dumped, netns).sysctls, _named(collected.live, netns).sysctls
        steady = set(theirs) - {"net.netfilter.nf_conntrack_count"}
        assert {name: ours.get(name) for name in steady} == {name: theirs[name] for name in steady}


def test_all_rulesets_are_read(collected: Collected, tmp_path: Path) -> None:
    netfilter = _named(collected.snapshot(tmp_path), collected.node).netfilter
    assert netfilter is not None and netfilter.unread == ()
    texts = {(table.family, table.backend): table.text for table in netfilter.xtables}
    assert "MASQUERADE" in texts[4, "nft"] and "--dport 53 -j DROP" in texts[4, "legacy"]
    assert netfilter.nft is not None
    tables = [entry["table"]["name"] for entry in json.loads(netfilter.nft)["nftables"] if "table" in entry]
    assert "odd" in tables


def test_it_changes_nothing(collected: Collected) -> None:
    """No legacy table, mount, nsid or module appears because it was asked for."""
    assert collected.pod.run("cat", "/proc/self/net/ip_tables_names") == ""
    before, after = collected.mounts
    assert before == after
    assert collected.pod.run("ip", "netns", "list-id").count("nsid") == 1


def test_the_tar_holds_no_links_and_readable_files_only(collected: Collected) -> None:
    with tarfile.open(fileobj=io.BytesIO(collected.tar)) as archive:
        members = archive.getmembers()
    assert members and all(member.isdir() or member.isreg() for member in members)
    assert len({member.name.split("/")[0] for member in members}) == 1


def test_a_file_and_gzip(tmp_path: Path) -> None:
    with namespaces(1) as (only,):
        place = tmp_path / "node.tar.gz"
        done = collect("dash", (only,), tmp_path, f"-o {place}")
        assert done.returncode == 0, (tmp_path / "stderr").read_text()
        assert (tmp_path / "stdout").read_bytes() == b""
        assert any(namespace.inode == only.inode for namespace in dump.read(place).namespaces)


@pytest.mark.parametrize(("arguments", "code"), [("--nonsense", 2), ("extra", 2)])
def test_wrong_usage(tmp_path: Path, arguments: str, code: int) -> None:
    with namespaces(1) as (only,):
        done = collect("dash", (only,), tmp_path, arguments)
    assert done.returncode == code
    assert "usage" in (tmp_path / "stderr").read_text() and (tmp_path / "stdout").read_bytes() == b""


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_a_name_that_a_shell_could_take_for_more(shell: str, tmp_path: Path) -> None:
    name = f"npt{secrets.token_hex(3)} $(touch pwned);'\"&*é"
    run("ip", "netns", "add", name)
    try:
        done = collect(shell, (Netns(name),), tmp_path)
    finally:
        run("ip", "netns", "del", name)
    assert done.returncode == 0, (tmp_path / "stderr").read_text()
    place = tmp_path / "node.tar"
    place.write_bytes((tmp_path / "stdout").read_bytes())
    assert name in {namespace.name for namespace in dump.read(place).namespaces}
    assert not Path("pwned").exists()
