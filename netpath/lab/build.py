"""What all modes share: the run of a build, nodes joined by a fabric, pods on a bridge."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from netpath.lab import echoes
from netpath.lab.kernel import Cancelled, Space
from netpath.lab.options import Options
from netpath.lab.state import Node, Pod, State, Store

_TRUNK = "trunk0"
"""The nodes' device below the VLAN, if the underlay is one."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A kind of lab."""

    name: str
    summary: str
    """One line for a list."""
    real_parts: str
    """What is the real component here, and what is imitated."""
    try_commands: tuple[str, ...]
    """Commands to try; ``{lab}`` stands for the lab's name."""
    plan: Callable[[State, Options], State]
    """Fill in everything that the lab is going to use. Touches nothing."""
    build: Callable[[Build], None]
    """Make it. Runs in a thread of its own."""
    hard_end: bool = False
    """End its processes with SIGKILL at once: they are init processes of containers, and their supervisors would restore them."""


class Build:
    """A lab while it is made: its recorded state and its open namespaces. Only the worker thread uses it."""

    def __init__(self, store: Store, options: Options, stack: contextlib.ExitStack) -> None:
        self.store, self.options = store, options
        self.stack = stack
        self._cancel = threading.Event()
        self._spaces: dict[str, Space] = {}

    def cancel(self) -> None:
        """Ask the build to stop at its next step. From any thread."""
        self._cancel.set()

    def check(self) -> None:
        if self._cancel.is_set():
            raise Cancelled

    @property
    def state(self) -> State:
        return self.store.state

    def space(self, short: str) -> Space:
        """The namespace of a node, pod or the fabric, made at the first call."""
        name = f"{self.state.name}-{short}"
        if name not in self._spaces:
            assert name in self.state.namespaces, name
            self._spaces[name] = self.stack.enter_context(Space(name, self._cancel.is_set))
        return self._spaces[name]


def random_mac() -> str:
    """A locally administered unicast address."""
    first, *rest = secrets.token_bytes(6)
    return ":".join(f"{byte:02x}" for byte in (first & 0xFC | 0x02, *rest))


def letters(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("a") + rest) + text
    return text


def plan_nodes_and_pods(state: State, options: Options) -> State:
    """Nodes node1, node2, ..., pods pod1a, pod1b, ..., and a fabric."""
    nodes, pods = [], []
    for number in range(1, options.nodes + 1):
        addresses = [str(options.node_address(number).ip)]
        if options.ipv6:
            addresses.append(str(options.node_address6(number).ip))
        nodes.append(Node(f"node{number}", f"{state.name}-node{number}", tuple(addresses)))
        for position in range(options.pods_per_node):
            short = f"pod{number}{letters(position)}"
            addresses = [str(options.pod_subnet(number)[2 + position])]
            if options.ipv6:
                addresses.append(str(options.pod_subnet6(number)[2 + position]))
            pods.append(Pod(short, f"node{number}", f"{state.name}-{short}", tuple(addresses)))
    spaces = (*(node.netns for node in nodes), f"{state.name}-fabric", *(pod.netns for pod in pods))
    return replace(state, nodes=tuple(nodes), pods=tuple(pods), namespaces=spaces)


def make_underlay(build: Build, *, routed_from: int | None = None) -> None:
    """The nodes, each with a device on the fabric's bridge, an address there, and a default route to a gateway that nobody is.

    With `Options.underlay_vlan` that device is a VLAN's, on a trunk. Nodes from number `routed_from` on are in the next subnet,
    behind the fabric, which then is the gateway of both.
    """
    options = build.options
    fabric = build.space("fabric")
    fabric.up("lo")
    bridges = {False: "br0"} if routed_from is None else {False: "br0", True: "br1"}
    for bridge in bridges.values():
        fabric.link(bridge, "bridge", mtu=options.underlay_mtu)
    nodes = []
    for number, node in enumerate(build.state.nodes, start=1):
        beyond = routed_from is not None and number >= routed_from
        address, gateway = options.node_address(number), options.gateway
        if beyond:
            # The same place in the next subnet of that size.
            size = address.network.num_addresses
            address, gateway = ipaddress.IPv4Interface((int(address.ip) + size, address.network.prefixlen)), gateway + size
            node = replace(node, addresses=(str(address.ip), *node.addresses[1:]))
        nodes.append(node)
        space = build.space(node.name)
        space.up("lo")
        trunk = options.uplink if options.underlay_vlan is None else _TRUNK
        space.veth(trunk, f"port{number}", fabric, mtu=options.underlay_mtu)
        fabric.port(f"port{number}", bridges[beyond])
        fabric.up(f"port{number}")
        if options.underlay_vlan is not None:
            space.up(trunk)
            space.link(options.uplink, "vlan", link=space.index(trunk), vlan_id=options.underlay_vlan)
        space.sysctl("net.ipv4.ip_forward", 1)
        if options.ipv6:
            space.sysctl("net.ipv6.conf.all.forwarding", 1)
        space.address(options.uplink, address)
        if options.ipv6:
            space.address(options.uplink, options.node_address6(number))
        space.up(options.uplink)
        space.route("default", options.uplink, gateway)
        if options.ipv6:
            space.route("default", options.uplink, options.gateway6)
    if routed_from is not None:
        build.store.update(nodes=tuple(nodes))
        fabric.sysctl("net.ipv4.ip_forward", 1)
        network = ipaddress.IPv4Network(options.underlay)
        for beyond, bridge in bridges.items():
            gateway = options.gateway + network.num_addresses * beyond
            fabric.address(bridge, ipaddress.IPv4Interface((gateway, network.prefixlen)))
    fabric.up(*bridges.values())
    fabric.settle(*(f"port{number}" for number in range(1, len(build.state.nodes) + 1)), *bridges.values())


def make_bridge(build: Build, number: int, *, mtu: int) -> None:
    """Node `number`'s bridge, as the CNI bridge plugin makes it with isDefaultGateway."""
    options = build.options
    space = build.space(f"node{number}")
    space.link(options.bridge, "bridge", mtu=mtu)
    # An address of its own, set: else the bridge takes the lowest of its ports' and changes it as they come and go. Changing
    # it also makes the bridge see that it has no live port yet, so that its state becomes UP, not UNKNOWN, with the first one.
    space.set(options.bridge, address=random_mac())
    subnet = options.pod_subnet(number)
    space.address(options.bridge, ipaddress.IPv4Interface((subnet[1], 24)), broadcast=True)
    if options.ipv6:
        space.address(options.bridge, ipaddress.IPv6Interface((options.pod_subnet6(number)[1], 64)))


def make_pods(build: Build, number: int, *, mtu: int, cluster_route: bool) -> None:
    """Node `number`'s pods on its bridge, which is brought up when it has ports: so its state ends as UP, as on a node.

    `cluster_route`: the pod network by the gateway too, as Flannel's delegate configuration asks for.
    """
    options = build.options
    node = build.space(f"node{number}")
    subnet = options.pod_subnet(number)
    ports = []
    for pod in (pod for pod in build.state.pods if pod.node == f"node{number}"):
        space = build.space(pod.name)
        # The container runtime runs the loopback plugin.
        space.up("lo")
        host = f"veth{secrets.token_hex(4)}"
        ports.append(host)
        # Made from the pod's side with queue length 0, as the plugin does (containernetworking/plugins, pkg/ip/link_linux.go).
        space.veth(options.pod_device, host, node, mtu=mtu, queue=0)
        node.up(host)
        node.port(host, options.bridge, hairpin=options.hairpin)
        space.address(options.pod_device, ipaddress.IPv4Interface((pod.addresses[0], 24)), broadcast=True)
        if options.ipv6:
            space.address(options.pod_device, ipaddress.IPv6Interface((pod.addresses[1], 64)))
        space.up(options.pod_device)
        if cluster_route:
            space.route(ipaddress.IPv4Network(options.pod_network), options.pod_device, subnet[1])
        space.route("default", options.pod_device, subnet[1])
        if options.ipv6:
            gateway6 = options.pod_subnet6(number)[1]
            if cluster_route:
                space.route(ipaddress.IPv6Network(options.pod_network6), options.pod_device, gateway6)
            space.route("default", options.pod_device, gateway6)
    node.up(options.bridge)
    node.settle(*ports, options.bridge)


def start_echo(build: Build) -> None:
    """Echo servers in every pod, answering when this returns."""
    if build.options.echo:
        build.check()
        echoes.start(build.store)
