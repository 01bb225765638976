"""Flannel's UDP backend: a TUN device on each node and a user-space process that carries packets by UDP.

flanneld (pkg/backend/udp) keeps one route for the whole pod network on its device; the node's own subnet is the bridge's.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from netpath.errors import MissingError, UsageError
from netpath.lab import relays, services
from netpath.lab.build import Build, Mode, make_bridge, make_pods, make_underlay, plan_nodes_and_pods, start_echo
from netpath.lab.modes.flannel import make_masquerade
from netpath.lab.options import Options
from netpath.lab.state import State

_OVERHEAD = 28
"""IPv4 and UDP header; there is no header of the tunnel's own."""
_PORT = 8285


def _plan(state: State, options: Options) -> State:
    if options.ipv6:
        raise UsageError("lab flannel-udp: the backend carries IPv4 only")
    return plan_nodes_and_pods(state, options)


def _build(build: Build) -> None:
    options = build.options
    if not Path("/dev/net/tun").exists():
        raise MissingError("lab flannel-udp: this kernel has no /dev/net/tun (modprobe tun)")
    mtu = options.overlay_mtu or options.underlay_mtu - _OVERHEAD
    device = options.tunnel or "flannel0"
    port = options.port if options.port != Options().port else _PORT
    make_underlay(build)
    for number, node in enumerate(build.state.nodes, start=1):
        routes = [
            (str(options.pod_subnet(other)), str(options.node_address(other).ip))
            for other in range(1, options.nodes + 1)
            if other != number
        ]
        space = build.space(node.name)
        subnet = options.pod_subnet(number)
        relays.start(build, node.name, "tun", device, str(subnet[0]), node.addresses[0], port, routes)
        space.set(device, mtu=mtu)
        space.address(device, ipaddress.IPv4Interface((subnet[0], 32)))
        space.up(device)
        space.route(ipaddress.IPv4Network(options.pod_network), device)
        make_bridge(build, number, mtu=mtu)
        make_pods(build, number, mtu=mtu, cluster_route=True)
    services.make(build)
    make_masquerade(build)
    start_echo(build)


UDP = Mode(
    name="flannel-udp",
    summary="Flannel UDP: a TUN device and a user-space relay on each node, +28 bytes",
    real_parts="the kernel's datapath and TUN; flanneld is imitated: its packets are carried by a small C program (lab relay, not flanneld)",
    try_commands=(
        "netpath trace {lab}-pod1a {lab}-pod2a:7777 --udp -o wide",
        "netpath measure {lab}-pod1a {lab}-pod2a:7777 --udp",
    ),
    plan=_plan,
    build=_build,
)
