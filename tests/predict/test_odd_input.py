"""Snapshots that are broken, partial or renamed: never a crash, and the same answer where nothing that matters has changed."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from netpath.model.packet import Flow
from netpath.model.snapshot import Namespace, Snapshot
from netpath.predict import predict, predict_reply
from netpath.predict.walker import rulesets
from tests.predict.build import Overlay

OUTCOMES = {"delivered", "rejected", "dropped", "uncertain", "mixed"}
TUPLES = ("links", "addresses", "routes", "rules", "neighbours", "fdb", "nexthops")
JUNK = ("", "x", "10.0.0", "300.1.1.1/99", "fe80::zz", "::/129", "0.0.0.0/0", "default", "ff:ff")


def _spoil(item: Any, rng: random.Random) -> Any:
    """One field of a record replaced by what a broken dump might hold."""
    field = rng.choice(fields(item))
    value = getattr(item, field.name)
    if isinstance(value, bool):
        junk: object = not value
    elif isinstance(value, int):
        junk = rng.choice([0, -1, 1, 999, 2**40])
    elif isinstance(value, str):
        junk = rng.choice(JUNK)
    elif value is None or field.name in ("peer", "bridge", "port", "vxlan", "tunnel"):
        junk = None
    else:
        junk = ()
    return replace(item, **{field.name: junk})


def _mutilate(snapshot: Snapshot, rng: random.Random) -> Snapshot:
    namespaces: list[Namespace] = []
    for namespace in snapshot.namespaces:
        for name in TUPLES:
            items = list(getattr(namespace, name))
            if items and rng.random() < 0.3:
                position = rng.randrange(len(items))
                if rng.random() < 0.4:
                    del items[position]
                else:
                    items[position] = _spoil(items[position], rng)
                changed: dict[str, Any] = {name: tuple(items)}
                namespace = replace(namespace, **changed)
        if rng.random() > 0.05:
            namespaces.append(namespace)
    return replace(snapshot, namespaces=tuple(namespaces))


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), family=st.sampled_from([4, 6]), protocol=st.sampled_from(["udp", "tcp", "icmp"]))
def test_broken_snapshots_never_crash(seed: int, family: int, protocol: str) -> None:
    rng = random.Random(seed)
    made = Overlay(family)
    snapshot = made.net.snapshot()
    for _ in range(rng.randrange(1, 4)):
        snapshot = _mutilate(snapshot, rng)
    flow = made.pod1.flow(made.address2, protocol)
    prediction = predict(snapshot, flow, evaluators=rulesets)
    assert prediction.outcome in OUTCOMES
    assert all(path.outcome in OUTCOMES and 0 < path.share <= 1.000001 for path in prediction.paths)
    for path in prediction.paths:
        assert path.outcome != "dropped" or path.drop is not None
        assert path.outcome != "delivered" or path.delivery is not None
        assert path.outcome != "uncertain" or path.uncertain
        if path.outcome == "delivered":
            predict_reply(snapshot, flow, path)


def test_renaming_every_device_changes_nothing_but_names() -> None:
    made = Overlay()
    before = made.path()
    snapshot = made.net.snapshot()
    renamed = replace(
        snapshot,
        namespaces=tuple(
            replace(
                namespace,
                links=tuple(
                    replace(link, name=f"z{link.ifindex}.q" if link.kind != "loopback" else "lo") for link in namespace.links
                ),
            )
            for namespace in snapshot.namespaces
        ),
    )
    (after,) = predict(renamed, made.pod1.flow("10.2.0.2")).paths
    assert [(hop.netns, hop.device.ifindex, hop.direction, hop.headers) for hop in after.hops] == [
        (hop.netns, hop.device.ifindex, hop.direction, hop.headers) for hop in before.hops
    ]


def test_the_order_of_a_snapshot_does_not_matter() -> None:
    made = Overlay()
    before = made.path()
    rng = random.Random(3)
    for ns in made.net.namespaces:
        for items in (ns.routes, ns.neighbours, ns.fdb_entries):
            rng.shuffle(items)
    rng.shuffle(made.net.namespaces)
    assert made.path() == before


def test_flows_that_make_no_sense() -> None:
    made = Overlay()
    snapshot = made.net.snapshot()
    for flow in (
        Flow(made.pod1.inode, "0.0.0.0", "udp", dport=1),
        Flow(made.pod1.inode, "::", "udp", dport=1),
        Flow(made.pod1.inode, "127.0.0.1", "udp", dport=1),
        Flow(made.pod1.inode, "10.2.0.2", "udp", src="fd00::1", dport=1),
        Flow(made.pod1.inode, "10.2.0.2", "udp", bound_device="nothing", dport=1),
        Flow(made.pod1.inode, "10.2.0.2", "udp", bound_device="eth0", dport=7777, sport=1),
        Flow(made.pod1.inode, "10.2.0.2", "udp", dport=7777, ttl=0),
        Flow(made.pod1.inode, "not an address", "udp"),
    ):
        assert predict(snapshot, flow).outcome in OUTCOMES
