"""Flannel below Docker, without Kubernetes: dockerd's bridge takes the node's subnet and MTU from Flannel.

This is what /run/flannel/subnet.env and mk-docker-opts.sh give dockerd: --bip, --mtu, and --ip-masq=false, since flanneld masquerades.
"""

from __future__ import annotations

from netpath.errors import UsageError
from netpath.lab import dockers
from netpath.lab.build import Build, Mode, letters, make_underlay, start_echo
from netpath.lab.dockers import Container
from netpath.lab.modes.flannel import make_masquerade, make_tunnel
from netpath.lab.options import Options
from netpath.lab.state import State


def _plan(lab: State, options: Options) -> State:
    if options.services is not None or options.ipv6:
        raise UsageError("lab flannel-docker: IPv4 only, and no services")
    return dockers.plan(lab, options)


def _build(build: Build) -> None:
    options = build.options
    make_underlay(build)
    mtu = make_tunnel(build)
    arguments = {
        node.name: (f"--bip={options.pod_subnet(number)[1]}/24", f"--mtu={mtu}", "--ip-masq=false")
        for number, node in enumerate(build.state.nodes, start=1)
    }
    engines = dockers.start(build, arguments)
    containers = [
        Container(f"pod{number}{letters(position)}", node.name, "bridge")
        for number, node in enumerate(build.state.nodes, start=1)
        for position in range(options.pods_per_node)
    ]
    dockers.run(build, engines, containers)
    make_masquerade(build)
    start_echo(build)


FLANNEL_DOCKER = Mode(
    name="flannel-docker",
    summary="Flannel VXLAN below real dockerds: docker0 has the node's subnet, no cni0",
    real_parts="dockerd, containerd and runc; flanneld is imitated: its devices, routes, neighbours, FDB and rules",
    try_commands=("netpath trace docker:pod1a 10.244.2.2:7777 --udp", "netpath lab exec {lab}/pod1a -- ip addr"),
    plan=_plan,
    build=_build,
    hard_end=True,
)
