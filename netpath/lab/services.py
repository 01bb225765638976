"""kube-proxy's rules for a fixed set of services: an addition to the Flannel and bridge labs.

kube-proxy itself does not run: nobody packages it. Its rules are written as it writes them: iptables mode as of Kubernetes 1.20
(pkg/proxy/iptables/proxier.go), nftables mode as of 1.31 to 1.35 (pkg/proxy/nftables/proxier.go), the hashed names included; IPVS
mode is in `netpath.lab.ipvs`.
The text is made here by pure functions; `make` loads it into the nodes, and adds what kube-proxy and the administrator set.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from netpath.lab.build import Build
from netpath.lab.options import Options
from netpath.lab.state import Pod, State

_MARK = "0x4000"
_AFFINITY_S = 10800


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod behind a service."""

    pod: str
    node: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Service:
    """One port of a Kubernetes service in namespace default."""

    name: str
    port_name: str
    protocol: str
    """``tcp`` or ``udp``."""
    cluster_ip: str
    port: int
    endpoints: tuple[Endpoint, ...]
    node_port: int | None = None
    external_ip: str | None = None
    affinity: bool = False
    """sessionAffinity: ClientIP, for three hours."""
    local: bool = False
    """externalTrafficPolicy: Local."""

    def __str__(self) -> str:
        return f"default/{self.name}:{self.port_name}"

    @property
    def path(self) -> str:
        return f"default/{self.name}/{self.protocol}/{self.port_name}"


def plan(state: State, options: Options) -> tuple[Service, ...]:
    """The lab's services: one endpoint on each of the first two nodes, but for ``noep``, which has none."""

    def endpoints(port: int) -> tuple[Endpoint, ...]:
        chosen: list[Pod] = []
        # The second pod of the first node, so that the first one is a client that is no endpoint; the first pod of the second.
        for node, position in (("node1", 1), ("node2", 0)):
            on_node = [pod for pod in state.pods if pod.node == node]
            chosen += on_node[: position + 1][-1:]
        return tuple(Endpoint(pod.name, pod.node, pod.addresses[0], port) for pod in chosen)

    underlay = ipaddress.IPv4Network(options.underlay)
    external = str(underlay[99]) if underlay.num_addresses > 100 else None
    return (
        Service("web", "http", "tcp", "10.96.7.7", 80, endpoints(7070), node_port=30080),
        Service("echo", "udp", "udp", "10.96.7.8", 5353, endpoints(7071), node_port=30053),
        Service("sticky", "udp", "udp", "10.96.7.9", 5354, endpoints(7071), affinity=True),
        Service("noep", "udp", "udp", "10.96.7.10", 5355, ()),
        Service("local", "udp", "udp", "10.96.7.11", 5356, endpoints(7071), node_port=30056, local=True),
        Service("ext", "udp", "udp", "10.96.7.12", 5357, endpoints(7071), external_ip=external),
    )


def _hash(text: str, length: int) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:length]


def _chain(kind: str, service: Service, endpoint: Endpoint | None = None) -> str:
    """An iptables chain's name: the hash keeps it within 28 characters."""
    return f"KUBE-{kind}-{_hash(f'{service}{service.protocol}{endpoint or str()}', 16)}"


def _comment(text: str) -> str:
    return f'-m comment --comment "{text}"'


class _Table:
    """An iptables table being written."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.chains: list[str] = []
        self.rules: list[str] = []

    def chain(self, name: str) -> str:
        if name not in self.chains:
            self.chains.append(name)
        return name

    def rule(self, chain: str, *words: str) -> None:
        self.rules.append(" ".join(("-A", chain, *(word for word in words if word))))

    def text(self) -> list[str]:
        return [f"*{self.name}", *(f":{chain} - [0:0]" for chain in self.chains), *self.rules, "COMMIT"]


def iptables_rules(services: Sequence[Service], *, pod_network: str, node: str) -> str:
    """What kube-proxy's iptables mode leaves on `node`, for iptables-restore."""
    mangle, filter_, nat = _Table("mangle"), _Table("filter"), _Table("nat")
    for table in (mangle, filter_, nat):
        # kube-proxy watches this empty chain: if it is gone, somebody flushed the rules.
        table.chain("KUBE-PROXY-CANARY")
    new = "-m conntrack --ctstate NEW"
    for name in ("KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-SERVICES"):
        filter_.chain(name)
    filter_.rule("INPUT", new, _comment("kubernetes externally-visible service portals"), "-j KUBE-EXTERNAL-SERVICES")
    filter_.rule("FORWARD", _comment("kubernetes forwarding rules"), "-j KUBE-FORWARD")
    filter_.rule("FORWARD", new, _comment("kubernetes service portals"), "-j KUBE-SERVICES")
    filter_.rule("FORWARD", new, _comment("kubernetes externally-visible service portals"), "-j KUBE-EXTERNAL-SERVICES")
    filter_.rule("OUTPUT", new, _comment("kubernetes service portals"), "-j KUBE-SERVICES")
    known = "-m conntrack --ctstate RELATED,ESTABLISHED"
    filter_.rule("KUBE-FORWARD", "-m conntrack --ctstate INVALID -j DROP")
    filter_.rule("KUBE-FORWARD", _comment("kubernetes forwarding rules"), f"-m mark --mark {_MARK}/{_MARK} -j ACCEPT")
    for side in ("source", "destination"):
        filter_.rule("KUBE-FORWARD", _comment(f"kubernetes forwarding conntrack pod {side} rule"), known, "-j ACCEPT")

    for name in ("KUBE-MARK-DROP", "KUBE-MARK-MASQ", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-SERVICES"):
        nat.chain(name)
    nat.rule("PREROUTING", _comment("kubernetes service portals"), "-j KUBE-SERVICES")
    nat.rule("OUTPUT", _comment("kubernetes service portals"), "-j KUBE-SERVICES")
    nat.rule("POSTROUTING", _comment("kubernetes postrouting rules"), "-j KUBE-POSTROUTING")
    nat.rule("KUBE-MARK-MASQ", f"-j MARK --set-xmark {_MARK}/{_MARK}")
    nat.rule("KUBE-POSTROUTING", f"-m mark ! --mark {_MARK}/{_MARK} -j RETURN")
    nat.rule("KUBE-POSTROUTING", f"-j MARK --set-xmark {_MARK}/0x0")
    nat.rule("KUBE-POSTROUTING", _comment("kubernetes service traffic requiring SNAT"), "-j MASQUERADE --random-fully")
    for service in services:
        _iptables_service(filter_, nat, service, pod_network=pod_network, node=node)
    nat.rule(
        "KUBE-SERVICES",
        _comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain"),
        "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
    )
    return "\n".join((*mangle.text(), *filter_.text(), *nat.text())) + "\n"


def _iptables_service(filter_: _Table, nat: _Table, service: Service, *, pod_network: str, node: str) -> None:
    protocol = service.protocol
    cluster = f"-d {service.cluster_ip}/32 -p {protocol}"
    port = f"-m {protocol} --dport {service.port}"
    if not service.endpoints:
        refuse = "-j REJECT --reject-with icmp-port-unreachable"
        filter_.rule("KUBE-SERVICES", cluster, _comment(f"{service} has no endpoints"), port, refuse)
        return
    main = nat.chain(_chain("SVC", service))
    named = f"{cluster} {_comment(f'{service} cluster IP')} {port}"
    nat.rule("KUBE-SERVICES", f"! -s {pod_network}", named, "-j KUBE-MARK-MASQ")
    nat.rule("KUBE-SERVICES", named, f"-j {main}")
    if service.external_ip is not None:
        named = f"-d {service.external_ip}/32 -p {protocol} {_comment(f'{service} external IP')} {port}"
        nat.rule("KUBE-SERVICES", named, "-j KUBE-MARK-MASQ")
        # Not for pods on a bridge of this node, which may have reasons of their own to send there.
        nat.rule("KUBE-SERVICES", named, "-m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL", f"-j {main}")
        nat.rule("KUBE-SERVICES", named, "-m addrtype --dst-type LOCAL", f"-j {main}")
    outside = nat.chain(_chain("XLB", service)) if service.local else None
    if service.node_port is not None:
        named = f"-p {protocol} {_comment(str(service))} -m {protocol} --dport {service.node_port}"
        nat.rule("KUBE-NODEPORTS", "-s 127.0.0.0/8" if outside else "", named, "-j KUBE-MARK-MASQ")
        nat.rule("KUBE-NODEPORTS", named, f"-j {outside or main}")
    comment = _comment(str(service))
    chains = {endpoint: nat.chain(_chain("SEP", service, endpoint)) for endpoint in service.endpoints}
    if service.affinity:
        for chain in chains.values():
            recent = f"-m recent --rcheck --seconds {_AFFINITY_S} --reap --name {chain} --mask 255.255.255.255 --rsource"
            nat.rule(main, comment, recent, f"-j {chain}")
    _iptables_balance(nat, main, comment, list(chains.values()))
    for endpoint, chain in chains.items():
        nat.rule(chain, f"-s {endpoint.address}/32", comment, "-j KUBE-MARK-MASQ")
        recent = f"-m recent --set --name {chain} --mask 255.255.255.255 --rsource" if service.affinity else ""
        nat.rule(chain, f"-p {protocol}", comment, recent, f"-m {protocol} -j DNAT --to-destination {endpoint}")
    if outside is not None:
        redirect = _comment("Redirect pods trying to reach external loadbalancer VIP to clusterIP")
        nat.rule(outside, f"-s {pod_network}", redirect, f"-j {main}")
        local = "-m addrtype --src-type LOCAL"
        nat.rule(outside, _comment(f"masquerade LOCAL traffic for {service} LB IP"), local, "-j KUBE-MARK-MASQ")
        nat.rule(outside, _comment(f"route LOCAL traffic for {service} LB IP to service chain"), local, f"-j {main}")
        here = [chain for endpoint, chain in chains.items() if endpoint.node == node]
        if here:
            for number, chain in enumerate(here):
                left = len(here) - number
                share = f"-m statistic --mode random --probability {1 / left:.11f}" if left > 1 else ""
                nat.rule(outside, _comment(f"Balancing rule {number} for {service}"), share, f"-j {chain}")
        else:
            nat.rule(outside, _comment(f"{service} has no local endpoints"), "-j KUBE-MARK-DROP")


def _iptables_balance(nat: _Table, chain: str, comment: str, targets: Sequence[str]) -> None:
    for number, target in enumerate(targets):
        left = len(targets) - number
        share = f"-m statistic --mode random --probability {1 / left:.11f}" if left > 1 else ""
        nat.rule(chain, comment, share, f"-j {target}")


_NFT_BASE = (
    ("filter-prerouting-pre-dnat", "filter", "prerouting", -110, ("ct state new jump firewall-check",)),
    ("filter-output-pre-dnat", "filter", "output", -110, ("ct state new jump firewall-check",)),
    (
        "filter-input",
        "filter",
        "input",
        0,
        ("ct state new jump nodeport-endpoints-check", "ct state new jump service-endpoints-check"),
    ),
    (
        "filter-forward",
        "filter",
        "forward",
        0,
        ("ct state new jump service-endpoints-check", "ct state new jump cluster-ips-check"),
    ),
    ("filter-output", "filter", "output", 0, ("ct state new jump service-endpoints-check", "ct state new jump cluster-ips-check")),
    ("nat-prerouting", "nat", "prerouting", -100, ("jump services",)),
    ("nat-output", "nat", "output", -100, ("jump services",)),
    ("nat-postrouting", "nat", "postrouting", 100, ("jump masquerading",)),
)
_NFT_MAPS = (
    ("firewall-ips", "ipv4_addr . inet_proto . inet_service", "destinations that are subject to LoadBalancerSourceRanges"),
    ("no-endpoint-nodeports", "inet_proto . inet_service", "vmap to drop or reject packets to service nodeports with no endpoints"),
    (
        "no-endpoint-services",
        "ipv4_addr . inet_proto . inet_service",
        "vmap to drop or reject packets to services with no endpoints",
    ),
    ("service-ips", "ipv4_addr . inet_proto . inet_service", "ClusterIP, ExternalIP and LoadBalancer IP traffic"),
    ("service-nodeports", "inet_proto . inet_service", "NodePort traffic"),
)
_NFT_CHAINS = (
    (
        "cluster-ips-check",
        ('ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"',),
    ),
    ("firewall-check", ("ip daddr . meta l4proto . th dport vmap @firewall-ips",)),
    ("mark-for-masquerade", (f"mark set mark or {_MARK}",)),
    (
        "masquerading",
        (f"mark and {_MARK} == 0 return", f"mark set mark xor {_MARK}", "masquerade fully-random"),
    ),
    ("nodeport-endpoints-check", ("ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports",)),
    ("reject-chain", ("reject",)),
    ("service-endpoints-check", ("ip daddr . meta l4proto . th dport vmap @no-endpoint-services",)),
    (
        "services",
        (
            "ip daddr . meta l4proto . th dport vmap @service-ips",
            "ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports",
        ),
    ),
)


def _named(kind: str, path: str) -> str:
    """A chain's or set's name in nftables mode: a hash to tell long names apart, and the whole name for people."""
    return f"{kind}-{_hash(path, 8)}-{path}"


def nftables_rules(services: Sequence[Service], *, pod_network: str, node: str, node_address: str) -> str:
    """What kube-proxy's nftables mode leaves on `node`, for nft -f."""
    table = "ip kube-proxy"
    declare = [f'add table {table} {{ comment "rules for kube-proxy" ; }}']
    declare.append(f'add set {table} cluster-ips {{ type ipv4_addr ; comment "Active ClusterIPs" ; }}')
    declare.append(f'add set {table} nodeport-ips {{ type ipv4_addr ; comment "IPs that accept NodePort traffic" ; }}')
    for name, key, comment in _NFT_MAPS:
        declare.append(f'add map {table} {name} {{ type {key} : verdict ; comment "{comment}" ; }}')
    for name, kind, hook, priority, _rules in _NFT_BASE:
        declare.append(f"add chain {table} {name} {{ type {kind} hook {hook} priority {priority} ; }}")
    for name, _texts in _NFT_CHAINS:
        note = ' { comment "helper for @no-endpoint-services / @no-endpoint-nodeports" ; }' if name == "reject-chain" else ""
        declare.append(f"add chain {table} {name}{note}")
    rules = [f"add rule {table} {name} {text}" for name, *_rest, texts in _NFT_BASE for text in texts]
    rules += [f"add rule {table} {name} {text}" for name, texts in _NFT_CHAINS for text in texts]
    elements = [f"add element {table} nodeport-ips {{ {node_address} }}"]
    for service in services:
        elements.append(f"add element {table} cluster-ips {{ {service.cluster_ip} }}")
        _nft_service(table, service, declare, rules, elements, pod_network=pod_network, node=node)
    return "\n".join((*declare, *rules, *elements)) + "\n"


def _nft_service(
    table: str,
    service: Service,
    declare: list[str],
    rules: list[str],
    elements: list[str],
    *,
    pod_network: str,
    node: str,
) -> None:
    def rule(chain: str, text: str) -> None:
        rules.append(f"add rule {table} {chain} {text}")

    def chain(kind: str) -> str:
        name = _named(kind, service.path)
        declare.append(f"add chain {table} {name}")
        return name

    protocol, note = service.protocol, f'comment "{service}"'
    cluster_key = f"{service.cluster_ip} . {protocol} . {service.port}"
    if not service.endpoints:
        elements.append(f"add element {table} no-endpoint-services {{ {cluster_key} {note} : goto reject-chain }}")
        return
    targets = {}
    for endpoint in service.endpoints:
        path = f"{service.path}__{endpoint.address}/{endpoint.port}"
        name = targets[endpoint] = _named("endpoint", path)
        declare.append(f"add chain {table} {name}")
        rule(name, f"ip saddr {endpoint.address} jump mark-for-masquerade")
        if service.affinity:
            affinity = _named("affinity", path)
            declare.append(
                f"add set {table} {affinity} {{ type ipv4_addr ; flags dynamic,timeout ; timeout {_AFFINITY_S}s ; }}",
            )
            rule(name, f"update @{affinity} {{ ip saddr }}")
        rule(name, f"meta l4proto {protocol} dnat to {endpoint}")

    def balance(name: str, chosen: list[Endpoint]) -> None:
        if service.affinity:
            for endpoint in chosen:
                affinity = _named("affinity", f"{service.path}__{endpoint.address}/{endpoint.port}")
                rule(name, f"ip saddr @{affinity} goto {targets[endpoint]}")
        choices = " , ".join(f"{number} : goto {targets[endpoint]}" for number, endpoint in enumerate(chosen))
        rule(name, f"numgen random mod {len(chosen)} vmap {{ {choices} }}")

    main = chain("service")
    rule(main, f"ip daddr {service.cluster_ip} {protocol} dport {service.port} ip saddr != {pod_network} jump mark-for-masquerade")
    balance(main, list(service.endpoints))
    elements.append(f"add element {table} service-ips {{ {cluster_key} : goto {main} }}")
    if service.node_port is None and service.external_ip is None:
        return
    here = [endpoint for endpoint in service.endpoints if endpoint.node == node]
    outside = chain("external")
    if service.local:
        rule(outside, f'ip saddr {pod_network} goto {main} comment "short-circuit pod traffic"')
        rule(outside, 'fib saddr type local jump mark-for-masquerade comment "masquerade local traffic"')
        rule(outside, f'fib saddr type local goto {main} comment "short-circuit local traffic"')
        if here:
            local = chain("local")
            balance(local, here)
            rule(outside, f"goto {local}")
    else:
        rule(outside, "jump mark-for-masquerade")
        rule(outside, f"goto {main}")
    nowhere = service.local and not here
    if service.node_port is not None:
        elements.append(f"add element {table} service-nodeports {{ {protocol} . {service.node_port} : goto {outside} }}")
        if nowhere:
            elements.append(f"add element {table} no-endpoint-nodeports {{ {protocol} . {service.node_port} {note} : drop }}")
    if service.external_ip is not None:
        key = f"{service.external_ip} . {protocol} . {service.port}"
        elements.append(f"add element {table} service-ips {{ {key} : goto {outside} }}")
        if nowhere:
            elements.append(f"add element {table} no-endpoint-services {{ {key} {note} : drop }}")


def make(build: Build) -> None:
    """Load the rules that `Options.services` asks for into every node."""
    options = build.options
    if options.services is None:
        return
    services = plan(build.state, options)
    build.store.update(services=tuple(asdict(service) for service in services))
    for number, node in enumerate(build.state.nodes, start=1):
        space = build.space(node.name)
        space.sysctl("net.bridge.bridge-nf-call-iptables", 1, optional=True)
        if options.services == "ipvs":
            # Here, as that file needs this one's services.
            from netpath.lab import ipvs

            ipvs.make(space, services, node=node.name, node_address=node.addresses[0], pod_network=options.pod_network)
            # Its own rules bring the external addresses to every node.
            continue
        if options.services == "nftables":
            rules = nftables_rules(services, pod_network=options.pod_network, node=node.name, node_address=node.addresses[0])
            space.run("nft", "-f", "-", stdin=rules)
        else:
            # So that a node reaches its own NodePorts by 127.0.0.1; nftables mode gave that up.
            space.sysctl("net.ipv4.conf.all.route_localnet", 1)
            rules = iptables_rules(services, pod_network=options.pod_network, node=node.name)
            space.run(f"{options.services}-restore", "--noflush", stdin=rules)
        if number == 1:
            # An external address is the administrator's to bring to a node.
            for service in services:
                if service.external_ip is not None:
                    space.address(options.uplink, ipaddress.IPv4Interface((service.external_ip, 32)))
