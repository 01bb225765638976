"""Docker's bridge driver: the default network (docker0) and user-defined ones (br- and twelve digits of the network's id).

Marks from libnetwork's drivers/bridge: a bridge with the network's gateway, a MASQUERADE of its subnet for everything that does not
leave by it, chains DOCKER, DOCKER-USER and DOCKER-ISOLATION-STAGE-n, a docker-proxy per published port.
"""

from __future__ import annotations

import re

from netpath.cni.view import Datapath, Network, NodeView, Signs, network_of
from netpath.model.snapshot import Link

NAME = "docker"


def recognise(view: NodeView) -> tuple[Datapath, ...]:
    found: list[Datapath] = []
    for bridge in view.of_kind("bridge"):
        found.extend(of_bridge(view, bridge))
    return tuple(found)


def of_bridge(view: NodeView, bridge: Link) -> tuple[Datapath, ...]:
    signs = Signs()
    user = re.fullmatch(r"br-[0-9a-f]{12}", bridge.name)
    default = bridge.name == "docker0"
    signs.add_if(default, 0.5, "a bridge is called docker0")
    signs.add_if(user, 0.4, f"{bridge.name} is called as Docker calls a user-defined network's bridge")
    networks: list[Network] = [
        network for text in view.addresses(bridge) if (network := network_of(text)) is not None and network.version == 4
    ]
    for network in networks:
        rule = view.rule("-A POSTROUTING", f"-s {network} ", f"! -o {bridge.name} ", "-j MASQUERADE")
        signs.add_if(rule, 0.4, f"rule: {rule}")
    signs.add_if(
        view.rule(f"-o {bridge.name} ", "--ctstate RELATED,ESTABLISHED"), 0.1, f"a rule lets replies through to {bridge.name}"
    )
    listed = _listed(view, networks)
    signs.add_if(listed, 0.5, f"docker lists the network {listed} with this subnet")
    containers = [work for work in view.workloads if work.runtime == "docker" and work.netns in _attached(view, bridge)]
    signs.add_if(containers, 0.6, f"{len(containers)} containers of Docker are attached to {bridge.name}")
    if not signs.lines:
        return ()
    chain = view.chain("DOCKER")
    signs.add_if(chain, 0.3, f"chain {chain}")
    signs.add_if("docker-proxy" in view.processes, 0.2, "docker-proxy holds sockets")
    mode = "bridge" if default or listed == "bridge" else "user-defined" if user or listed else "bridge"
    return signs.datapath(NAME, mode)


def _attached(view: NodeView, bridge: Link) -> set[int]:
    return {port.peer.netns for port in view.ports(bridge) if port.peer is not None}


def _listed(view: NodeView, networks: list[Network]) -> str | None:
    """The name of the Docker network with one of these subnets."""
    for name, text in sorted(view.files.items()):
        match = re.fullmatch(r"docker-network-(.+)\.json", name)
        if match and any(f'"Subnet": "{network}"' in text or f'"Subnet":"{network}"' in text for network in networks):
            return match.group(1)
    return None
