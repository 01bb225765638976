"""Weave Net without Open vSwitch: a bridge on each node, joined to the others' by a process that captures and injects (sleeve).

The kernel state is that of weave 2.8 (net/bridge.go, net/veth.go, net/expose.go) with --no-fastdp, and of its CNI plugin. All pods
are in one subnet and on one link, across the nodes: ARP goes through the tunnel. The router does not run; the lab relay frames as it does.
"""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import replace

from netpath.errors import UsageError
from netpath.lab import relays, services
from netpath.lab.build import Build, Mode, make_underlay, plan_nodes_and_pods, random_mac, start_echo
from netpath.lab.options import Options
from netpath.lab.state import State

BRIDGE = "weave"
PORT = 6783
_NETWORK = "10.32.0.0/12"
_MTU = 1376
"""weave's default: what is left of 1500 with encryption and everything."""
_TAP_MTU = 65535


def _plan(state: State, options: Options) -> State:
    if options.ipv6:
        raise UsageError("lab weave-sleeve: IPv4 only, as weave is")
    if options.pod_network == Options().pod_network:
        options = replace(options, pod_network=_NETWORK)
    return plan_nodes_and_pods(replace(state, options={**state.options, "pod_network": options.pod_network}), options)


def _rules(network: str, *, masquerade: bool) -> str:
    """What the router and `weave expose` write, for iptables-restore."""
    lines = [
        "*filter",
        ":WEAVE-CANARY - [0:0]",
        ":WEAVE-EXPOSE - [0:0]",
        "-A INPUT -d 127.0.0.1/32 -p tcp -m tcp --dport 6784 -m addrtype ! --src-type LOCAL"
        " -m conntrack ! --ctstate RELATED,ESTABLISHED"
        ' -m comment --comment "Block non-local access to Weave Net control port" -j DROP',
        f"-A FORWARD -i {BRIDGE} -o {BRIDGE} -j ACCEPT",
        f"-A FORWARD -o {BRIDGE} -j WEAVE-EXPOSE",
        f"-A FORWARD -i {BRIDGE} ! -o {BRIDGE} -j ACCEPT",
        f"-A FORWARD -o {BRIDGE} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        f"-A WEAVE-EXPOSE -d {network} -j ACCEPT",
        "COMMIT",
        "*nat",
        ":WEAVE - [0:0]",
        ":WEAVE-CANARY - [0:0]",
        "-A POSTROUTING -j WEAVE",
    ]
    if masquerade:
        lines += [
            f"-A WEAVE -s {network} -d 224.0.0.0/4 -j RETURN",
            f"-A WEAVE ! -s {network} -d {network} -j MASQUERADE",
            f"-A WEAVE -s {network} ! -d {network} -j MASQUERADE",
        ]
    return "\n".join([*lines, "COMMIT"]) + "\n"


def _make_node(build: Build, number: int, name: str, peers: list[tuple[str, str]]) -> None:
    """Node `number`'s bridge, its tap, its relay and its pods. `name` is its name among its peers and its bridge's address."""
    options = build.options
    network, mtu = ipaddress.IPv4Network(options.pod_network), options.overlay_mtu or _MTU
    space = build.space(f"node{number}")
    gateway = options.pod_subnet(number)[1]
    space.link(BRIDGE, "bridge", mtu=mtu)
    space.set(BRIDGE, address=name)
    space.address(BRIDGE, ipaddress.IPv4Interface((gateway, network.prefixlen)), broadcast=True)
    # What a process injects is not finished by any device: checksums must be there when it is captured (net/ethtool.go).
    space.whole_checksums(BRIDGE)
    space.veth("vethwe-bridge", "vethwe-pcap", space, mtu=_TAP_MTU, queue=0)
    # The tap hears every broadcast, and would answer for the bridge's address too, with a MAC address of its own.
    space.sysctl("net.ipv4.conf.vethwe-pcap.arp_ignore", 1)
    space.port("vethwe-bridge", BRIDGE)
    space.up("vethwe-bridge", "vethwe-pcap")
    relays.start(build, f"node{number}", "tap", "vethwe-pcap", name, "0.0.0.0", PORT, peers)
    ports = ["vethwe-pcap", "vethwe-bridge"]
    for pod in (pod for pod in build.state.pods if pod.node == f"node{number}"):
        inside = build.space(pod.name)
        inside.up("lo")
        host = f"vethwepl{secrets.token_hex(3)}"
        ports.append(host)
        inside.veth(options.pod_device, host, space, mtu=mtu)
        inside.whole_checksums(options.pod_device)
        space.port(host, BRIDGE)
        space.up(host)
        inside.address(options.pod_device, ipaddress.IPv4Interface((pod.addresses[0], network.prefixlen)), broadcast=True)
        inside.up(options.pod_device)
        inside.route("default", options.pod_device, gateway)
    space.up(BRIDGE)
    space.settle(*ports, BRIDGE)
    backend = "iptables-legacy" if options.services == "iptables-legacy" else "iptables-nft"
    space.run(f"{backend}-restore", "--noflush", stdin=_rules(str(network), masquerade=options.masquerade))


def _build(build: Build) -> None:
    build.options = replace(build.options, pod_network=build.state.options["pod_network"])
    make_underlay(build)
    names = {node.name: random_mac() for node in build.state.nodes}
    for number, node in enumerate(build.state.nodes, start=1):
        peers = [(names[other.name], other.addresses[0]) for other in build.state.nodes if other is not node]
        _make_node(build, number, names[node.name], peers)
    services.make(build)
    start_echo(build)


SLEEVE = Mode(
    name="weave-sleeve",
    summary="Weave's sleeve: one bridged subnet through a capturing process on each node, +62 bytes",
    real_parts="the kernel's datapath; weaver and its CNI plugin are imitated: devices, rules; frames are carried, in sleeve's framing and"
    " not encrypted, by a small C program (lab relay, not weaver)",
    try_commands=(
        "netpath trace {lab}-pod1a {lab}-pod2a:7777 --udp -o wide",
        "netpath path {lab}-pod1a {lab}-pod1b",
    ),
    plan=_plan,
    build=_build,
)
