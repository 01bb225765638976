"""Where the baseline runs, from snapshots of labs alone."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace

import pytest

from netpath import discover, lab
from netpath.measure import baseline
from netpath.measure.baseline import Underlay
from netpath.model.index import SnapshotIndex
from netpath.model.packet import Flow
from netpath.model.snapshot import Snapshot
from netpath.predict import predict

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def there() -> Iterator[tuple[lab.Lab, Snapshot]]:
    with lab.running("flannel-vxlan", f"npt{secrets.token_hex(3)}", ipv6=True, echo=False) as made:
        inodes = {each.inode for each in (*made.nodes, *made.pods)} | {lab.netns.inode_of(f"{made.name}-fabric")}
        yield made, discover.take(only=inodes)


def found(made: lab.Lab, snapshot: Snapshot, to: str, *, family: int = 4) -> Underlay | str:
    index = SnapshotIndex(snapshot)
    address = to if to[0].isdigit() else made.pod(to).addresses[family == 6]
    prediction = predict(snapshot, Flow(made.pod("pod1a").inode, address, "udp", dport=7777), index=index)
    return baseline.find(prediction, index, family)


def test_between_the_nodes_that_the_path_leaves_and_reaches(there: tuple[lab.Lab, Snapshot]) -> None:
    made, snapshot = there
    one, two = made.nodes
    assert found(made, snapshot, "pod2a") == Underlay(one.inode, two.inode, one.addresses[0], two.addresses[0])
    assert found(made, snapshot, "pod2a", family=6) == Underlay(one.inode, two.inode, one.addresses[1], two.addresses[1])


def test_a_line_says_why_there_is_none(there: tuple[lab.Lab, Snapshot]) -> None:
    made, snapshot = there
    assert "on one node" in str(found(made, snapshot, "pod1b"))
    assert "no way" in str(found(made, snapshot, "192.0.2.7"))
    two = made.node("node2").inode
    away = replace(
        snapshot, namespaces=tuple(each for each in snapshot.namespaces if each.inode not in (two, made.pod("pod2a").inode))
    )
    assert "not on this machine" in str(found(made, away, "pod2a")) or "no way" in str(found(made, away, "pod2a"))


def test_an_overlays_addresses_are_not_the_underlays(there: tuple[lab.Lab, Snapshot]) -> None:
    """Without addresses on the uplinks only those of the tunnel and the bridge are left, and those are not taken."""
    made, snapshot = there
    nodes = {each.inode: each for each in made.nodes}
    bare = replace(
        snapshot,
        namespaces=tuple(
            replace(each, addresses=tuple(item for item in each.addresses if item.address not in nodes[each.inode].addresses))
            if each.inode in nodes
            else each
            for each in snapshot.namespaces
        ),
    )
    index, prediction_index = SnapshotIndex(bare), SnapshotIndex(snapshot)
    prediction = predict(
        snapshot, Flow(made.pod("pod1a").inode, made.pod("pod2a").address, "udp", dport=7777), index=prediction_index
    )
    assert "no IPv4 network was found" in str(baseline.find(prediction, index, 4))


@pytest.mark.parametrize(("mode", "to"), [("calico-crosssubnet", "192.168.51.12"), ("gke", "192.168.50.12")])
def test_across_a_router_where_it_is_predicted_to_be_one(mode: str, to: str) -> None:
    """Nodes in subnets of their own, and nodes that know each other by /32 only; without a way between them there is none."""
    with lab.running(mode, f"npt{secrets.token_hex(3)}", echo=False) as made:
        inodes = {each.inode for each in (*made.nodes, *made.pods)} | {lab.netns.inode_of(f"{made.name}-fabric")}
        snapshot = discover.take(only=inodes)
        one, two = made.nodes
        pod = next(each for each in made.pods if each.node == two.name)
        source = next(each for each in made.pods if each.node == one.name)
        index = SnapshotIndex(snapshot)
        prediction = predict(snapshot, Flow(source.inode, pod.address, "udp", dport=7777), index=index)
        assert baseline.find(prediction, index, 4) == Underlay(one.inode, two.inode, "192.168.50.11", to)
        cut = replace(
            snapshot,
            namespaces=tuple(
                replace(each, routes=tuple(item for item in each.routes if item.destination not in ("default", "0.0.0.0/0")))
                if each.inode == one.inode
                else each
                for each in snapshot.namespaces
            ),
        )
        assert "no IPv4 network was found" in str(baseline.find(prediction, SnapshotIndex(cut), 4))
