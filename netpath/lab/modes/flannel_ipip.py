"""Flannel's ipip backend: packets in packets, +20 bytes, no MAC addresses.

The kernel state is that of flanneld 0.20 (pkg/backend/ipip) with the CNI bridge plugin; neither runs.
"""

from __future__ import annotations

from netpath.errors import UsageError
from netpath.lab import services
from netpath.lab.build import Build, Mode, make_bridge, make_pods, make_underlay, plan_nodes_and_pods, start_echo
from netpath.lab.ipip import OVERHEAD, make_device, make_routes
from netpath.lab.modes.flannel import make_masquerade
from netpath.lab.options import Options
from netpath.lab.state import State


def _plan(state: State, options: Options) -> State:
    if options.ipv6:
        raise UsageError("lab flannel-ipip: IPv4 only, as the backend is")
    return plan_nodes_and_pods(state, options)


def _build(build: Build) -> None:
    options = build.options
    numbers = range(1, options.nodes + 1)
    name = options.tunnel or "flannel.ipip"
    mtu = options.overlay_mtu or options.underlay_mtu - OVERHEAD
    make_underlay(build)
    for number in numbers:
        own = options.node_address(number).ip
        make_device(build, f"node{number}", name, options.pod_subnet(number)[0], mtu=mtu, local=own)
        others = [(options.pod_subnet(other), options.node_address(other).ip) for other in numbers if other != number]
        make_routes(build, f"node{number}", name, others)
        make_bridge(build, number, mtu=mtu)
        make_pods(build, number, mtu=mtu, cluster_route=True)
    services.make(build)
    make_masquerade(build)
    start_echo(build)


IPIP = Mode(
    name="flannel-ipip",
    summary="Flannel ipip: packets in packets between nodes, +20 bytes; needs a kernel with ipip",
    real_parts="the kernel's datapath; flanneld and the bridge plugin are imitated: devices, routes, rules",
    try_commands=("netpath trace {lab}-pod1a {lab}-pod2a:7777 --udp", "netpath path {lab}-pod1a {lab}-pod2a"),
    plan=_plan,
    build=_build,
)
