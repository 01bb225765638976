"""A dump of a running datapath predicts what a live snapshot of it predicts."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from netpath import cni, discover, lab
from netpath.discover import dump
from netpath.model.packet import Flow
from netpath.model.path import Prediction
from netpath.model.snapshot import Snapshot
from netpath.predict import predict
from tests.dump.test_collect import collect
from tests.netns import Netns

pytestmark = pytest.mark.root


@pytest.mark.parametrize("mode", ["flannel-vxlan", "flannel-hostgw"])
def test_the_dump_says_what_the_node_says(mode: str, tmp_path: Path) -> None:
    name = f"npt{secrets.token_hex(3)}"
    made = lab.up(mode, name=name)
    try:
        spaces = tuple(Netns(namespace) for namespace in made.namespaces)
        inode = {space.name: space.inode for space in spaces}
        inodes = set(inode.values())
        live = discover.take(only=inodes)
        done = collect("dash", spaces, tmp_path)
        assert done.returncode == 0, (tmp_path / "stderr").read_text()
        place = tmp_path / "lab.tar"
        place.write_bytes((tmp_path / "stdout").read_bytes())
        dumped = dump.read(place)
    finally:
        lab.down(name)
    assert inodes <= {namespace.inode for namespace in dumped.namespaces}
    first, *others = made.pods
    asked = 0
    for pod in others:
        for source in (first.netns, made.nodes[0].netns):
            flow = Flow(netns=inode[source], dst=pod.addresses[0], protocol="udp", sport=40001, dport=7777)
            one, other = predict(live, flow), predict(dumped, flow)
            assert _shape(one) == _shape(other)
            assert one.paths and not any(path.uncertain for path in one.paths)
            asked += 1
    assert asked >= 4
    assert _kinds(dumped, made.nodes[0].netns) == _kinds(live, made.nodes[0].netns) != set()


def _shape(prediction: Prediction) -> list[tuple[object, ...]]:
    return [
        (
            path.outcome,
            path.share,
            [(hop.netns.inode, hop.device, hop.direction, hop.headers) for hop in path.hops],
            path.translations,
        )
        for path in prediction.paths
    ]


def _kinds(snapshot: Snapshot, node: str) -> set[tuple[str, str]]:
    return {(path.cni, path.mode) for path in cni.recognise(snapshot)[node]}
