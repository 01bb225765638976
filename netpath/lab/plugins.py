"""The distribution's CNI plugins, run inside a lab's nodes as a container runtime runs them.

The protocol is the CNI specification's (1.0, section 2: what to do in the environment, the configuration on standard input, a result
or an error as JSON on standard output; section 3: a chain of plugins, each given the result of the one before). host-local keeps its
leases in the lab's own folder, and the only programs that plugins may start are the two iptables of the lab's choice.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from netpath.errors import MissingError, NetpathError
from netpath.lab import guests, netns, state
from netpath.lab.build import Build, plan_nodes_and_pods
from netpath.lab.options import Options
from netpath.lab.state import Pod, State

PACKAGES = ("containernetworking-plugins",)
VERSION = "1.0.0"
"""Of the specification, as the configurations name it."""

_PATIENCE_S = 60.0
"""How long a plugin may take: the slowest waits for a bridge's port to come up."""


@dataclass(frozen=True, slots=True)
class HostPort:
    """A port of the node that leads to a port of a pod."""

    host: int
    container: int
    protocol: str
    """``tcp`` or ``udp``."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network configuration list, as in /etc/cni/net.d."""

    name: str
    plugins: tuple[Mapping[str, Any], ...]


def _folder(lab: State) -> Path:
    return state.DIRECTORY / lab.name


def plan(lab: State, options: Options) -> State:
    """Nodes, pods and a fabric, and a folder for the plugins' own data. The pods' addresses are host-local's choice in the end."""
    return replace(plan_nodes_and_pods(lab, options), folders=(str(_folder(lab)),))


def host_local(build: Build, number: int, **more: Any) -> dict[str, Any]:
    """The ``ipam`` part of node `number`'s configuration: its subnet, a default route, leases below the lab's folder."""
    options = build.options
    ranges = [[{"subnet": str(options.pod_subnet(number))}]]
    routes = [{"dst": "0.0.0.0/0"}]
    if options.ipv6:
        ranges.append([{"subnet": str(options.pod_subnet6(number))}])
        routes.append({"dst": "::/0"})
    data = str(_folder(build.state) / f"node{number}" / "networks")
    return {"type": "host-local", "dataDir": data, "ranges": ranges, "routes": routes, **more}


class Runtime:
    """What a container runtime does for the network of its pods."""

    def __init__(self, build: Build) -> None:
        """Have the plugins ready. Raises MissingError if they can't be fetched or iptables is not installed."""
        self._build = build
        self._plugins = guests.fetch("cni-plugins", PACKAGES) / "usr/lib/cni"
        self._tools = _folder(build.state) / "bin"
        self._tools.mkdir(parents=True)
        backend = "legacy" if build.options.services == "iptables-legacy" else "nft"
        for name in ("iptables", "ip6tables"):
            found = shutil.which(f"{name}-{backend}", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
            if found is None:
                raise MissingError(f"lab: {name}-{backend} is not installed (apt-get install iptables)")
            (self._tools / name).symlink_to(found)

    def attach(self, pod: Pod, network: Network, ports: Sequence[HostPort] = ()) -> Mapping[str, Any]:
        """Give a pod its loopback device and its interface: ADD for every plugin of the list. The last one's result.

        The addresses in it replace the pod's planned ones in the lab's document. Raises NetpathError with the plugin's own words.
        """
        # The runtime's part before any plugin: the pod's namespace.
        self._build.space(pod.name)
        self._add(pod, {"cniVersion": VERSION, "name": "lo", "type": "loopback"}, "lo")
        result: Mapping[str, Any] | None = None
        for plugin in network.plugins:
            config: dict[str, Any] = {"cniVersion": VERSION, "name": network.name, **plugin}
            if ports and plugin.get("capabilities", {}).get("portMappings"):
                config["runtimeConfig"] = {
                    "portMappings": [
                        {"hostPort": port.host, "containerPort": port.container, "protocol": port.protocol} for port in ports
                    ]
                }
            if result is not None:
                config["prevResult"] = result
            result = self._add(pod, config, self._build.options.pod_device)
        assert result is not None
        self._record(pod, result)
        return result

    def lease(self, pod: Pod, name: str, ipam: Mapping[str, Any]) -> tuple[str, ...]:
        """Addresses for a pod from host-local alone, as a plugin that makes the interface itself asks for them."""
        config = {"cniVersion": VERSION, "name": name, "ipam": ipam}
        return self._record(pod, self._add(pod, config, self._build.options.pod_device, program="host-local"))

    def _record(self, pod: Pod, result: Mapping[str, Any]) -> tuple[str, ...]:
        """The addresses of a result, IPv4 first, in the lab's document."""
        found = sorted(
            (ipaddress.ip_interface(entry["address"]).ip for entry in result["ips"]), key=lambda address: address.version
        )
        addresses = tuple(str(address) for address in found)
        store = self._build.store
        store.update(pods=tuple(replace(one, addresses=addresses) if one.name == pod.name else one for one in store.state.pods))
        return addresses

    def _add(self, pod: Pod, config: Mapping[str, Any], device: str, *, program: str | None = None) -> Mapping[str, Any]:
        self._build.check()
        kind = program or str(config["type"])
        path = self._plugins / kind
        if not path.is_file():
            raise MissingError(
                f"lab: {self._plugins} has no {kind}; remove the folder {self._plugins.parents[2]} to fetch it again"
            )
        node = self._build.space(pod.node)
        environment = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": pod.netns,
            "CNI_NETNS": str(netns.path_of(pod.netns)),
            "CNI_IFNAME": device,
            "CNI_PATH": str(self._plugins),
            "PATH": str(self._tools),
        }
        # The child is made by this thread, and so begins in this thread's namespace: the node is the plugin's host.
        netns.enter(node.descriptor)
        try:
            done = subprocess.run(
                [str(path)],
                input=json.dumps(config),
                env=environment,
                cwd="/",
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_PATIENCE_S,
            )
        except subprocess.TimeoutExpired as error:
            raise NetpathError(f"lab: {node.name}: CNI plugin {kind} did not end within {_PATIENCE_S:.0f} s") from error
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            answer = None
        if done.returncode or not isinstance(answer, dict):
            told = [str(answer.get(key)) for key in ("msg", "details") if answer.get(key)] if isinstance(answer, dict) else []
            reason = " ".join(": ".join(told or [done.stderr or f"exit code {done.returncode}"]).split())
            raise NetpathError(f"lab: {node.name}: CNI plugin {kind} for {pod.name}: {reason}")
        return answer
