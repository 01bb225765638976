"""A plain bridge on each node, and routes between the nodes: the CNI bridge plugin without ipMasq, no NAT anywhere."""

from __future__ import annotations

from netpath.lab import services
from netpath.lab.build import Build, Mode, make_bridge, make_pods, make_underlay, plan_nodes_and_pods, start_echo
from netpath.lab.modes.flannel import make_host_routes


def _build(build: Build) -> None:
    options = build.options
    mtu = options.overlay_mtu or options.underlay_mtu
    make_underlay(build)
    make_host_routes(build)
    for number in range(1, options.nodes + 1):
        make_bridge(build, number, mtu=mtu)
        make_pods(build, number, mtu=mtu, cluster_route=False)
    services.make(build)
    start_echo(build)


BRIDGE = Mode(
    name="bridge",
    summary="a bridge on each node, static routes between them, no NAT",
    real_parts="the kernel's datapath; the CNI bridge plugin is imitated; the routes are what an administrator would add",
    try_commands=(
        "netpath trace {lab}-pod1a {lab}-pod1b:7777 --udp",
        "netpath trace {lab}-pod1a {lab}-pod2a:7777 --udp",
    ),
    plan=plan_nodes_and_pods,
    build=_build,
)
