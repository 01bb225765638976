"""The CNI ptp plugin: every pod on a veth of its own, routed, no bridge; nodes joined by static routes.

Routes and addresses are those of containernetworking/plugins, plugins/main/ptp: the gateway's address on every host veth, a host
route to every pod. GKE's default network and kubenet's routed nodes have this shape.
"""

from __future__ import annotations

import ipaddress
import secrets

from netpath.errors import UsageError
from netpath.lab import services
from netpath.lab.build import Build, Mode, make_underlay, plan_nodes_and_pods, start_echo
from netpath.lab.modes.flannel import make_host_routes
from netpath.lab.options import Options
from netpath.lab.state import State

_SCOPE_LINK = 253
_SCOPE_HOST = 254


def _plan(state: State, options: Options) -> State:
    if options.ipv6:
        raise UsageError("lab ptp: IPv4 only")
    return plan_nodes_and_pods(state, options)


def _build(build: Build) -> None:
    options = build.options
    mtu = options.overlay_mtu or options.underlay_mtu
    make_underlay(build)
    make_host_routes(build)
    for number in range(1, options.nodes + 1):
        node = build.space(f"node{number}")
        subnet = options.pod_subnet(number)
        for pod in (pod for pod in build.state.pods if pod.node == f"node{number}"):
            space = build.space(pod.name)
            space.up("lo")
            host = f"veth{secrets.token_hex(4)}"
            space.veth(options.pod_device, host, node, mtu=mtu, queue=0)
            space.address(options.pod_device, ipaddress.IPv4Interface((pod.addresses[0], 24)), broadcast=True)
            space.up(options.pod_device)
            # The plugin replaces the route that came with the address: neighbours are reached by the gateway too.
            space.unroute(subnet, options.pod_device)
            space.route(ipaddress.IPv4Network((subnet[1], 32)), options.pod_device, scope=_SCOPE_LINK)
            space.route(subnet, options.pod_device, subnet[1], prefsrc=pod.addresses[0])
            space.route("default", options.pod_device, subnet[1])
            node.address(host, ipaddress.IPv4Interface((subnet[1], 32)))
            node.up(host)
            node.route(ipaddress.IPv4Network((pod.addresses[0], 32)), host, scope=_SCOPE_HOST)
    services.make(build)
    start_echo(build)


PTP = Mode(
    name="ptp",
    summary="CNI ptp (GKE, kubenet): a routed veth for every pod, no bridge, static routes between nodes",
    real_parts="the kernel's datapath; the CNI ptp plugin is imitated; the routes between nodes are what a cloud would route",
    try_commands=("netpath trace {lab}-pod1a {lab}-pod2a:7777 --udp", "netpath trace {lab}-pod1a {lab}-pod1b"),
    plan=_plan,
    build=_build,
)
