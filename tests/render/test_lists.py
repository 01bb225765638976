"""Inventory, its tree, and the other lists."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from typing import Any

import pytest

from netpath.model.index import SnapshotIndex
from netpath.model.snapshot import Snapshot, Vxlan
from netpath.render.inventory import content
from netpath.render.json import ascii_json, document, jsonable
from netpath.render.lists import inventory_text, inventory_tree
from netpath.render.text import Screen
from tests.predict.build import Build
from tests.render.test_text import HOSTILE

PLAIN = Screen(False, 200)


def state(pod_name: str = "pod") -> Snapshot:
    net = Build()
    pod, node = net.ns(pod_name), net.ns("node", forward=True)
    net.wire(pod, "eth0", node, "veth0")
    node.bridge("br0", "veth0").vxlan("vx", 42, local="192.0.2.1", learning=False).addr("br0", "10.0.0.1/24")
    pod.addr("eth0", "10.0.0.2/24").route("0.0.0.0/0", via="10.0.0.1", dev="eth0")
    return net.snapshot()


def test_the_tree() -> None:
    text = inventory_tree(SnapshotIndex(state()), {}, PLAIN)
    assert text == (
        "node\n"
        "├─ node\n"
        "│  ├─ lo  loopback  127.0.0.1/8  ::1/128\n"
        "│  ├─ br0  bridge  10.0.0.1/24\n"
        "│  │  └─ veth0  veth  <-> pod:eth0\n"
        "│  └─ vx  vxlan  vni 42 port 8472 local 192.0.2.1 nolearning\n"
        "└─ pod\n"
        "   ├─ lo  loopback  127.0.0.1/8  ::1/128\n"
        "   └─ eth0  veth  10.0.0.2/24  <-> node:veth0\n"
    )


def test_the_table() -> None:
    lines = inventory_text(SnapshotIndex(state()), {}, PLAIN).splitlines()
    rows = [line.split() for line in lines]
    assert rows[0] == ["NODE", "NETNS", "DEVICE", "KIND", "STATE", "MTU", "MASTER", "PEER", "ADDRESSES"]
    assert ["node", "node", "veth0", "veth", "up", "1500", "br0", "pod:eth0"] in rows


@pytest.mark.parametrize("show", [inventory_text, inventory_tree])
def test_hostile_names(show: Any) -> None:
    made = state(HOSTILE)
    made = replace(made, problems=(HOSTILE,))
    text = show(SnapshotIndex(made), {}, PLAIN)
    assert "\\x1b" in text
    assert not [each for each in text if each != "\n" and unicodedata.category(each) in ("Cc", "Cf", "Cs", "Cn", "Zl")]


def test_what_does_not_apply_is_absent_and_what_is_unknown_is_null() -> None:
    devices = {(item["netns"]["name"], item["name"]): item for item in content(SnapshotIndex(state()))["devices"]}
    assert "peer" not in devices["node", "br0"] and "master" not in devices["node", "br0"]
    assert devices["node", "veth0"]["master"] and devices["pod", "eth0"]["peer"]["ifindex"]
    cut = state()
    cut = replace(
        cut,
        namespaces=tuple(
            replace(each, links=tuple(replace(link, peer=None) for link in each.links))
            for each in cut.namespaces
            if each.name == "pod"
        ),
    )
    (eth0,) = [item for item in content(SnapshotIndex(cut))["devices"] if item["name"] == "eth0"]
    assert eth0["peer"] is None


def test_json_is_ascii_and_says_the_same() -> None:
    hostile: dict[str, Any] = {"name": HOSTILE.replace("\ud800", ""), "ns": float("nan"), "far": 1e400}
    text = document("Inventory", "2026-01-01T00:00:00Z", [], {}, hostile)
    assert text.isascii() and "\x1b" not in text
    assert json.loads(text)["name"] == hostile["name"]
    assert json.loads(text)["ns"] is None and json.loads(text)["far"] is None
    raw = json.dumps(hostile["name"] + "\U0001f600", ensure_ascii=False)
    assert ascii_json(raw).isascii() and json.loads(ascii_json(raw)) == json.loads(raw)


def test_model_to_json() -> None:
    assert jsonable(Vxlan(1, 8472))["local"] is None
    assert jsonable((1.23456, "a", None, {1: (2,)})) == [1.235, "a", None, {"1": [2]}]
