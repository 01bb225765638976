"""Calico: a /32 route over a veth per pod; between nodes BGP, IPIP or VXLAN, and with CrossSubnet a tunnel beside plain routes.

Marks from felix's dataplane/linux and the Calico CNI plugin: host veths are cali and eleven digits, with MAC ee:ee:ee:ee:ee:ee and
proxy ARP; the pod's default route goes to 169.254.1.1; BIRD's routes carry protocol 12, felix's own protocol 80, and the node's own
blocks are blackholes; vxlan.calico has VNI 4096 and UDP port 4789; IPIP uses the namespace's tunl0. Policy chains begin with cali-.
"""

from __future__ import annotations

from netpath.cni import flannel
from netpath.cni.view import Datapath, NodeView, RoutedPod, Signs
from netpath.model.snapshot import Link, Route

NAME = "calico"


def recognise(view: NodeView) -> tuple[Datapath, ...]:
    if flannel.routed_in_subnet(view):
        return ()  # Canal
    signs = Signs()
    attached(view, view.routed_pods, signs)
    blocks = [route for route in view.main if route.type == "blackhole" and route.protocol in ("bird", "80")]
    if blocks:
        signs.add(0.5, f"the node's own block {blocks[0].destination} is a blackhole of protocol {blocks[0].protocol}")
    tunnels, direct = view.route_mode(view.main)
    bird = [route for route in direct if route.protocol == "bird"]
    felix = [route for route in direct if route.protocol == "80"]
    vxlan = next((link for link in view.of_kind("vxlan") if _is_calico_vxlan(link)), None)
    ipip = next((link for link in view.of_kind("ipip") if _routed(link, tunnels)), None)
    mode = None
    if vxlan is not None and vxlan.vxlan is not None:
        vni, port = vxlan.vxlan.vni, vxlan.vxlan.port
        signs.add(0.6, f"{vxlan.name} is a VXLAN device with VNI {vni}, UDP port {port} and no learning")
        signs.add_if(vxlan.name == "vxlan.calico", 0.5, "it is called vxlan.calico")
        routed = [route for route in _routed(vxlan, tunnels) if route.protocol == "80"]
        signs.add_if(routed, 0.4, f"{len(routed)} blocks are routed over {vxlan.name} with protocol 80")
        mode = "vxlan+crosssubnet" if felix else "vxlan"
        signs.add_if(felix, 0.1, f"{len(felix)} blocks in the node's own network are routed past the tunnel (protocol 80)")
    if ipip is not None:
        routed = _routed(ipip, tunnels)
        signs.add(0.3, f"{len(routed)} blocks are routed over the IPIP device {ipip.name}")
        signs.add_if(ipip.name == "tunl0", 0.1, "it is tunl0")
        signs.add_if(any(route.protocol == "bird" for route in routed), 0.6, "these routes are BIRD's (protocol 12)")
        mode = "ipip+crosssubnet" if bird else "ipip"
        signs.add_if(bird, 0.1, f"{len(bird)} blocks in the node's own network are routed past the tunnel by BIRD")
    if mode is None and (bird or any(route.protocol == "bird" for route in blocks)):
        signs.add_if(bird, 0.5, f"{len(bird)} blocks are routed to other nodes by BIRD (protocol 12)")
        mode = "bgp"
    # BIRD alone is a router, not a container network: Calico attaches pods.
    if mode is None and signs.confidence >= 0.8:
        mode = "local"
        signs.add(0.0, "no block is routed to another node")
    if mode is None or not _has_pods_or_block(view, blocks):
        return ()
    policy(view, signs)
    signs.add_if("calico" in view.cni_types, 0.6, f"{view.cni_types.get('calico')} names the calico plugin")
    return signs.datapath(NAME, mode)


def attached(view: NodeView, pods: tuple[RoutedPod, ...], signs: Signs) -> None:
    """What Calico's way to attach pods leaves."""
    proxied = [pod for pod in pods if view.proxies_arp(pod.link)]
    link_local = [pod for pod in pods if (inner := view.pod_of(pod.link)) is not None
                  and any(hop.gateway == "169.254.1.1" for route in inner.routes for hop in route.nexthops)]  # fmt: skip
    ee = [pod for pod in pods if pod.link.mac == "ee:ee:ee:ee:ee:ee"]
    named = [pod for pod in pods if pod.link.name.startswith("cali")]
    signs.add_if(proxied, 0.4, f"{len(proxied)} pods have a route of their own over a veth that answers ARP for all addresses")
    signs.add_if(link_local, 0.6, f"{len(link_local)} pods have 169.254.1.1 as their gateway")
    signs.add_if(ee, 0.5, f"{len(ee)} host veths have the MAC address ee:ee:ee:ee:ee:ee")
    signs.add_if(named, 0.4, f"{len(named)} host veths are called cali...")


def policy(view: NodeView, signs: Signs) -> None:
    """Felix's chains."""
    chain = view.chain("cali-")
    signs.add_if(chain, 0.5, f"chain {chain}")
    rule = view.rule('--comment "cali:')
    signs.add_if(rule, 0.5, f"rule: {rule}")


def _is_calico_vxlan(link: Link) -> bool:
    vxlan = link.vxlan
    return (vxlan is not None and not vxlan.learning and (vxlan.vni, vxlan.port) == (4096, 4789)) or link.name == "vxlan.calico"


def _routed(link: Link, routes: tuple[Route, ...]) -> list[Route]:
    return [route for route in routes if any(hop.device == link.ifindex for hop in route.nexthops)]


def _has_pods_or_block(view: NodeView, blocks: list[Route]) -> bool:
    return bool(blocks) or any(view.proxies_arp(pod.link) or pod.link.name.startswith("cali") for pod in view.routed_pods)
