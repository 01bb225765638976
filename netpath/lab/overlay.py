"""A VXLAN overlay between nodes whose peers are all known: no learning, permanent neighbours and FDB entries, onlink routes."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from netpath.lab.build import Build


@dataclass(frozen=True, slots=True)
class End:
    """A node's end of the overlay."""

    vtep: ipaddress.IPv4Address | ipaddress.IPv6Address
    """Its address on the underlay."""
    subnet: ipaddress.IPv4Network | ipaddress.IPv6Network
    """What is behind it; the first address is the tunnel device's own."""
    direct: frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address] = frozenset()
    """Other ends (their underlay addresses) to which no route leads through the tunnel."""


def make_vxlan(
    build: Build,
    name: str,
    ends: Sequence[End],
    *,
    vni: int,
    port: int,
    mtu: int,
    queue: int = 1000,
    protocol: int = 3,
    know_direct: bool = True,
) -> None:
    """A vxlan device on every node (`ends` in the nodes' order), with a route, a neighbour and an FDB entry for every other node.

    `queue` is the device's txqueuelen, `protocol` the routes' origin (RTPROT_*). `know_direct`: neighbours and FDB entries for ends to
    which no route leads through the tunnel, too.
    """
    spaces = [build.space(node.name) for node in build.state.nodes]
    macs = []
    for space, end in zip(spaces, ends, strict=True):
        local = {"vxlan_local" if end.vtep.version == 4 else "vxlan_local6": str(end.vtep)}
        space.link(
            name,
            "vxlan",
            vxlan_id=vni,
            vxlan_port=port,
            vxlan_learning=0,
            vxlan_link=space.index(build.options.uplink),
            mtu=mtu,
            txqlen=queue,
            **local,
        )
        space.address(name, ipaddress.ip_interface((end.subnet[0], end.subnet.max_prefixlen)))
        space.up(name)
        macs.append(space.mac(name))
    for space, own in zip(spaces, ends, strict=True):
        for end, mac in zip(ends, macs, strict=True):
            if end is not own and (know_direct or end.vtep not in own.direct):
                space.neighbour(name, end.subnet[0], mac)
                space.fdb(name, mac, end.vtep)
                if end.vtep not in own.direct:
                    space.route(end.subnet, name, end.subnet[0], onlink=True, protocol=protocol)
