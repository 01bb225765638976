"""Which container datapaths a node runs, told from the kernel's state and files. Prediction never asks: names are for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from netpath.cni import calico, canal, docker, flannel, kubenet, kubeproxy, plugins, weave
from netpath.cni.view import Datapath, NodeView
from netpath.model.index import SnapshotIndex, forwards
from netpath.model.snapshot import Namespace, Snapshot

__all__ = ["REGISTRY", "UNKNOWN", "Datapath", "recognise"]

Recogniser: TypeAlias = Callable[[NodeView], tuple[Datapath, ...]]

REGISTRY: tuple[tuple[str, Recogniser], ...] = (
    ("canal", canal.recognise),
    ("flannel", flannel.recognise),
    ("calico", calico.recognise),
    ("weave", weave.recognise),
    ("kubenet", kubenet.recognise),
    ("docker", docker.recognise),
    ("plugins", plugins.recognise),
    ("kube-proxy", kubeproxy.recognise),
)
"""Asked in this order, which is the order of the answer."""

UNKNOWN = "unknown"


def recognise(snapshot: Snapshot, index: SnapshotIndex | None = None) -> dict[str, tuple[Datapath, ...]]:
    """The datapaths of every node that forwards, by the node's name.

    A node may run several. One with pods that nothing here knows has ``unknown`` with confidence 0; one without pods and marks
    has an empty tuple.
    """
    index = index if index is not None else SnapshotIndex(snapshot)
    members: dict[str, list[Namespace]] = {}
    for namespace in snapshot.namespaces:
        node = index.node_of(namespace.inode)
        if node is not None and node != namespace.name:
            members.setdefault(node, []).append(namespace)
    found: dict[str, tuple[Datapath, ...]] = {}
    for namespace in snapshot.namespaces:
        if index.node_of(namespace.inode) != namespace.name or not (forwards(namespace) or members.get(namespace.name)):
            continue
        view = NodeView(snapshot, index, namespace, tuple(members.get(namespace.name, ())))
        datapaths: list[Datapath] = []
        for _, recogniser in REGISTRY:
            datapaths.extend(recogniser(view))
        if not any(path.cni != kubeproxy.NAME for path in datapaths) and any(view.is_pod_veth(link) for link in namespace.links):
            datapaths.insert(0, Datapath(UNKNOWN, UNKNOWN, 0.0, _seen(view)))
        found[namespace.name] = tuple(datapaths)
    return found


def _seen(view: NodeView) -> tuple[str, ...]:
    """What there is on a node that nothing here knows."""
    lines = [f"pods are attached to the bridge {bridge.name}" for bridge in view.pod_bridges]
    if view.routed_pods:
        lines.append(f"{len(view.routed_pods)} pods have a route of their own over a veth")
    lines.extend(
        f"{link.name} is a {link.kind} device" for link in view.of_kind("vxlan", "ipip", "tun", "gre", "geneve", "wireguard")
    )
    return tuple(lines)
