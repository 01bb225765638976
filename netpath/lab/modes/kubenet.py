"""kubenet and GKE's default: pods on cbr0 or on routed veths, and a cloud whose router knows where each node's pods are.

No node knows another's pods: all that leaves a node goes to the router, as in a cloud's virtual network, where every machine is alone
on its link. What kubelet and ip-masq-agent add is their masquerade (Kubernetes 1.23, pkg/kubelet/dockershim/network/kubenet,
ensureMasqRule; ip-masq-agent 2.9, cmd/ip-masq-agent, with GKE's chain name).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from netpath.errors import UsageError
from netpath.lab import plugins, services
from netpath.lab.build import Build, Mode, start_echo
from netpath.lab.modes.bridge import bridge_plugin
from netpath.lab.modes.ptp import attach_pods
from netpath.lab.options import Options
from netpath.lab.plugins import Network, Runtime
from netpath.lab.state import State

OUTSIDE = ipaddress.IPv4Address("203.0.113.1")
"""An address of the world outside the cloud (RFC 5737); the router has it."""

_BRIDGE = "cbr0"
_DHCP = 16
"""RTPROT_DHCP: a machine in a cloud has its routes from there."""
_SCOPE_LINK = 253
_CLUSTER = ("10.0.0.0/8",)
"""kubelet's --non-masquerade-cidr, unless it is told another."""
_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
"""ip-masq-agent's nonMasqueradeCIDRs, unless it is told others."""


def _plan(state: State, options: Options) -> State:
    if options.ipv6 or options.underlay_vlan is not None:
        raise UsageError(f"lab {state.mode}: IPv4 only, and no VLAN below a cloud's network")
    return plugins.plan(state, options)


def make_cloud(build: Build) -> None:
    """The nodes, each on a link of its own to the cloud's router, with an address that is a /32 and a default route to it.

    The router has a route to every node, by its port, and to every node's pods, by the node.
    """
    options = build.options
    fabric = build.space("fabric")
    gateway = options.gateway
    fabric.up("lo")
    fabric.address("lo", ipaddress.IPv4Interface((OUTSIDE, 32)))
    fabric.sysctl("net.ipv4.ip_forward", 1)
    for number, node in enumerate(build.state.nodes, start=1):
        space, port, address = build.space(node.name), f"port{number}", options.node_address(number).ip
        space.up("lo")
        space.veth(options.uplink, port, fabric, mtu=options.underlay_mtu)
        space.address(options.uplink, ipaddress.IPv4Interface((address, 32)))
        space.up(options.uplink)
        fabric.address(port, ipaddress.IPv4Interface((gateway, 32)))
        fabric.up(port)
        fabric.route(ipaddress.IPv4Network((address, 32)), port, scope=_SCOPE_LINK)
        fabric.route(options.pod_subnet(number), port, address)
        space.sysctl("net.ipv4.ip_forward", 1)
        space.route(ipaddress.IPv4Network((gateway, 32)), options.uplink, scope=_SCOPE_LINK, protocol=_DHCP)
        space.route("default", options.uplink, gateway, protocol=_DHCP)


def _not_masqueraded(options: Options, usual: Sequence[str]) -> tuple[str, ...]:
    """The usual prefixes, and the pods' own where it is none of these: a cluster elsewhere is set up so."""
    pods = ipaddress.IPv4Network(options.pod_network)
    return (*usual, *([] if any(pods.subnet_of(ipaddress.IPv4Network(text)) for text in usual) else [str(pods)]))


def kubenet_rules(not_masqueraded: str) -> str:
    """kubelet's one rule, for iptables-restore."""
    comment = '-m comment --comment "kubenet: SNAT for outbound traffic from cluster"'
    rule = f"-A POSTROUTING ! -d {not_masqueraded} {comment} -m addrtype ! --dst-type LOCAL -j MASQUERADE"
    return "\n".join(("*nat", rule, "COMMIT", ""))


def masq_agent_rules(not_masqueraded: Sequence[str]) -> str:
    """ip-masq-agent's chain, for iptables-restore."""
    jump = "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ chain"
    local = "ip-masq-agent: local traffic is not subject to MASQUERADE"
    outbound = "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)"
    lines = (
        "*nat",
        ":IP-MASQ - [0:0]",
        f'-A POSTROUTING -m comment --comment "{jump}" -m addrtype ! --dst-type LOCAL -j IP-MASQ',
        *(f'-A IP-MASQ -d {prefix} -m comment --comment "{local}" -j RETURN' for prefix in ("169.254.0.0/16", *not_masqueraded)),
        f'-A IP-MASQ -m comment --comment "{outbound}" -j MASQUERADE --random-fully',
        "COMMIT",
        "",
    )
    return "\n".join(lines)


def _restore(build: Build, rules: str) -> None:
    """Load rules into every node, unless the lab is to have no masquerade."""
    options = build.options
    backend = "iptables-legacy" if options.services == "iptables-legacy" else "iptables-nft"
    for node in build.state.nodes if options.masquerade else ():
        build.space(node.name).run(f"{backend}-restore", "--noflush", stdin=rules)


def _build_kubenet(build: Build) -> None:
    options = build.options
    make_cloud(build)
    runtime = Runtime(build)
    bridge = options.bridge if options.bridge != Options().bridge else _BRIDGE
    for number, node in enumerate(build.state.nodes, start=1):
        network = Network("kubenet", (bridge_plugin(build, number, bridge=bridge, masquerade=False),))
        for pod in [pod for pod in build.state.pods if pod.node == node.name]:
            runtime.attach(pod, network)
    services.make(build)
    # kubelet knows one prefix; where the pods are elsewhere it is theirs.
    _restore(build, kubenet_rules(_not_masqueraded(options, _CLUSTER)[-1]))
    start_echo(build)


def _build_gke(build: Build) -> None:
    make_cloud(build)
    attach_pods(build, "gke-pod-network")
    services.make(build)
    _restore(build, masq_agent_rules(_not_masqueraded(build.options, _PRIVATE)))
    start_echo(build)


_TRY = (
    "netpath trace {lab}-pod1a {lab}-pod2a:7777 --udp",
    f"netpath trace {{lab}}-pod1a {{lab}}-fabric@{OUTSIDE} --icmp --round-trip",
    "netpath lab exec {lab}/node1 -- ip route",
)

KUBENET = Mode(
    name="kubenet",
    summary="kubenet: pods on cbr0, a cloud's router between nodes, masquerade for what leaves 10.0.0.0/8",
    real_parts="the kernel's datapath; the CNI plugins bridge, host-local, loopback; kubelet and the cloud's router are imitated",
    try_commands=_TRY,
    plan=_plan,
    build=_build_kubenet,
)

GKE = Mode(
    name="gke",
    summary="GKE's default: a routed veth for every pod, a cloud's router between nodes, ip-masq-agent's chain",
    real_parts="the kernel's datapath; the CNI plugins ptp, host-local, loopback; ip-masq-agent and the cloud's router are imitated",
    try_commands=_TRY,
    plan=_plan,
    build=_build_gke,
)
