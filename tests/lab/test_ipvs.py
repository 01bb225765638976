"""kube-proxy's IPVS mode: read from the kernel, predicted with every backend, and traced, where the kernel has IPVS."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from netpath import lab
from netpath.cni import recognise
from netpath.discover import take
from netpath.errors import MissingError
from netpath.lab import Lab, guests
from netpath.model.path import Path
from netpath.model.snapshot import IpvsBackend, VirtualServer
from tests.cli.command import netpath
from tests.lab import kinds
from tests.lab.helpers import Space
from tests.trace.nat import as_predicted, rewrites, trace

pytestmark = [pytest.mark.root, pytest.mark.ebpf, pytest.mark.timeout(400)]

WEB = "TCP 10.96.7.7:80 rr"
ECHO = "UDP 10.96.7.8:5353 rr"


@pytest.fixture(scope="module")
def kube() -> Iterator[Lab]:
    kinds.need("ipvs")
    with lab.running("kube-ipvs", f"npt{os.urandom(2).hex()}") as made:
        yield made


def servers(made: Lab, node: str = "node1") -> dict[str, VirtualServer]:
    (namespace,) = take(only=[made.node(node).inode]).namespaces
    assert namespace.ipvs is not None and not namespace.problems, namespace.problems
    return {server.title: server for server in namespace.ipvs}


def test_without_ipvs_one_line_says_so(lab_name: str) -> None:
    if kinds.has_ipvs():
        assert take(only=[os.stat("/proc/self/ns/net").st_ino]).namespaces[0].ipvs == ()  # noqa: PTH116
        return
    with pytest.raises(MissingError, match="this kernel has no IPVS"):
        lab.up("kube-ipvs", lab_name)
    done = netpath("lab", "up", "flannel-vxlan", "--set", "services=ipvs", "--name", lab_name)
    assert (done.code, done.out) == (3, "")
    assert done.err.strip() == "netpath: lab: this kernel has no IPVS (modprobe ip_vs may help)"


def test_virtual_servers_are_read_with_their_backends(kube: Lab) -> None:
    found = servers(kube)
    there = {pod.name: pod.address for pod in kube.pods}
    assert {backend.address for backend in found[WEB].backends} == {there["pod1b"], there["pod2a"]}
    assert all(backend == IpvsBackend(backend.address, 7070, 1, "masq") for backend in found[WEB].backends)
    assert found["UDP 10.96.7.10:5355 rr"].backends == ()
    assert (found["UDP 10.96.7.9:5354 rr"].flags, found["UDP 10.96.7.9:5354 rr"].timeout) == (("persistent",), 10800)
    assert found[WEB].timeout is None and found[WEB].flags == ()
    # externalTrafficPolicy: Local has only this node's own behind the node port.
    assert [backend.address for backend in found["UDP 192.168.50.11:30056 rr"].backends] == [there["pod1b"]]


def test_ipvsadm_reads_the_same(kube: Lab) -> None:
    """The tool itself, on the same kernel: every line of it."""
    try:
        root = guests.fetch("ipvsadm", kinds.IPVSADM)
    except MissingError as error:
        pytest.skip(str(error))
    program = ["env", f"LD_LIBRARY_PATH={guests.libraries(root)}", str(guests.program(root, "ipvsadm")), "-Ln"]
    said: set[tuple[str, ...]] = set()
    current = ""
    for line in Space(kube.node("node1").netns).run(*program).splitlines()[3:]:
        words = line.split()
        if words[0] == "->":
            said.add((current, words[1], words[2], words[3]))
        else:
            current = " ".join(words[:3])
            said.add((current,))
    read: set[tuple[str, ...]] = set()
    for title, server in servers(kube).items():
        read.add((title,))
        read |= {(title, f"{each.address}:{each.port}", "Masq", str(each.weight)) for each in server.backends}
    assert read == said and len(read) > 15


def test_kube_proxy_is_recognised(kube: Lab) -> None:
    found = recognise(take(only=[Space(name).inode for name in kube.namespaces]))
    for node in kube.nodes:
        assert ("kube-proxy", "ipvs") in [(each.cni, each.mode) for each in found[node.netns]]


def test_path_lists_every_backend(kube: Lab) -> None:
    done = netpath("path", f"netns:{kube.name}-pod1a", "10.96.7.7:80", "--tcp", "-o", "json", timeout=300)
    assert done.code == 0, done.err
    paths = [path for path in done.document["paths"] if path["direction"] == "forward"]
    assert sorted(path["share"] for path in paths) == [0.5, 0.5]
    reached = set()
    for path in paths:
        assert path["outcome"] == "delivered"
        (item,) = path["translations"]
        assert item["kind"] == "ipvs" and item["rule"]["text"].startswith(f"{WEB} -> ")
        reached.add(item["after"]["dst"])
    there = {pod.name: pod.address for pod in kube.pods}
    assert reached == {f"{there['pod1b']}:7070", f"{there['pod2a']}:7070"}


def named(path: Path, title: str) -> None:
    (item,) = [item for item in path.translations if item.kind == "ipvs"]
    assert item.rule is not None and item.rule.text.startswith(f"{title} -> ")


def turns(kube: Lab, source: str, target: str, protocol: str = "udp") -> list[tuple[Path, Path]]:
    """Two traces one after the other: by turns, each goes to a backend of its own. There and back of each."""
    found = []
    for _ in range(2):
        (forward,), (back,) = as_predicted(trace(f"netns:{kube.name}-{source}", target, protocol, count=2))
        found.append((forward, back))
    ends = [forward.hops[-1].netns.name for forward, _ in found]
    assert sorted(ends) == [f"{kube.name}-pod1b", f"{kube.name}-pod2a"]
    return found


@pytest.mark.parametrize(("protocol", "target", "title"), [("udp", "10.96.7.8:5353", ECHO), ("tcp", "10.96.7.7:80", WEB)])
def test_a_pod_is_balanced_and_answered(kube: Lab, protocol: str, target: str, title: str) -> None:
    for forward, back in turns(kube, "pod1a", target, protocol):
        for path, reverse in ((forward, False), (back, True)):
            assert rewrites(path) == [("ipvs", reverse)]
            named(path, title)


def test_a_node_is_masqueraded_too(kube: Lab) -> None:
    """From a node: the source is the service's own address, which the node holds, until POSTROUTING masquerades it."""
    forward, back = as_predicted(trace(f"netns:{kube.name}-node1", "10.96.7.8:5353", "udp", count=2))
    for path in forward:
        assert ("ipvs", False) in rewrites(path) and ("masquerade", False) in rewrites(path)
    assert back


def test_a_backend_that_is_its_own_client(kube: Lab) -> None:
    """pod1b asks the service behind which it is itself: the set of loop-backs has it masqueraded, and nothing else."""
    ends = set()
    for _ in range(2):
        done = trace(f"netns:{kube.name}-pod1b", "10.96.7.8:5353", "udp", count=2, round_trip=False)
        (path,) = done.trace.paths
        assert path.outcome == "delivered" and [hop.status for hop in path.hops] == ["observed"] * len(path.hops)
        own = path.hops[-1].netns.name == f"{kube.name}-pod1b"
        assert rewrites(path) == ([("ipvs", False), ("masquerade", False)] if own else [("ipvs", False)])
        ends.add(own)
    assert ends == {True, False}


def test_a_node_port_from_the_other_node(kube: Lab) -> None:
    forward, _ = as_predicted(trace(f"netns:{kube.name}-node2", f"netns:{kube.name}-node1@192.168.50.11:30053", "udp", count=2))
    for path in forward:
        assert {kind for kind, _ in rewrites(path)} == {"ipvs", "masquerade"}


def test_no_backend_is_refused_as_predicted(kube: Lab) -> None:
    result = trace(f"netns:{kube.name}-pod1a", "10.96.7.10:5355", "udp")
    assert result.trace.outcome == result.trace.prediction.outcome == "rejected"
    (path,) = [path for path in result.trace.paths if path.direction == "forward"]
    assert path.drop is not None and "UDP 10.96.7.10:5355" in path.drop.cause
