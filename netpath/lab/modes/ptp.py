"""The CNI ptp plugin itself: every pod on a veth of its own, routed, no bridge; nodes joined by static routes."""

from __future__ import annotations

from netpath.errors import UsageError
from netpath.lab import plugins, services
from netpath.lab.build import Build, Mode, make_underlay, start_echo
from netpath.lab.modes.flannel import make_host_routes
from netpath.lab.options import Options
from netpath.lab.plugins import Network, Runtime
from netpath.lab.state import State


def _plan(state: State, options: Options) -> State:
    if options.ipv6:
        raise UsageError("lab ptp: IPv4 only")
    return plugins.plan(state, options)


def attach_pods(build: Build, network: str) -> None:
    """Every pod by the ptp plugin, without its masquerade."""
    options = build.options
    runtime = Runtime(build)
    for number, node in enumerate(build.state.nodes, start=1):
        mtu = options.overlay_mtu or options.underlay_mtu
        plugin = {"type": "ptp", "ipMasq": False, "mtu": mtu, "ipam": plugins.host_local(build, number)}
        for pod in [pod for pod in build.state.pods if pod.node == node.name]:
            runtime.attach(pod, Network(network, (plugin,)))


def _build(build: Build) -> None:
    make_underlay(build)
    make_host_routes(build)
    attach_pods(build, "podnet")
    services.make(build)
    start_echo(build)


PTP = Mode(
    name="ptp",
    summary="the CNI plugin ptp: a routed veth for every pod, no bridge, static routes between nodes",
    real_parts="the kernel's datapath; the CNI plugins ptp, host-local and loopback; the container runtime is imitated",
    try_commands=("netpath trace {lab}-pod1a {lab}-pod2a:7777 --udp", "netpath trace {lab}-pod1a {lab}-pod1b"),
    plan=_plan,
    build=_build,
)
