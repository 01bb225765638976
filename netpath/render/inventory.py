"""The Inventory document: namespaces, devices and workloads of a snapshot. Reference: docs/reference/json.md."""

from __future__ import annotations

from typing import Any

from netpath.model.index import SnapshotIndex
from netpath.render.json import jsonable

PAIRS = ("veth", "netkit")
"""Kinds of device that have another end, whether or not it is known."""


def content(index: SnapshotIndex) -> dict[str, Any]:
    snapshot = index.snapshot
    namespaces = [
        {
            "inode": namespace.inode,
            "name": namespace.name,
            "names": list(namespace.names),
            "node": index.node_of(namespace.inode),
            "workload": index.workload_of(namespace.inode),
            "problems": list(namespace.problems),
        }
        for namespace in snapshot.namespaces
    ]
    devices = [
        {
            "netns": {"inode": namespace.inode, "name": namespace.name},
            "name": link.name,
            "ifindex": link.ifindex,
            "kind": link.kind,
            "mtu": link.mtu,
            "mac": link.mac,
            "flags": list(link.flags),
            **({"master": link.master} if link.master is not None else {}),
            **({"peer": jsonable(link.peer)} if link.peer is not None or link.kind in PAIRS else {}),
            "addresses": [f"{item.address}/{item.prefixlen}" for item in namespace.addresses if item.device == link.ifindex],
            **({"vxlan": jsonable(link.vxlan)} if link.vxlan is not None else {}),
            **({"vlan": link.vlan_id} if link.vlan_id is not None else {}),
        }
        for namespace in snapshot.namespaces
        for link in namespace.links
    ]
    return {
        "namespaces": namespaces,
        "devices": devices,
        "workloads": list(snapshot.workloads),
        "problems": list(snapshot.problems),
    }
