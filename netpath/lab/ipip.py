"""IP-in-IP devices between nodes, as Calico and Flannel use them: no remote of their own, routes name the other end (onlink).

Source: net/ipv4/ipip.c, ip_tunnel.c; RFC 2003.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Sequence

from netpath.errors import NetpathError
from netpath.lab.build import Build

OVERHEAD = 20
"""The outer IPv4 header."""
KERNELS_OWN = "tunl0"
"""The device that the module makes in every namespace."""


def make_device(
    build: Build,
    node: str,
    name: str,
    address: ipaddress.IPv4Address,
    *,
    mtu: int,
    local: ipaddress.IPv4Address | None = None,
) -> None:
    """An ipip device of a node, up, with this address as a /32. `local` is the outer source; None: the route's.

    Raises MissingError where the kernel makes no ipip devices.
    """
    space = build.space(node)
    attributes = {"ipip_local": str(local)} if local is not None else {}
    try:
        space.link(name, "ipip", **attributes)
    except NetpathError as error:
        # The module has made it already, or did so when it was loaded by the request.
        if name != KERNELS_OWN or getattr(error.__cause__, "code", None) != errno.EEXIST:
            raise
    space.set(name, mtu=mtu)
    space.address(name, ipaddress.IPv4Interface((address, 32)))
    space.up(name)


def make_routes(
    build: Build,
    node: str,
    name: str,
    others: Sequence[tuple[ipaddress.IPv4Network, ipaddress.IPv4Address]],
    *,
    protocol: int = 3,
) -> None:
    """For every other node its subnet, by its address on the underlay, through the device (`protocol`: RTPROT_*)."""
    space = build.space(node)
    for subnet, address in others:
        space.route(subnet, name, address, onlink=True, protocol=protocol)
