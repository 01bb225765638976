"""Docker: a real dockerd on each of two nodes, both with containers in 172.17.0.0/16.

The nodes are joined as in every lab; everything behind their uplink is dockerd's own doing.
"""

from __future__ import annotations

from netpath.errors import UsageError
from netpath.lab import dockers
from netpath.lab.build import Build, Mode, make_underlay, start_echo
from netpath.lab.dockers import Container
from netpath.lab.options import Options
from netpath.lab.state import State

CONTAINERS = (
    Container("c1", "node1", "bridge", (("7070/tcp", "", 12345), ("7071/udp", "", 12346))),
    Container("c2", "node1", "bridge"),
    Container("c3", "node2", "bridge", (("7070/tcp", "", 12347), ("7071/udp", "", 12348))),
    Container("c4", "node1", "appnet", (("7071/udp", "{node}", 12349),)),
)
"""c1 and c3 both are 172.17.0.2; c4 is in a network of its own, published on the node's address only."""

_NETWORK = "172.20.0.0/16"


def _plan(lab: State, options: Options) -> State:
    if options.services is not None or options.ipv6 or options.nodes != 2:
        raise UsageError("lab docker: always two nodes, IPv4 only, and no services")
    return dockers.plan(lab, options)


def _build(build: Build) -> None:
    options = build.options
    make_underlay(build)
    arguments = ("--bip=172.17.0.1/16", f"--mtu={options.underlay_mtu}")
    engines = dockers.start(build, {node.name: arguments for node in build.state.nodes})
    engines["node1"].network("appnet", _NETWORK)
    dockers.run(build, engines, CONTAINERS)
    start_echo(build)


DOCKER = Mode(
    name="docker",
    summary="Docker: two real dockerds, both with 172.17.0.2; published ports, NAT, docker-proxy",
    real_parts="dockerd, containerd, runc and docker-proxy; the containers run busybox, the echo servers are the lab's",
    try_commands=(
        "netpath trace docker:c2 192.168.50.12:12348 --udp",
        "netpath trace docker:c1 192.168.50.11:12346 --udp",
        "netpath lab exec {lab}/c1 -- ip addr",
    ),
    plan=_plan,
    build=_build,
    hard_end=True,
)
