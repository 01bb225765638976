"""Canal: Flannel's VXLAN between nodes, Calico's veths on the node, and the pods' addresses out of Flannel's subnet by host-local.

The interfaces are those of projectcalico, cni-plugin/pkg/dataplane/linux; canal's configuration has the calico plugin ask host-local
for the node's podCIDR (``usePodCidr``), which is the subnet that Flannel has for the node.
"""

from __future__ import annotations

from netpath.errors import UsageError
from netpath.lab import plugins, services
from netpath.lab.build import Build, Mode, make_underlay, start_echo
from netpath.lab.modes import calico
from netpath.lab.modes.flannel import make_masquerade, make_tunnel
from netpath.lab.options import Options
from netpath.lab.plugins import Runtime
from netpath.lab.state import State


def _plan(state: State, options: Options) -> State:
    if options.ipv6:
        raise UsageError("lab canal: IPv4 only")
    return plugins.plan(state, options)


def _build(build: Build) -> None:
    make_underlay(build)
    mtu = make_tunnel(build)
    runtime = Runtime(build)
    numbers = {node.name: number for number, node in enumerate(build.state.nodes, start=1)}
    # All before any device: a node's policy names pods of other nodes.
    for pod in build.state.pods:
        runtime.lease(pod, "k8s-pod-network", plugins.host_local(build, numbers[pod.node]))
    for number in numbers.values():
        calico._make_pods(build, number, mtu=mtu)
    services.make(build)
    make_masquerade(build)
    start_echo(build)


CANAL = Mode(
    name="canal",
    summary="Canal: Flannel VXLAN between nodes, Calico's routed veths on the node, +50 bytes",
    real_parts="the kernel's datapath, host-local; flanneld, felix and the calico plugin are imitated by their state (felix's chains: --set policy=yes)",
    try_commands=(
        "netpath trace {lab}-pod1a {lab}-pod2a:7777 --udp",
        "netpath trace {lab}-pod1a {lab}-pod1b:7777 --udp",
        "netpath lab exec {lab}/node1 -- ip route",
    ),
    plan=_plan,
    build=_build,
)
