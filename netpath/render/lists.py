"""Everything that is a list of things: inventory, labs, hook kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from netpath.model.index import SnapshotIndex
from netpath.model.snapshot import DeviceId, Link, Namespace
from netpath.render.text import Screen, clean


def table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> str:
    return tabulate([list(row) for row in rows], headers=list(columns), tablefmt="plain", disable_numparse=True) + "\n"


def labs_text(labs: Sequence[Any], modes: Sequence[Any], screen: Screen) -> str:
    """The labs that are up, then the kinds of lab there are."""
    lines: list[str] = []
    if labs:
        rows = [
            [
                lab.name,
                lab.mode,
                lab.status,
                ", ".join(f"{pod.label} {pod.address}" for pod in lab.pods[:4]) + (" ..." if len(lab.pods) > 4 else ""),
            ]
            for lab in labs
        ]
        lines += [table([[clean(cell) for cell in row] for row in rows], ["LAB", "MODE", "STATUS", "PODS"])]
    else:
        lines += ["no lab is up\n"]
    for mode in modes:
        name = labs[0].name if labs else "LAB"
        lines.append(screen.style(f"{mode.name}", "head") + f": {mode.summary}")
        lines.append(f"  real: {mode.real_parts}")
        lines += [f"  try:  {command.format(lab=name)}" for command in mode.try_commands]
    return "\n".join(lines) + "\n"


def hooks_text(kinds: Sequence[Any], used: Sequence[str], screen: Screen) -> str:
    """What this kernel offers, and what is lost without the rest; the providers in use, by the names they are chosen by."""
    rows = [
        [
            kind.name,
            screen.style("yes", "good") if kind.available else screen.style("no", "warn"),
            (kind.option or "") + (" (used)" if kind.option in used else ""),
            clean(kind.detail),
            kind.loss if not kind.available else "",
        ]
        for kind in kinds
    ]
    return table(rows, ["HOOK", "HERE", "--hooks", "TRIED", "LOST WITHOUT IT"])


def inventory_text(index: SnapshotIndex, datapaths: Mapping[str, Sequence[Any]], screen: Screen, *, wide: bool = False) -> str:
    """Nodes with their datapaths, then every namespace's devices."""
    lines: list[str] = []
    for node, found in sorted(datapaths.items()):
        lines.append(screen.style(f"node {clean(node)}", "head"))
        for item in found:
            lines.append(f"  {item.cni} {item.mode} (confidence {item.confidence:.0%})")
            lines += [f"    {clean(evidence)}" for evidence in (item.evidence if wide else item.evidence[:3])]
        if not found:
            lines.append("  datapath unknown")
    if lines:
        lines.append("")
    rows = []
    for namespace in index.snapshot.namespaces:
        for link in namespace.links:
            rows.append(_device_row(index, namespace, link, wide))
    columns = ["NODE", "NETNS", "DEVICE", "KIND", "STATE", "MTU", "MASTER", "PEER", "ADDRESSES"]
    if wide:
        columns += ["IFINDEX", "MAC", "DETAIL"]
    lines.append(table(rows, columns).rstrip("\n"))
    for workload in index.snapshot.workloads:
        lines.append(f"workload {clean(workload.reference)} in {clean(index.netns_ref(workload.netns).name)}")
    lines += [screen.style(f"not read: {clean(problem)}", "warn") for problem in _problems(index)]
    return "\n".join(lines) + "\n"


def _problems(index: SnapshotIndex) -> list[str]:
    found = list(index.snapshot.problems)
    for namespace in index.snapshot.namespaces:
        found += [f"{namespace.name}: {problem}" for problem in namespace.problems]
    return found


def _device_row(index: SnapshotIndex, namespace: Namespace, link: Link, wide: bool) -> list[str]:
    master = index.link(DeviceId(namespace.inode, link.master)) if link.master is not None else None
    addresses = [f"{item.address}/{item.prefixlen}" for item in namespace.addresses if item.device == link.ifindex]
    row = [
        clean(index.node_of(namespace.inode) or "-"),
        clean(namespace.name),
        clean(link.name),
        clean(link.kind),
        "up" if link.up and link.carrier else "no carrier" if link.up else "down",
        str(link.mtu),
        clean(master.name) if master else "",
        peer(index, link),
        " ".join(addresses),
    ]
    return [*row, str(link.ifindex), link.mac or "", detail(link)] if wide else row


def peer(index: SnapshotIndex, link: Link) -> str:
    """A veth's other end as ``NETNS:DEVICE``."""
    if link.peer is None:
        return ""
    return f"{clean(index.netns_ref(link.peer.netns).name)}:{clean(index.device_ref(link.peer).name)}"


def detail(link: Link) -> str:
    """What is special about a device, in a few words."""
    if link.vxlan is not None:
        learning = "" if link.vxlan.learning else " nolearning"
        return f"vni {link.vxlan.vni} port {link.vxlan.port} local {link.vxlan.local or 'any'}{learning}"
    if link.tunnel is not None:
        return f"local {link.tunnel.local or 'any'} remote {link.tunnel.remote or 'any'}"
    if link.vlan_id is not None:
        return f"vlan {link.vlan_id}"
    if link.bridge is not None and link.bridge.vlan_filtering:
        return "vlan-aware"
    return ""


def inventory_tree(index: SnapshotIndex, datapaths: Mapping[str, Sequence[Any]], screen: Screen) -> str:
    """Nodes, the namespaces that belong to them, their devices with bridge ports below their bridge."""
    by_node: dict[str, list[Namespace]] = {}
    for namespace in index.snapshot.namespaces:
        by_node.setdefault(index.node_of(namespace.inode) or "-", []).append(namespace)
    lines: list[str] = []
    for node, members in sorted(by_node.items()):
        names = ", ".join(f"{item.cni} {item.mode}" for item in datapaths.get(node, ()))
        lines.append(screen.style(clean(node), "head") + (f"  [{names}]" if names else ""))
        members.sort(key=lambda namespace: (namespace.name != node, namespace.name))
        for number, namespace in enumerate(members):
            last = number == len(members) - 1
            workload = index.workload_of(namespace.inode)
            lines.append(f"{'└─' if last else '├─'} {clean(namespace.name)}" + (f"  {clean(workload)}" if workload else ""))
            lines += _devices(index, namespace, "   " if last else "│  ")
    return "\n".join(lines) + "\n"


def _devices(index: SnapshotIndex, namespace: Namespace, indent: str) -> list[str]:
    tops = [link for link in namespace.links if link.master is None]
    lines: list[str] = []
    for number, link in enumerate(tops):
        last = number == len(tops) - 1
        lines.append(f"{indent}{'└─' if last else '├─'} {_line(index, namespace, link)}")
        ports = [port for port in namespace.links if port.master == link.ifindex]
        deeper = indent + ("   " if last else "│  ")
        lines += [
            f"{deeper}{'└─' if at == len(ports) - 1 else '├─'} {_line(index, namespace, port)}" for at, port in enumerate(ports)
        ]
    return lines


def _line(index: SnapshotIndex, namespace: Namespace, link: Link) -> str:
    parts = [clean(link.name), clean(link.kind)]
    parts += [f"{item.address}/{item.prefixlen}" for item in namespace.addresses if item.device == link.ifindex]
    parts += [text for text in (detail(link),) if text]
    if link.peer is not None:
        parts.append(f"<-> {peer(index, link)}")
    if not link.up:
        parts.append("(down)")
    return "  ".join(parts)
