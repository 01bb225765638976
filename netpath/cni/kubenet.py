"""kubenet (bridge cbr0) and GKE's default (a veth and a host route per pod): nothing between nodes but the cloud's own routes.

Marks: kubenet masquerades what leaves the cluster by a rule whose comment names it (k8s pkg/kubelet/dockershim/network/kubenet);
GKE's nodes run the ptp plugin with an ip-masq-agent, whose rules and chain say so (kubernetes-sigs/ip-masq-agent).
"""

from __future__ import annotations

from netpath.cni.view import Datapath, NodeView, Signs

NAME = "kubenet"
MASQUERADE = "SNAT for outbound traffic from cluster"


def recognise(view: NodeView) -> tuple[Datapath, ...]:
    return (*_kubenet(view), *_gke(view))


def _kubenet(view: NodeView) -> tuple[Datapath, ...]:
    signs = Signs()
    rule = view.rule(MASQUERADE)
    signs.add_if(rule, 0.6, f"rule: {rule}")
    bridge = next((bridge for bridge in view.pod_bridges if bridge.name == "cbr0"), None)
    signs.add_if(bridge, 0.4, "pods are attached to a bridge called cbr0")
    if (not rule and not bridge) or not view.pod_bridges:
        return ()
    hairpin = next((bridge for bridge in view.pod_bridges if "PROMISC" in bridge.flags), None)
    signs.add_if(hairpin, 0.2, f"{hairpin.name if hairpin else ''} is promiscuous, kubenet's way to let a pod reach itself")
    return signs.datapath(NAME, "bridge")


def _gke(view: NodeView) -> tuple[Datapath, ...]:
    signs = Signs()
    rule = view.rule("ip-masq")
    chain = view.chain("IP-MASQ")
    pods = [pod for pod in view.routed_pods if not view.proxies_arp(pod.link)]
    if not pods or not (rule or chain or view.chain("GKE-")):
        return ()
    signs.add(0.3, f"{len(pods)} pods have a route of their own over a veth")
    signs.add_if(chain, 0.5, f"chain {chain}")
    signs.add_if(rule, 0.5, f"rule: {rule}")
    named = next((pod.link.name for pod in pods if pod.link.name.startswith("gke")), None)
    signs.add_if(named, 0.4, f"host veths are called as GKE calls them ({named})")
    signs.add_if("ptp" in view.cni_types, 0.3, f"{view.cni_types.get('ptp')} names the ptp plugin")
    return signs.datapath("gke", "ptp")
