"""Calico IPIP: every block of another node through tunl0 (Always), or only where the node is in another subnet (CrossSubnet).

The routes are BIRD's with felix's tunnel, written as static ones with protocol 12: calico-node's BIRD template (bird_ipam.cfg)
has krt_tunnel = "tunl0" where the next hop is to be tunnelled. tunl0 is felix's (felix/dataplane/linux/ipip_mgr.go).
"""

from __future__ import annotations

import ipaddress

from netpath.errors import UsageError
from netpath.lab import services
from netpath.lab.build import Build, Mode, make_underlay, start_echo
from netpath.lab.ipip import KERNELS_OWN, OVERHEAD, make_device, make_routes
from netpath.lab.modes import calico
from netpath.lab.options import Options
from netpath.lab.state import State

_BIRD = 12
"""RTPROT_BIRD."""


def _tunnel_address(options: Options, number: int) -> ipaddress.IPv4Address:
    """tunl0's: the last address of the node's block, which Calico's IPAM gives it like any other."""
    return calico.block(options, number)[-2]


def _plan_cross_subnet(state: State, options: Options) -> State:
    if options.nodes < 2:
        raise UsageError("lab calico-ipip-crosssubnet: at least 2 nodes, the last of which is in a subnet of its own")
    return calico._plan(state, options)


def _build_always(build: Build) -> None:
    make_underlay(build)
    _build(build, direct=())


def _build_cross_subnet(build: Build) -> None:
    """The last node is in another subnet, behind a router; the others reach each other without the tunnel."""
    make_underlay(build, routed_from=build.options.nodes)
    _build(build, direct=range(1, build.options.nodes))


def _build(build: Build, direct: range | tuple[()]) -> None:
    options = build.options
    numbers = range(1, options.nodes + 1)
    mtu = options.overlay_mtu or options.underlay_mtu - OVERHEAD
    name = options.tunnel or KERNELS_OWN
    for number in numbers:
        node = f"node{number}"
        space = build.space(node)
        make_device(build, node, name, _tunnel_address(options, number), mtu=mtu)
        space.route(calico.block(options, number), protocol=_BIRD, type="blackhole")
        tunnelled = []
        for other in numbers:
            address = ipaddress.IPv4Address(build.state.nodes[other - 1].addresses[0])
            if other != number and number in direct and other in direct:
                space.route(calico.block(options, other), options.uplink, address, protocol=_BIRD)
            elif other != number:
                tunnelled.append((calico.block(options, other), address))
        make_routes(build, node, name, tunnelled, protocol=_BIRD)
        calico._make_pods(build, number, mtu=mtu)
    services.make(build)
    start_echo(build)


_TRY = ("netpath trace {lab}-pod1a {lab}-pod2a:7777 --udp", "netpath path {lab}-pod1a {lab}-pod2a")
_REAL = "the kernel's datapath; felix, the CNI plugin and BIRD are imitated by static state; no policy chains"

ALWAYS = Mode(
    name="calico-ipip",
    summary="Calico IPIP: routed veths, blocks joined by tunl0, +20 bytes; needs a kernel with ipip",
    real_parts=_REAL,
    try_commands=_TRY,
    plan=calico._plan,
    build=_build_always,
)

CROSS_SUBNET = Mode(
    name="calico-ipip-crosssubnet",
    summary="Calico IPIP between subnets only: the last node is behind a router, the others are reached plainly",
    real_parts=_REAL,
    try_commands=_TRY,
    plan=_plan_cross_subnet,
    build=_build_cross_subnet,
)
