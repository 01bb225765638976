"""Neighbours grow old while a trace runs: what a packet does meanwhile is as predicted."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace

import pytest

from netpath import discover, lab
from netpath.model.packet import Flow
from netpath.model.path import Path
from netpath.model.snapshot import Neighbour, Snapshot
from netpath.predict import predict
from netpath.trace.session import at_any_age

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def there() -> Iterator[tuple[lab.Lab, Snapshot]]:
    with lab.running("flannel-hostgw", f"npt{secrets.token_hex(3)}", services="nftables", echo=False) as made:
        inodes = {each.inode for each in (*made.nodes, *made.pods)} | {lab.netns.inode_of(f"{made.name}-fabric")}
        yield made, discover.take(only=inodes)


def turned(path: Path) -> bool | None:
    """Sent by the bridge's own device to where it came from (True), straight to the port (False); None: it left the node."""
    crossed = [(hop.device.kind, hop.direction) for hop in path.hops]
    return None if ("bridge", "rx") in crossed else ("bridge", "tx") in crossed


@pytest.mark.parametrize("state", ["REACHABLE", "STALE", "DELAY", "PROBE"])
def test_a_translated_frame_may_be_turned_either_way(there: tuple[lab.Lab, Snapshot], state: str) -> None:
    """br_nf_pre_routing_finish_bridge goes by the neighbour's state, which changes by itself."""
    made, snapshot = there
    node, near = made.nodes[0].inode, made.pod("pod1b")
    neighbours = [each for space in snapshot.namespaces if space.inode == node for each in space.neighbours]
    known = [each for each in neighbours if each.address == near.address]
    pod = next(space for space in snapshot.namespaces if space.inode == near.inode)
    mac = next(link.mac for link in pod.links if link.name == "eth0")
    bridge = next(link for space in snapshot.namespaces if space.inode == node for link in space.links if link.kind == "bridge")
    entry = replace(known[0], state=state, mac=mac) if known else Neighbour(bridge.ifindex, 4, near.address, mac, state)
    rest = tuple(each for each in neighbours if each.address != near.address)
    looked = replace(
        snapshot,
        namespaces=tuple(replace(each, neighbours=(*rest, entry)) if each.inode == node else each for each in snapshot.namespaces),
    )
    flow = Flow(made.pod("pod1a").inode, "10.96.7.8", "udp", dport=5353, payload=64)
    plain = predict(looked, flow)
    assert {turned(path) for path in plain.paths} == {None, state != "REACHABLE"}
    either = at_any_age(plain, looked, flow)
    assert {turned(path) for path in either.paths} == {None, True, False}
    assert either.paths[: len(plain.paths)] == plain.paths and sum(path.share for path in either.paths) == pytest.approx(1)
