"""Flannel, VXLAN and host-gw backends, with the CNI bridge plugin.

The kernel state is that of flanneld 0.20 (pkg/backend/vxlan, pkg/backend/hostgw, pkg/trafficmngr/iptables) and of the CNI plugins
flannel and bridge 1.x; flanneld and the plugins do not run.
"""

from __future__ import annotations

import ipaddress

from netpath.lab import services
from netpath.lab.build import Build, Mode, make_bridge, make_pods, make_underlay, plan_nodes_and_pods, start_echo

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


def _make_tunnels(build: Build, name: str, mtu: int, *, version: int) -> None:
    """A vxlan device on every node, with a route, neighbour and FDB entry for every other node."""
    options = build.options
    numbers = range(1, options.nodes + 1)

    def vtep(number: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        return options.node_address(number).ip if version == 4 else options.node_address6(number).ip

    def subnet(number: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        return options.pod_subnet(number) if version == 4 else options.pod_subnet6(number)

    macs = {}
    for number in numbers:
        space = build.space(f"node{number}")
        local = {"vxlan_local" if version == 4 else "vxlan_local6": str(vtep(number))}
        space.link(
            name,
            "vxlan",
            vxlan_id=options.vni,
            vxlan_port=options.port,
            vxlan_learning=0,
            vxlan_link=space.index(options.uplink),
            mtu=mtu,
            txqlen=0,
            **local,
        )
        space.address(name, ipaddress.ip_interface((subnet(number)[0], 32 if version == 4 else 128)))
        space.up(name)
        macs[number] = space.mac(name)
    for number in numbers:
        space = build.space(f"node{number}")
        for other in numbers:
            if other != number:
                space.neighbour(name, subnet(other)[0], macs[other])
                space.fdb(name, macs[other], vtep(other))
                space.route(subnet(other), name, subnet(other)[0], onlink=True)


def _build_vxlan(build: Build) -> None:
    options = build.options
    mtu = options.overlay_mtu or options.underlay_mtu - _OVERHEAD
    tunnel = options.tunnel or f"flannel.{options.vni}"
    make_underlay(build)
    _make_tunnels(build, tunnel, mtu, version=4)
    if options.ipv6:
        _make_tunnels(build, _tunnel6(tunnel), min(mtu, options.underlay_mtu - _OVERHEAD6), version=6)
    for number in range(1, options.nodes + 1):
        make_bridge(build, number, mtu=mtu)
        make_pods(build, number, mtu=mtu, cluster_route=True)
    # Before flanneld's: a node whose kube-proxy starts later has its jumps in front all the same, as it inserts them.
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
    "netpath lab exec {lab}/pod1a -- ping -c 1 10.244.2.2",
)

VXLAN = Mode(
    name="flannel-vxlan",
    summary="Flannel VXLAN: an overlay, +50 bytes",
    real_parts="real kernel datapath; flanneld and the bridge plugin are imitated: devices, routes, neighbours, FDB, rules",
    try_commands=_TRY,
    plan=plan_nodes_and_pods,
    build=_build_vxlan,
)

HOSTGW = Mode(
    name="flannel-hostgw",
    summary="Flannel host-gw: routes between nodes on one link",
    real_parts="real kernel datapath; flanneld and the CNI bridge plugin are imitated: their devices, routes and rules",
    try_commands=_TRY,
    plan=plan_nodes_and_pods,
    build=_build_hostgw,
)
