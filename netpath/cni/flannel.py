"""Flannel: one subnet per node, joined by a user-space tunnel (udp), VXLAN, VXLAN with DirectRouting, IPIP, or routes (host-gw).

Marks from flannel's backends (pkg/backend/{udp,vxlan,ipip,hostgw}) and traffic manager: the VXLAN device has VNI 1, UDP port 8472, no
learning, and the subnet's own network address as a /32; a peer's subnet is routed onlink over it to the peer's network address,
with permanent neighbours and FDB entries. udp mode has a TUN device with the same address and one route for the whole network. All
write /run/flannel/subnet.env and, with ip-masq, rules whose comment says flanneld.
"""

from __future__ import annotations

from netpath.cni.view import Datapath, Network, NodeView, RoutedPod, Signs, env, inside, network_of
from netpath.model.snapshot import Link, Route

NAME = "flannel"


def recognise(view: NodeView) -> tuple[Datapath, ...]:
    if routed_in_subnet(view):
        return ()  # Canal: Flannel carries what Calico attaches
    overlay, signs = overlay_of(view)
    if overlay is None:
        return ()
    bridge = next((bridge for bridge in view.pod_bridges if view.holds(bridge, subnet_of(view, overlay))), None)
    mode = overlay.mode
    if bridge is not None:
        on_docker = (
            bridge.name == "docker0" or "dockerd" in view.processes or any(work.runtime == "docker" for work in view.workloads)
        )
        if (on_docker and "docker-network-bridge.json" in view.files) or bridge.name == "docker0":
            signs.add(
                0.1,
                f"containers are attached to Docker's bridge {bridge.name}, which holds the node's subnet",
            )
            mode += "+docker0"
        else:
            signs.add(0.1, f"pods are attached to the bridge {bridge.name}, which holds the node's subnet")
    return signs.datapath(NAME, mode)


class Overlay:
    """How Flannel joins the nodes: `mode`, and the device (None in host-gw)."""

    def __init__(self, mode: str, link: Link | None, network: Network | None) -> None:
        self.mode = mode
        self.link = link
        self.network = network


def subnet_of(view: NodeView, overlay: Overlay | None = None) -> Network | None:
    """The node's pod subnet: from subnet.env, from the rule that exempts it from masquerade, or from the overlay's own address."""
    told = network_of(env(view.files.get("subnet.env")).get("FLANNEL_SUBNET"))
    if told is not None:
        return told
    exempt = view.rule("flanneld masq", " ! -s ", " -d ", "-j RETURN")
    if exempt is not None:
        words = exempt.split()
        return network_of(words[words.index("-d") + 1])
    if overlay is None or overlay.link is None:
        return None
    for text in view.addresses(overlay.link):
        if text.endswith("/32"):
            lengths = [route.destination.partition("/")[2] for route in view.via(overlay.link) if route.nexthops[0].onlink]
            return network_of(f"{text[:-3]}/{lengths[0] if lengths else 24}")
    return None


def overlay_of(view: NodeView) -> tuple[Overlay | None, Signs]:
    """Flannel's overlay with the signs of it, to which the caller may add."""
    if "flannel" not in view.memo:
        view.memo["flannel"] = _overlay_of(view)
    overlay, signs = view.memo["flannel"]
    return overlay, Signs(signs.doubt, list(signs.lines))


def _overlay_of(view: NodeView) -> tuple[Overlay | None, Signs]:
    signs = Signs()
    variables = env(view.files.get("subnet.env"))
    network = network_of(variables.get("FLANNEL_NETWORK"))
    rule = view.rule("flanneld masq") or view.rule("flanneld forward")
    if network is None and rule is not None:
        words = rule.split()
        network = network_of(words[words.index("-s") + 1]) if "-s" in words else None
        masquerade = view.rule("flanneld masq", " -s ", " -d ")
        if network is None and masquerade is not None:
            words = masquerade.split()
            network = network_of(words[words.index("-s") + 1])
    overlay = (
        _vxlan(view, network, signs)
        or _ipip(view, network, signs)
        or _udp(view, network, signs)
        or _host_gw(view, network, signs, bool(rule or variables))
    )
    if overlay is None:
        return None, signs
    signs.add_if(
        variables, 0.6, f"subnet.env: network {variables.get('FLANNEL_NETWORK')}, subnet {variables.get('FLANNEL_SUBNET')}"
    )
    signs.add_if(rule, 0.6, f"rule: {rule}")
    signs.add_if(view.chain("FLANNEL-"), 0.3, f"chain {view.chain('FLANNEL-')}")
    signs.add_if("flanneld" in view.processes, 0.6, "flanneld holds a socket")
    signs.add_if("flannel" in view.cni_types, 0.5, f"{view.cni_types.get('flannel')} names the flannel plugin")
    return overlay, signs


def _vxlan(view: NodeView, network: Network | None, signs: Signs) -> Overlay | None:
    for link in view.of_kind("vxlan"):
        vxlan = link.vxlan
        if vxlan is None or vxlan.learning or vxlan.external or vxlan.vni == 4096 or (vxlan.port == 4789 and vxlan.vni != 1):
            continue
        own = [text for text in view.addresses(link) if text.endswith("/32")]
        onlink = [route for route in view.via(link) if any(hop.onlink and hop.gateway is not None for hop in route.nexthops)]
        # The gateway of a peer's subnet is that subnet's own network address, which the peer's VXLAN device holds.
        peers = [route for route in onlink if route.nexthops[0].gateway == route.destination.partition("/")[0]]
        if not own or (onlink and not peers):
            continue
        if network is not None and not any(inside(text, network) for text in own):
            continue
        if vxlan.vni == 1 and vxlan.port == 8472:
            signs.add(0.5, f"{link.name} is a VXLAN device with VNI 1, UDP port 8472 and no learning")
        else:
            signs.add(0.15, f"{link.name} is a VXLAN device with VNI {vxlan.vni}, UDP port {vxlan.port} and no learning")
        signs.add(0.2, f"{link.name} holds {own[0]}, a subnet's network address")
        signs.add_if(link.name.startswith("flannel"), 0.5, f"it is called {link.name}")
        signs.add_if(peers, 0.5, f"{len(peers)} subnets are routed onlink to their own network address over {link.name}")
        permanent = [n for n in view.node.neighbours if n.device == link.ifindex and n.state == "PERMANENT"]
        signs.add_if(permanent, 0.2, f"{len(permanent)} permanent neighbours on {link.name}")
        direct = _direct(view, network or _covering(peers))
        if direct:
            signs.add(0.2, f"{len(direct)} subnets are routed past the tunnel: {_show(view, direct[0])}")
            return Overlay("vxlan+directrouting", link, network)
        return Overlay("vxlan", link, network)
    return None


def _ipip(view: NodeView, network: Network | None, signs: Signs) -> Overlay | None:
    """The device has the node's address as its local end; a peer's subnet is routed over it, onlink, to the peer's address."""
    for link in view.of_kind("ipip"):
        own = [text for text in view.addresses(link) if text.endswith("/32")]
        peers = [route for route in view.via(link) if route.nexthops[0].onlink and route.protocol != "bird"]
        named = link.name.startswith("flannel")
        if not own or link.tunnel is None or not link.tunnel.local or not (named or network is not None):
            continue
        if network is not None and not any(inside(text, network) for text in own):
            continue
        signs.add(0.3, f"{link.name} is an IPIP device from {link.tunnel.local} with {own[0]}, a subnet's network address")
        signs.add_if(named, 0.5, f"it is called {link.name}")
        signs.add_if(peers, 0.3, f"{len(peers)} subnets are routed onlink over {link.name} to other nodes' addresses")
        return Overlay("ipip", link, network)
    return None


def _udp(view: NodeView, network: Network | None, signs: Signs) -> Overlay | None:
    for link in view.of_kind("tun"):
        own = [text for text in view.addresses(link) if text.endswith("/32")]
        routed = [
            route
            for route in view.via(link)
            if own and (found := network_of(route.destination)) is not None and inside(own[0], found)
        ]
        whole = [route for route in routed if not route.destination.endswith("/32")]
        if not own or not whole or (network is not None and not inside(own[0], network)):
            continue
        signs.add(0.3, f"{link.name} is a TUN device with {own[0]}, and {whole[0].destination} is routed to it")
        signs.add_if(view.listens("udp", 8285), 0.5, "a socket is bound to UDP port 8285")
        signs.add_if(link.name.startswith("flannel"), 0.5, f"it is called {link.name}")
        signs.add_if(link.mtu == 1472, 0.1, "its MTU is 28 bytes below Ethernet's")
        return Overlay("udp", link, network)
    return None


def _host_gw(view: NodeView, network: Network | None, signs: Signs, marked: bool) -> Overlay | None:
    """Plain routes are nobody's mark: only a node that Flannel has left its name on is one of host-gw."""
    if not marked:
        return None
    direct = _direct(view, network)
    if not direct:
        return None
    signs.add(0.5, f"{len(direct)} subnets of {network} are routed to other nodes: {_show(view, direct[0])}")
    return Overlay("host-gw", None, network)


def _direct(view: NodeView, network: Network | None) -> list[Route]:
    """Routes to subnets of the network over the underlay, that no routing daemon has made."""
    if network is None:
        return []
    _, direct = view.route_mode(view.main)
    return [route for route in direct if inside(route.destination, network) and route.protocol not in ("bird", "kernel")]


def _covering(routes: list[Route]) -> Network | None:
    """A guess at the whole network where nothing tells it: the /16 around, which is what Flannel's own manifest has."""
    found = network_of(routes[0].destination) if routes else None
    return found.supernet(new_prefix=16) if found is not None and found.version == 4 and found.prefixlen > 16 else found


def _show(view: NodeView, route: Route) -> str:
    hop = route.nexthops[0]
    link = view.links.get(hop.device or 0)
    return f"{route.destination} via {hop.gateway} dev {link.name if link else '?'}"


def routed_in_subnet(view: NodeView) -> tuple[RoutedPod, ...]:
    """Pods attached the way Calico does it, with addresses out of Flannel's subnet: Canal."""
    overlay, signs = overlay_of(view)
    if overlay is None or signs.confidence < 0.5:
        return ()
    subnet = subnet_of(view, overlay)
    if subnet is None or any(view.holds(bridge, subnet) for bridge in view.of_kind("bridge")):
        return ()
    return tuple(pod for pod in view.routed_pods if inside(pod.route.destination, subnet))
