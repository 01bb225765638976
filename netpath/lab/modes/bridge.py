"""A bridge on each node and routes between the nodes: imitated without any NAT, and by the CNI plugins themselves with all of it."""

from __future__ import annotations

from netpath.lab import plugins, services
from netpath.lab.build import Build, Mode, make_bridge, make_pods, make_underlay, plan_nodes_and_pods, start_echo
from netpath.lab.modes.flannel import make_host_routes
from netpath.lab.plugins import HostPort, Network, Runtime

HOST_PORTS = (HostPort(12345, 7070, "tcp"), HostPort(12346, 7071, "udp"))
"""Of every node of the mode with the real plugins, to the node's first pod."""


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


def bridge_plugin(build: Build, number: int, *, bridge: str, masquerade: bool) -> dict[str, object]:
    """The bridge plugin's part of node `number`'s configuration."""
    options = build.options
    return {
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        "ipMasq": masquerade,
        "hairpinMode": options.hairpin,
        "mtu": options.overlay_mtu or options.underlay_mtu,
        "ipam": plugins.host_local(build, number),
    }


def _build_plugins(build: Build) -> None:
    options = build.options
    make_underlay(build)
    make_host_routes(build)
    runtime = Runtime(build)
    for number, node in enumerate(build.state.nodes, start=1):
        chain = (
            bridge_plugin(build, number, bridge=options.bridge, masquerade=options.masquerade),
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
            # Named, or the plugin asks D-Bus for a firewalld, which is the machine's and not the node's.
            {"type": "firewall", "backend": "iptables"},
        )
        for position, pod in enumerate(pod for pod in build.state.pods if pod.node == node.name):
            runtime.attach(pod, Network("podnet", chain), HOST_PORTS if position == 0 else ())
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

CNI_BRIDGE = Mode(
    name="cni-bridge",
    summary="the CNI plugins bridge, portmap and firewall: ipMasq, host ports 12345/tcp and 12346/udp, static routes",
    real_parts="the kernel's datapath; the CNI plugins bridge, host-local, portmap, firewall, loopback; the runtime is imitated",
    try_commands=(
        "netpath trace {lab}-pod1a {lab}-pod2a:7777 --udp --round-trip",
        "netpath trace {lab}-pod1b {lab}-node1@192.168.50.11:12346 --udp",
        "netpath trace {lab}-node1 127.0.0.1:12346 --udp",
    ),
    plan=plugins.plan,
    build=_build_plugins,
)
