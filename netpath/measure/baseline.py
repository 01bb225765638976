"""Where the baseline runs: between the nodes' own sockets, over the network that carries the pods' packets. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from netpath.model.index import SnapshotIndex
from netpath.model.packet import Flow
from netpath.model.path import Hop, Path, Prediction
from netpath.model.snapshot import DeviceId
from netpath.predict import predict

_OVERLAY = frozenset({"vxlan", "tun", "ipip", "sit", "ip6tnl", "gre", "gretap", "geneve", "wireguard", "loopback"})
"""Kinds of device whose addresses are not the underlay's."""
_ANY_PORT = 9
"""Discard: whether anybody listens does not matter to the way there."""


@dataclass(frozen=True, slots=True)
class Underlay:
    """The nodes at both ends, as namespaces, and the addresses by which the underlay knows them."""

    source: int
    destination: int
    source_address: str
    address: str


def find(prediction: Prediction, index: SnapshotIndex, family: int) -> Underlay | str:
    """The underlay between the nodes of a predicted path's ends; where there is none a line that says why.

    Of several ways (a service's) the likeliest that has one.
    """
    ends = [each for each in prediction.paths if each.outcome in ("delivered", "rejected") and each.hops]
    if not ends:
        return "no way to the destination is predicted, so that the nodes are not known"
    found = [_of(path, index, family) for path in ends]
    return next((each for each in found if isinstance(each, Underlay)), found[0])


def _of(path: Path, index: SnapshotIndex, family: int) -> Underlay | str:
    start = node_of(index, path.hops[0].netns.inode)
    end = node_of(index, (path.delivery.netns if path.delivery is not None else path.hops[-1].netns).inode)
    if start is None:
        return "the source's node is not on this machine"
    if end is None or (path.delivery is not None and path.delivery.to == "wire"):
        return "the destination's node is not on this machine"
    if start == end:
        return "source and destination are on one node: there is no network between them to compare with"
    pair = (
        _crossing(path, index, start, end, family) or _shared(index, start, end, family) or _routed(path, index, start, end, family)
    )
    if pair is None:
        name = index.netns_ref(end).name
        return f"no IPv{family} network was found that joins {index.netns_ref(start).name} and {name} without an overlay"
    return Underlay(start, end, *pair)


def node_of(index: SnapshotIndex, inode: int) -> int | None:
    """The namespace of the node that a namespace belongs to; None when it is not here."""
    if index.is_node(inode):
        return inode
    name = index.node_of(inode)
    found = [each.inode for each in index.snapshot.namespaces if each.name == name and index.is_node(each.inode)]
    return found[0] if len(found) == 1 else None


def _crossing(path: Path, index: SnapshotIndex, start: int, end: int, family: int) -> tuple[str, str] | None:
    """The addresses of the devices by which the path leaves one node and arrives at the other, where they share a subnet."""
    for near, far in _ends(path, index, start, end, family):
        if far.ip in near.network:
            return str(near.ip), str(far.ip)
    return None


def _routed(path: Path, index: SnapshotIndex, start: int, end: int, family: int) -> tuple[str, str] | None:
    """The same where a router lies between the nodes, and what they send to each other is predicted to pass no overlay."""
    for near, far in _ends(path, index, start, end, family):
        flow = Flow(start, str(far.ip), "udp", src=str(near.ip), dport=_ANY_PORT)
        for way in predict(index.snapshot, flow, index=index).paths:
            plain = way.hops and all(hop.device.kind not in _OVERLAY for hop in way.hops)
            if plain and way.outcome in ("delivered", "rejected") and way.hops[-1].netns.inode == end:
                return str(near.ip), str(far.ip)
    return None


def _ends(
    path: Path, index: SnapshotIndex, start: int, end: int, family: int
) -> list[tuple[ipaddress.IPv4Interface | ipaddress.IPv6Interface, ipaddress.IPv4Interface | ipaddress.IPv6Interface]]:
    """Addresses of the devices by which the path leaves one node, with those of the devices by which it arrives at the other."""
    leaving = [hop for hop in path.hops if hop.netns.inode == start and hop.direction == "tx"]
    arriving = [hop for hop in path.hops if hop.netns.inode == end and hop.direction == "rx"]
    if not leaving or not arriving:
        return []
    return [(near, far) for near in _addresses(index, leaving[-1], family) for far in _addresses(index, arriving[0], family)]


def _addresses(index: SnapshotIndex, hop: Hop, family: int) -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    return _usable(index, hop.netns.inode, [hop.device.ifindex], family)


def _shared(index: SnapshotIndex, start: int, end: int, family: int) -> tuple[str, str] | None:
    """Addresses of both nodes in one subnet, on devices that are no overlay's (the underlay's may be on a bridge or a bond)."""
    for near in _usable(index, start, None, family):
        for far in _usable(index, end, None, family):
            if far.network == near.network and far.ip != near.ip:
                return str(near.ip), str(far.ip)
    return None


def _usable(
    index: SnapshotIndex, inode: int, devices: Iterable[int] | None, family: int
) -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    namespace = index.namespace(inode)
    found = []
    for address in namespace.addresses if namespace is not None else ():
        link = index.link(DeviceId(inode, address.device))
        if link is None or link.kind in _OVERLAY or (devices is not None and address.device not in devices):
            continue
        interface = ipaddress.ip_interface(f"{address.address}/{address.prefixlen}")
        if interface.version == family and not interface.ip.is_link_local:
            found.append(interface)
    return found
