"""Flannel, VXLAN (with and without DirectRouting) and host-gw backends, with the CNI bridge plugin.

The kernel state is that of flanneld 0.20 (pkg/backend/vxlan, pkg/backend/hostgw, pkg/trafficmngr/iptables) and of the CNI plugins
flannel and bridge 1.x; flanneld and the plugins do not run.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from netpath.errors import UsageError
from netpath.lab import services
from netpath.lab.build import Build, Mode, make_bridge, make_pods, make_underlay, plan_nodes_and_pods, start_echo
from netpath.lab.options import Options
from netpath.lab.overlay import End, make_vxlan
from netpath.lab.state import State

_OVERHEAD = 50
"""IPv4, UDP, VXLAN and the inner Ethernet header (flannel, pkg/backend/vxlan encapOverhead)."""
_OVERHEAD6 = 70


def _tunnel6(tunnel: str) -> str:
    return tunnel.replace("flannel", "flannel-v6", 1) if tunnel.startswith("flannel") else f"{tunnel[:12]}-v6"


def masquerade_rules(pod_network: str, subnet: str, *, multicast: str) -> str:
    """flanneld's -ip-masq and forwarding rules, for iptables-restore."""
    masquerade = '-m comment --comment "flanneld masq"'
    forward = '-m comment --comment "flanneld forward"'
    lines = (
        "*filter",
        ":FLANNEL-FWD - [0:0]",
        f"-A FORWARD {forward} -j FLANNEL-FWD",
        f"-A FLANNEL-FWD -s {pod_network} {forward} -j ACCEPT",
        f"-A FLANNEL-FWD -d {pod_network} {forward} -j ACCEPT",
        "COMMIT",
        "*nat",
        ":FLANNEL-POSTRTG - [0:0]",
        f"-A POSTROUTING {masquerade} -j FLANNEL-POSTRTG",
        f"-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masquerade} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {pod_network} -d {pod_network} {masquerade} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {pod_network} ! -d {multicast} {masquerade} -j MASQUERADE --random-fully",
        f"-A FLANNEL-POSTRTG ! -s {pod_network} -d {subnet} {masquerade} -j RETURN",
        f"-A FLANNEL-POSTRTG ! -s {pod_network} -d {pod_network} {masquerade} -j MASQUERADE --random-fully",
        "COMMIT",
    )
    return "\n".join(lines) + "\n"


def make_masquerade(build: Build) -> None:
    options = build.options
    if not options.masquerade:
        return
    backend = "iptables-legacy" if options.services == "iptables-legacy" else "iptables-nft"
    for number in range(1, options.nodes + 1):
        space = build.space(f"node{number}")
        rules = masquerade_rules(options.pod_network, str(options.pod_subnet(number)), multicast="224.0.0.0/4")
        space.run(f"{backend}-restore", "--noflush", stdin=rules)
        if options.ipv6:
            rules = masquerade_rules(options.pod_network6, str(options.pod_subnet6(number)), multicast="ff00::/8")
            space.run(f"{backend.replace('ip', 'ip6', 1)}-restore", "--noflush", stdin=rules)


def make_tunnel(build: Build) -> int:
    """flannel.1 on every node, and its IPv6 companion if asked for; the MTU that is left for pods."""
    options = build.options
    mtu = options.overlay_mtu or options.underlay_mtu - _OVERHEAD
    numbers = range(1, options.nodes + 1)
    name = options.tunnel or f"flannel.{options.vni}"
    ends = [End(options.node_address(number).ip, options.pod_subnet(number)) for number in numbers]
    make_vxlan(build, name, ends, vni=options.vni, port=options.port, mtu=mtu, queue=0)
    if options.ipv6:
        ends = [End(options.node_address6(number).ip, options.pod_subnet6(number)) for number in numbers]
        mtu6 = min(mtu, options.underlay_mtu - _OVERHEAD6)
        make_vxlan(build, _tunnel6(name), ends, vni=options.vni, port=options.port, mtu=mtu6, queue=0)
    return mtu


def _build_vxlan(build: Build) -> None:
    options = build.options
    make_underlay(build)
    mtu = make_tunnel(build)
    for number in range(1, options.nodes + 1):
        make_bridge(build, number, mtu=mtu)
        make_pods(build, number, mtu=mtu, cluster_route=True)
    # Before flanneld's: a node whose kube-proxy starts later has its jumps in front all the same, as it inserts them.
    services.make(build)
    make_masquerade(build)
    start_echo(build)


def _plan_direct(state: State, options: Options) -> State:
    if options.ipv6:
        raise UsageError("lab flannel-directrouting: IPv4 only")
    return plan_nodes_and_pods(state, replace(options, nodes=max(options.nodes, 3)))


def _build_direct(build: Build) -> None:
    """The last node is behind a router: the tunnel leads there, and plain routes to the others (vxlan_network.go, directRoute)."""
    build.options = options = replace(build.options, nodes=len(build.state.nodes))
    make_underlay(build, routed_from=options.nodes)
    mtu = options.overlay_mtu or options.underlay_mtu - _OVERHEAD
    hosts = [ipaddress.IPv4Address(node.addresses[0]) for node in build.state.nodes]
    near = range(1, options.nodes)
    ends = []
    for number, own in enumerate(hosts, start=1):
        direct = [other for other in near if number in near and other != number]
        ends.append(End(own, options.pod_subnet(number), frozenset(hosts[other - 1] for other in direct)))
    name = options.tunnel or f"flannel.{options.vni}"
    make_vxlan(build, name, ends, vni=options.vni, port=options.port, mtu=mtu, queue=0, know_direct=False)
    for number, end in enumerate(ends, start=1):
        space = build.space(f"node{number}")
        for other in near:
            if hosts[other - 1] in end.direct:
                space.route(options.pod_subnet(other), options.uplink, hosts[other - 1])
        make_bridge(build, number, mtu=mtu)
        make_pods(build, number, mtu=mtu, cluster_route=True)
    services.make(build)
    make_masquerade(build)
    start_echo(build)


def make_host_routes(build: Build) -> None:
    """On every node a route to every other node's subnet, by that node's address."""
    options = build.options
    for number in range(1, options.nodes + 1):
        space = build.space(f"node{number}")
        for other in range(1, options.nodes + 1):
            if other != number:
                space.route(options.pod_subnet(other), options.uplink, options.node_address(other).ip)
                if options.ipv6:
                    space.route(options.pod_subnet6(other), options.uplink, options.node_address6(other).ip)


def _build_hostgw(build: Build) -> None:
    options = build.options
    mtu = options.overlay_mtu or options.underlay_mtu
    make_underlay(build)
    make_host_routes(build)
    for number in range(1, options.nodes + 1):
        make_bridge(build, number, mtu=mtu)
        make_pods(build, number, mtu=mtu, cluster_route=True)
    # Before flanneld's: a node whose kube-proxy starts later has its jumps in front all the same, as it inserts them.
    services.make(build)
    make_masquerade(build)
    start_echo(build)


_TRY = (
    "netpath trace {lab}-pod1a {lab}-pod2a:7777 --udp",
    "netpath path {lab}-pod1a {lab}-pod1b",
    "netpath lab exec {lab}/pod1a -- ip route",
)

VXLAN = Mode(
    name="flannel-vxlan",
    summary="Flannel VXLAN: an overlay, +50 bytes",
    real_parts="the kernel's datapath; flanneld and the bridge plugin are imitated: devices, routes, neighbours, FDB, rules",
    try_commands=_TRY,
    plan=plan_nodes_and_pods,
    build=_build_vxlan,
)

DIRECT = Mode(
    name="flannel-directrouting",
    summary="Flannel VXLAN with DirectRouting: plain routes on one link, the tunnel to the last node, behind a router; 3 nodes",
    real_parts="the kernel's datapath; flanneld and the bridge plugin are imitated: devices, routes, neighbours, FDB, rules",
    try_commands=(
        "netpath trace {lab}-pod1a {lab}-pod2a:7777 --udp",
        "netpath trace {lab}-pod1a {lab}-pod3a:7777 --udp",
    ),
    plan=_plan_direct,
    build=_build_direct,
)

HOSTGW = Mode(
    name="flannel-hostgw",
    summary="Flannel host-gw: routes between nodes on one link",
    real_parts="the kernel's datapath; flanneld and the CNI bridge plugin are imitated: their devices, routes and rules",
    try_commands=_TRY,
    plan=plan_nodes_and_pods,
    build=_build_hostgw,
)
