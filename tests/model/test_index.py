"""Nodes, workloads, holders and peers of a snapshot."""

from __future__ import annotations

from dataclasses import replace

from netpath.model.index import SnapshotIndex, canonical
from netpath.model.path import DeviceRef, NetnsRef
from netpath.model.snapshot import DeviceId, Workload
from tests.predict.build import Build, Overlay


def test_nodes_forward_and_pods_belong_to_them() -> None:
    made = Overlay()
    index = SnapshotIndex(made.net.snapshot())
    names = {ns.name: index.node_of(ns.inode) for ns in made.net.namespaces}
    assert names == {"pod1": "node1", "pod2": "node2", "node1": "node1", "node2": "node2", "fabric": "fabric"}
    assert index.node_of(4711) is None


def test_a_pod_that_inherited_forwarding_is_no_node() -> None:
    made = Overlay()
    made.pod1.sysctl("net.ipv4.ip_forward", 1)
    assert SnapshotIndex(made.net.snapshot()).node_of(made.pod1.inode) == "node1"
    # Two devices could forward; a workload is none the less a guest.
    made.net.wire(made.pod1, "net1", made.fabric, "p9")
    made.pod1.addr("net1", "198.51.100.1/24")
    made.net.workloads = [Workload("pod:default/web", "web", None, made.pod1.inode)]
    index = SnapshotIndex(made.net.snapshot())
    assert index.node_of(made.pod1.inode) == "node1"
    assert index.workload_of(made.pod1.inode) == "pod:default/web" and index.workload_of(made.node1.inode) is None


def test_a_fabric_that_inherited_forwarding_is_its_own() -> None:
    made = Overlay()
    made.fabric.sysctl("net.ipv4.ip_forward", 1)
    assert SnapshotIndex(made.net.snapshot()).node_of(made.fabric.inode) == "fabric"


def test_holders_know_every_namespace_and_every_spelling() -> None:
    net = Build()
    a, b = net.ns("a"), net.ns("b")
    net.wire(a, "e0", b, "e0")
    a.addr("e0", "172.17.0.2/16").addr("e0", "fd00::a/64")
    b.addr("e0", "172.17.0.2/16")
    index = SnapshotIndex(net.snapshot())
    assert index.holders("172.17.0.2") == (DeviceId(a.inode, 2), DeviceId(b.inode, 2))
    assert index.holders("FD00:0::000A") == (DeviceId(a.inode, 2),)
    assert index.holders("10.9.9.9") == () and canonical("no address") == "no address"


def test_peers_from_either_side() -> None:
    net = Build()
    a, b = net.ns("a"), net.ns("b")
    net.wire(a, "e0", b, "e0")
    b.change("e0", peer=None)
    index = SnapshotIndex(net.snapshot())
    assert index.peer(DeviceId(a.inode, 2)) == DeviceId(b.inode, 2)
    assert index.peer(DeviceId(b.inode, 2)) == DeviceId(a.inode, 2)
    assert index.peer(DeviceId(b.inode, 1)) is None and index.peer(DeviceId(9, 9)) is None


def test_references() -> None:
    made = Overlay()
    index = SnapshotIndex(made.net.snapshot())
    assert index.netns_ref(made.pod1.inode) == NetnsRef(made.pod1.inode, "pod1")
    assert index.netns_ref(5) == NetnsRef(5, "netns:5")
    assert index.device_ref(DeviceId(made.pod1.inode, 2)) == DeviceRef("eth0", 2, "veth")
    assert index.device_ref(DeviceId(5, 6)) == DeviceRef("ifindex:6", 6, "unknown")
    link = index.link_by_name(made.node1.inode, "vx1")
    assert link is not None and index.link(DeviceId(made.node1.inode, link.ifindex)) is link
    namespace = index.namespace(made.node1.inode)
    assert namespace is not None and replace(namespace) == namespace
