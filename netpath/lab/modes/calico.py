"""Calico: routed veths, proxy ARP, a /26 block on each node; between nodes routes of a real BIRD, or felix's VXLAN.

felix does not run: its devices, routes (marked with its protocol number) and, if asked for, policy chains are written here.
Facts: projectcalico, cni-plugin/pkg/dataplane/linux (veths, 169.254.1.1), felix/dataplane/linux/endpoint_mgr.go (sysctls).
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import asdict, replace

from netpath.errors import UsageError
from netpath.lab import bird, policy, services
from netpath.lab.build import Build, Mode, make_underlay, plan_nodes_and_pods, start_echo
from netpath.lab.options import Options
from netpath.lab.overlay import End, make_vxlan
from netpath.lab.state import State

_GATEWAY = ipaddress.IPv4Address("169.254.1.1")
_MAC = "ee:ee:ee:ee:ee:ee"
_FELIX = 80
"""felix's routes between blocks (VXLANRouteProtocol's default)."""
_SCOPE_LINK = 253
_BLOCK = 64
_OVERHEAD = 50
_VNI = 4096
_PORT = 4789
_REFLECTOR = "node3"


def block(options: Options, number: int) -> ipaddress.IPv4Network:
    """Node `number`'s block of addresses: the second /26 of its /24."""
    return ipaddress.IPv4Network((int(options.pod_subnet(number).network_address) + _BLOCK, 26))


def _plan(state: State, options: Options) -> State:
    if options.ipv6 or options.pods_per_node > _BLOCK - 2:
        raise UsageError(f"lab calico: IPv4 only, at most {_BLOCK - 2} pods on a node")
    planned = plan_nodes_and_pods(state, options)
    pods = []
    for number, node in enumerate(planned.nodes, start=1):
        on_node = [pod for pod in planned.pods if pod.node == node.name]
        pods += [replace(pod, addresses=(str(block(options, number)[1 + position]),)) for position, pod in enumerate(on_node)]
    return replace(planned, pods=tuple(pods))


def _make_pods(build: Build, number: int, *, mtu: int) -> None:
    """Node `number`'s pods, each on a routed veth of its own."""
    options = build.options
    node = build.space(f"node{number}")
    workloads = []
    for pod in (pod for pod in build.state.pods if pod.node == f"node{number}"):
        space = build.space(pod.name)
        # cali and eleven digits of a hash of the workload's name (libcalico-go, names.WEP).
        host = f"cali{hashlib.sha1(f'default.{pod.name}'.encode()).hexdigest()[:11]}"
        workloads.append(policy.Workload(host, protected=pod == build.state.pods[-1]))
        space.up("lo")
        node.veth(host, options.pod_device, space, mtu=mtu)
        node.set(host, address=_MAC)
        node.sysctl(f"net.ipv6.conf.{host}.disable_ipv6", 1, optional=True)
        node.sysctl(f"net.ipv4.conf.{host}.rp_filter", 1)
        node.sysctl(f"net.ipv4.conf.{host}.route_localnet", 0)
        node.sysctl(f"net.ipv4.conf.{host}.proxy_arp", 1)
        # The kernel waits up to 0.8 s before it answers for somebody else.
        node.sysctl(f"net.ipv4.neigh.{host}.proxy_delay", 0)
        node.sysctl(f"net.ipv4.conf.{host}.forwarding", 1)
        space.address(options.pod_device, ipaddress.IPv4Interface((pod.addresses[0], 32)))
        space.up(options.pod_device)
        node.up(host)
        space.route(ipaddress.IPv4Network((_GATEWAY, 32)), options.pod_device, scope=_SCOPE_LINK)
        space.route("default", options.pod_device, _GATEWAY)
        node.route(ipaddress.IPv4Network((pod.addresses[0], 32)), host, scope=_SCOPE_LINK)
    if options.policy:
        first = {pod.node: pod.addresses[0] for pod in reversed(build.state.pods)}
        policy.make(node, workloads, tuple(first.values()))


def _plan_bgp(state: State, options: Options) -> State:
    return replace(_plan(state, options), folders=(str(bird.folder(state.name)),))


def _plan_reflected(state: State, options: Options) -> State:
    """At least three nodes: a reflector, and two that hear of each other by it alone."""
    options = replace(options, nodes=max(options.nodes, 3))
    options.check()
    return replace(_plan_bgp(state, options), options=asdict(options))


def _build_mesh(build: Build) -> None:
    _build_bgp(build, None)


def _build_reflected(build: Build) -> None:
    _build_bgp(build, _REFLECTOR)


def _build_bgp(build: Build, reflector: str | None) -> None:
    options, nodes = build.options, build.state.nodes
    make_underlay(build)
    for number in range(1, len(nodes) + 1):
        _make_pods(build, number, mtu=options.overlay_mtu or options.underlay_mtu)
    addresses = {node.name: node.addresses[0] for node in nodes}
    blocks = {node.name: block(options, number) for number, node in enumerate(nodes, start=1)}
    bird.start(build, bird.mesh(addresses, blocks, reflector))
    services.make(build)
    start_echo(build)


def _plan_cross_subnet(state: State, options: Options) -> State:
    if options.nodes < 2:
        raise UsageError("lab calico-crosssubnet: at least 2 nodes, the last of which is in a subnet of its own")
    return _plan(state, options)


def _build_vxlan(build: Build) -> None:
    make_underlay(build)
    _join(build, direct=range(0))


def _build_cross_subnet(build: Build) -> None:
    """The last node is in another subnet, behind a router; the others reach each other without the tunnel."""
    make_underlay(build, routed_from=build.options.nodes)
    _join(build, direct=range(1, build.options.nodes))


def _join(build: Build, direct: range) -> None:
    """Pods, and blocks joined by VXLAN; the `direct` nodes, which share a subnet, by plain routes (felix, vxlan_mgr.go)."""
    options = build.options
    mtu = options.overlay_mtu or options.underlay_mtu - _OVERHEAD
    hosts = [ipaddress.IPv4Address(node.addresses[0]) for node in build.state.nodes]
    ends = []
    for number, own in enumerate(hosts, start=1):
        space = build.space(f"node{number}")
        space.route(block(options, number), protocol=_FELIX, type="blackhole")
        # Calico's MTU detection gives pods what the tunnel leaves.
        _make_pods(build, number, mtu=mtu)
        near = [other for other in direct if number in direct and other != number]
        for other in near:
            space.route(block(options, other), options.uplink, hosts[other - 1], protocol=_FELIX)
        ends.append(End(own, block(options, number), frozenset(hosts[other - 1] for other in near)))
    vni = options.vni if options.vni != Options().vni else _VNI
    port = options.port if options.port != Options().port else _PORT
    make_vxlan(build, options.tunnel or "vxlan.calico", ends, vni=vni, port=port, mtu=mtu, protocol=_FELIX)
    services.make(build)
    start_echo(build)


_TRY = ("netpath trace {lab}-pod1a {lab}-pod2a:7777 --udp", "netpath trace {lab}-pod1a {lab}-pod1b")

BGP = Mode(
    name="calico-bgp",
    summary="Calico without overlay: routed veths with proxy ARP, /26 blocks told by BGP, every node to every other",
    real_parts="the kernel's datapath; BIRD 2; felix and the CNI plugin are imitated by static state",
    try_commands=_TRY,
    plan=_plan_bgp,
    build=_build_mesh,
)

REFLECTED = Mode(
    name="calico-rr",
    summary="Calico with a route reflector: as calico-bgp, with BGP sessions to node3 only; at least 3 nodes",
    real_parts="the kernel's datapath; BIRD 2; felix and the CNI plugin are imitated by static state",
    try_commands=_TRY,
    plan=_plan_reflected,
    build=_build_reflected,
)

VXLAN = Mode(
    name="calico-vxlan",
    summary="Calico VXLAN: the same pods, blocks joined by vxlan.calico, VNI 4096, UDP 4789, +50 bytes",
    real_parts="the kernel's datapath; felix and the CNI plugin are imitated by static state",
    try_commands=_TRY,
    plan=_plan,
    build=_build_vxlan,
)

CROSS_SUBNET = Mode(
    name="calico-crosssubnet",
    summary="Calico VXLAN between subnets only: the last node is behind a router, the others are reached plainly",
    real_parts="the kernel's datapath, a router between subnets; felix and the CNI plugin are imitated by static state",
    try_commands=_TRY,
    plan=_plan_cross_subnet,
    build=_build_cross_subnet,
)
