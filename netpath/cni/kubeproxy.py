"""kube-proxy: services by iptables (either backend), by nftables or by IPVS (k8s pkg/proxy/{iptables,nftables,ipvs})."""

from __future__ import annotations

from netpath.cni.view import Datapath, NodeView, Signs

NAME = "kube-proxy"


def recognise(view: NodeView) -> tuple[Datapath, ...]:
    return (*_ipvs(view), *_nftables(view), *_iptables(view))


def _process(view: NodeView, signs: Signs) -> None:
    signs.add_if("kube-proxy" in view.processes, 0.4, "kube-proxy holds sockets")


def _ipvs(view: NodeView) -> tuple[Datapath, ...]:
    signs = Signs()
    device = next((link for link in view.of_kind("dummy") if link.name == "kube-ipvs0"), None)
    signs.add_if(device, 0.8, "a dummy device is called kube-ipvs0")
    addresses = view.addresses(device) if device is not None else ()
    signs.add_if(addresses, 0.3, f"it holds {len(addresses)} service addresses")
    ipset = (view.node.netfilter.ipset if view.node.netfilter is not None else None) or ""
    signs.add_if("create KUBE-CLUSTER-IP " in ipset, 0.6, "ipset KUBE-CLUSTER-IP")
    if signs.lines:
        _process(view, signs)
    return signs.datapath(NAME, "ipvs")


def _nftables(view: NodeView) -> tuple[Datapath, ...]:
    signs = Signs()
    for table in ("ip kube-proxy", "ip6 kube-proxy"):
        signs.add_if(table in view.chains, 0.7, f"nft table {table}")
    text = (view.node.netfilter.nft if view.node.netfilter is not None else None) or ""
    signs.add_if('"name": "service-ips"' in text, 0.5, "nft map service-ips")
    if signs.lines:
        _process(view, signs)
    return signs.datapath(NAME, "nftables")


def _iptables(view: NodeView) -> tuple[Datapath, ...]:
    signs = Signs()
    if view.chain("KUBE-CLUSTER-IP") or _ipvs(view):
        return ()
    services = [name for name in view.chains if name.startswith(("KUBE-SVC-", "KUBE-SEP-"))]
    portals = view.rule("kubernetes service portals")
    signs.add_if("KUBE-SERVICES" in view.chains, 0.7, "chain KUBE-SERVICES")
    signs.add_if(services, 0.5, f"{len(services)} chains of services and endpoints")
    signs.add_if(portals, 0.6, f"rule: {portals}")
    if not signs.lines:
        return ()
    signs.add_if(
        view.rule("kubernetes service traffic requiring SNAT"), 0.4, "a rule masquerades the traffic that kube-proxy marked"
    )
    _process(view, signs)
    netfilter = view.node.netfilter
    backends = (
        {table.backend for table in netfilter.xtables if "KUBE-SERVICES" in table.text or "kubernetes service" in table.text}
        if netfilter
        else set()
    )
    for backend in sorted(backends):
        signs.add(0.0, f"the rules are in the {backend} backend")
    return signs.datapath(NAME, "iptables")
