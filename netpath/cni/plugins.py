"""The reference plugins bridge and ptp on their own, and what portmap, firewall and ipMasq leave (containernetworking/plugins)."""

from __future__ import annotations

from netpath.cni import docker, flannel, kubenet
from netpath.cni.view import Datapath, NodeView, RoutedPod, Signs, inside, network_of
from netpath.model.snapshot import Link

NAME = "cni"
"""A configuration file may name the plugins whatever the CNI; only bridges and pods that no other family claims are theirs."""


def recognise(view: NodeView) -> tuple[Datapath, ...]:
    return (*_bridge(view), *_ptp(view))


def _marks(view: NodeView, kind: str, signs: Signs) -> None:
    """What the helpers leave whichever main plugin calls them."""
    if kind in view.cni_types:
        signs.add(0.6, f"{view.cni_types[kind]} names the {kind} plugin")
    called = next(
        (name for name, text in view.files.items() if name.endswith("/cni-calls.json") and f'"type": "{kind}"' in text), None
    )
    signs.add_if(called, 0.5, f"{called} records a call of the {kind} plugin")
    rule = view.rule('name: \\"', 'id: \\"')
    signs.add_if(rule, 0.5, f"rule: {rule}")
    chain = view.chain("CNI-")
    signs.add_if(chain, 0.3, f"chain {chain}")
    result = next((name for name in view.files if name.endswith("/cni-add-result.json")), None)
    signs.add_if(result, 0.2, f"{result} is a plugin's answer")


def _claimed(view: NodeView) -> set[int]:
    """Bridges of Docker, kubenet and Flannel."""
    found = set()
    overlay, signs = flannel.overlay_of(view)
    subnet = flannel.subnet_of(view, overlay) if overlay is not None and signs.confidence >= 0.5 else None
    for bridge in view.of_kind("bridge"):
        if view.holds(bridge, subnet) or docker.of_bridge(view, bridge) or bridge.name in ("weave", "cbr0"):
            found.add(bridge.ifindex)
    if any(path.cni == "kubenet" for path in kubenet.recognise(view)):
        found.update(bridge.ifindex for bridge in view.pod_bridges)
    return found


def _bridge(view: NodeView) -> tuple[Datapath, ...]:
    claimed = _claimed(view)
    bridges = [bridge for bridge in view.pod_bridges if bridge.ifindex not in claimed and view.addresses(bridge)]
    if not bridges:
        return ()
    signs = Signs()
    bridge = bridges[0]
    signs.add(0.2, f"pods are attached to the bridge {bridge.name} ({', '.join(view.addresses(bridge)[:1])})")
    signs.add_if(bridge.name == "cni0", 0.5, "it is called as the bridge plugin calls its bridge")
    _marks(view, "bridge", signs)
    return signs.datapath("bridge", _mode(view, bridge))


def _mode(view: NodeView, bridge: Link) -> str:
    """Whether the pods' own addresses leave the node."""
    pods = [text for port in view.ports(bridge) if (pod := view.pod_of(port)) is not None for text in
            (f"{entry.address}/32" for entry in pod.addresses if entry.family == 4 and entry.scope == "global")]  # fmt: skip
    masqueraded = any(
        view.rule("-A POSTROUTING", f"-s {text} ", "-j CNI-") or view.rule("-A POSTROUTING", f"-s {text} ", "name: ")
        for text in pods
    )
    return "ipmasq" if masqueraded else "routed"


def _detour(view: NodeView, pod: RoutedPod) -> str | None:
    """The plugin's mark in a pod: even its neighbours of the same subnet are reached by the gateway."""
    inner, link = view.pod_of(pod.link), view.peer_in_pod(pod.link)
    if inner is None or link is None:
        return None
    for route in inner.routes:
        for hop in route.nexthops:
            if hop.device == link.ifindex and hop.gateway and route.preferred_source and _near(hop.gateway, route.destination):
                return f"pods reach their own subnet {route.destination} by the gateway {hop.gateway}"
    return None


def _near(address: str, prefix: str) -> bool:
    network = network_of(prefix)
    return network is not None and inside(address, network)


def _ptp(view: NodeView) -> tuple[Datapath, ...]:
    overlay, signs = flannel.overlay_of(view)
    subnet = flannel.subnet_of(view, overlay) if overlay is not None and signs.confidence >= 0.5 else None
    pods = [
        pod
        for pod in view.routed_pods
        if not view.proxies_arp(pod.link)
        and not pod.link.name.startswith("cali")
        and not (subnet and inside(pod.route.destination, subnet))
    ]
    if not pods or any(path.cni == "gke" for path in kubenet.recognise(view)):
        return ()
    signs = Signs()
    signs.add(0.2, f"{len(pods)} pods have a route of their own over a veth")
    # The plugin gives the host's end the pod subnet's gateway as a /32, the same on every veth.
    gateways = [text for text in view.addresses(pods[0].link) if text.endswith("/32")]
    signs.add_if(gateways, 0.4, f"their host ends hold the pods' gateway, {gateways[0] if gateways else ''}")
    scoped = all(pod.route.scope == "host" for pod in pods)
    signs.add_if(scoped, 0.3, "the routes to them have scope host, as the plugin gives them")
    detour = next((line for pod in pods if (line := _detour(view, pod))), None)
    signs.add_if(detour, 0.4, detour or "")
    _marks(view, "ptp", signs)
    rule = view.rule('name: \\"', 'id: \\"')
    return signs.datapath("ptp", "ipmasq" if rule and "-j CNI-" in rule else "routed")
