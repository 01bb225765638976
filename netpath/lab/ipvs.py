"""kube-proxy's IPVS mode: a dummy device that holds the services' addresses, ipsets, a few rules on them, and virtual servers.

kube-proxy does not run. Its state is written as it writes it (Kubernetes 1.31, pkg/proxy/ipvs/proxier.go, ipset.go): the rules'
number does not grow with the services, all of which are in sets and in the kernel's load balancer.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Sequence

from netpath.discover import ipvs as family
from netpath.discover.nl import Netlink, attribute
from netpath.errors import MissingError, NetpathError
from netpath.lab import netns
from netpath.lab.kernel import Space
from netpath.lab.services import Service

DEVICE = "kube-ipvs0"
SCHEDULER = "rr"
_MARK = "0x4000"
_AFFINITY_S = 10800
_PROTOCOLS = {"tcp": 6, "udp": 17}

_SETS = (
    ("KUBE-LOOP-BACK", "hash:ip,port,ip"),
    ("KUBE-CLUSTER-IP", "hash:ip,port"),
    ("KUBE-EXTERNAL-IP", "hash:ip,port"),
    ("KUBE-EXTERNAL-IP-LOCAL", "hash:ip,port"),
    ("KUBE-LOAD-BALANCER", "hash:ip,port"),
    ("KUBE-NODE-PORT-TCP", "bitmap:port range 0-65535"),
    ("KUBE-NODE-PORT-UDP", "bitmap:port range 0-65535"),
    ("KUBE-NODE-PORT-LOCAL-TCP", "bitmap:port range 0-65535"),
    ("KUBE-NODE-PORT-LOCAL-UDP", "bitmap:port range 0-65535"),
    ("KUBE-IPVS-IPS", "hash:ip"),
)


def sets(services: Sequence[Service], *, node: str) -> str:
    """The ipsets of `node`, for ipset restore."""
    lines = [f"create {name} {kind}" for name, kind in _SETS]

    def add(name: str, entry: str) -> None:
        if f"add {name} {entry}" not in lines:
            lines.append(f"add {name} {entry}")

    for service in services:
        protocol = service.protocol
        add("KUBE-CLUSTER-IP", f"{service.cluster_ip},{protocol}:{service.port}")
        add("KUBE-IPVS-IPS", service.cluster_ip)
        if service.external_ip is not None:
            add("KUBE-EXTERNAL-IP", f"{service.external_ip},{protocol}:{service.port}")
            add("KUBE-IPVS-IPS", service.external_ip)
        if service.node_port is not None:
            add(f"KUBE-NODE-PORT-{protocol.upper()}", str(service.node_port))
            if service.local:
                add(f"KUBE-NODE-PORT-LOCAL-{protocol.upper()}", str(service.node_port))
        for endpoint in service.endpoints:
            if endpoint.node == node:
                add("KUBE-LOOP-BACK", f"{endpoint.address},{protocol}:{endpoint.port},{endpoint.address}")
    return "\n".join(lines) + "\n"


def rules(*, pod_network: str) -> str:
    """The iptables rules, for iptables-restore."""

    def note(text: str) -> str:
        return f'-m comment --comment "{text}"'

    def member(name: str, *flags: str) -> str:
        return f"-m set --match-set {name} {','.join(flags or ('dst', 'dst'))}"

    lines = [
        "*nat",
        *(
            f":{name} - [0:0]"
            for name in ("KUBE-LOAD-BALANCER", "KUBE-MARK-MASQ", "KUBE-NODE-PORT", "KUBE-POSTROUTING", "KUBE-SERVICES")
        ),
        f"-A PREROUTING {note('kubernetes service portals')} -j KUBE-SERVICES",
        f"-A OUTPUT {note('kubernetes service portals')} -j KUBE-SERVICES",
        f"-A POSTROUTING {note('kubernetes postrouting rules')} -j KUBE-POSTROUTING",
        "-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ",
        f"-A KUBE-MARK-MASQ -j MARK --set-xmark {_MARK}/{_MARK}",
    ]
    for protocol in ("tcp", "udp"):
        upper = protocol.upper()
        local = note(f"Kubernetes nodeport {upper} port with externalTrafficPolicy=local")
        lines.append(f"-A KUBE-NODE-PORT -p {protocol} {local} {member(f'KUBE-NODE-PORT-LOCAL-{upper}', 'dst')} -j RETURN")
        masked = note(f"Kubernetes nodeport {upper} port for masquerade purpose")
        lines.append(f"-A KUBE-NODE-PORT -p {protocol} {masked} {member(f'KUBE-NODE-PORT-{upper}', 'dst')} -j KUBE-MARK-MASQ")
    hairpin = note("Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose")
    cluster = note("Kubernetes service cluster ip + port for masquerade purpose")
    external = note("Kubernetes service external ip + port for masquerade and filter purpose")
    lines += [
        f"-A KUBE-POSTROUTING {hairpin} {member('KUBE-LOOP-BACK', 'dst', 'dst', 'src')} -j MASQUERADE",
        f"-A KUBE-POSTROUTING -m mark ! --mark {_MARK}/{_MARK} -j RETURN",
        f"-A KUBE-POSTROUTING -j MARK --set-xmark {_MARK}/0x0",
        f"-A KUBE-POSTROUTING {note('kubernetes service traffic requiring SNAT')} -j MASQUERADE --random-fully",
        "-A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN",
        f"-A KUBE-SERVICES ! -s {pod_network} {cluster} {member('KUBE-CLUSTER-IP')} -j KUBE-MARK-MASQ",
        f"-A KUBE-SERVICES {external} {member('KUBE-EXTERNAL-IP')} -j KUBE-MARK-MASQ",
        f"-A KUBE-SERVICES {external} {member('KUBE-EXTERNAL-IP')} -m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT",
        f"-A KUBE-SERVICES {external} {member('KUBE-EXTERNAL-IP')} -m addrtype --dst-type LOCAL -j ACCEPT",
        "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT",
        f"-A KUBE-SERVICES {member('KUBE-CLUSTER-IP')} -j ACCEPT",
        "COMMIT",
        "*filter",
        *(f":{name} - [0:0]" for name in ("KUBE-FORWARD", "KUBE-IPVS-FILTER")),
        f"-A INPUT {note('kubernetes ipvs access filter')} -j KUBE-IPVS-FILTER",
        f"-A FORWARD {note('kubernetes forwarding rules')} -j KUBE-FORWARD",
        f"-A KUBE-FORWARD {note('kubernetes forwarding rules')} -m mark --mark {_MARK}/{_MARK} -j ACCEPT",
        f"-A KUBE-FORWARD {note('kubernetes forwarding conntrack rule')} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        *(f"-A KUBE-IPVS-FILTER {member(name)} -j RETURN" for name in ("KUBE-LOAD-BALANCER", "KUBE-CLUSTER-IP", "KUBE-EXTERNAL-IP")),
        "-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT --reject-with icmp-port-unreachable",
        "COMMIT",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def make(space: Space, services: Sequence[Service], *, node: str, node_address: str, pod_network: str) -> None:
    """Write everything into a node. Raises MissingError where the kernel has no IPVS."""
    # The kernel's load balancer is loaded by whoever sets it up; kube-proxy does so too.
    space.load("ip_vs")
    netns.enter(space.descriptor)
    if not family.available():
        raise MissingError("lab: this kernel has no IPVS (modprobe ip_vs may help)")
    space.link(DEVICE, "dummy")
    held = dict.fromkeys(each for service in services for each in (service.cluster_ip, service.external_ip) if each is not None)
    for address in held:
        space.address(DEVICE, ipaddress.IPv4Interface((address, 32)))
    for name, value in (("conntrack", 1), ("conn_reuse_mode", 0), ("expire_nodest_conn", 1), ("expire_quiescent_template", 1)):
        space.sysctl(f"net.ipv4.vs.{name}", value, optional=True)
    space.run("ipset", "restore", stdin=sets(services, node=node))
    space.run("iptables-nft-restore", "--noflush", stdin=rules(pod_network=pod_network))
    netns.enter(space.descriptor)
    try:
        with Netlink(family.NETLINK_GENERIC) as netlink:
            kind = family.family(netlink)
            for service in services:
                for address, port in addresses(service, node_address):
                    _virtual_server(netlink, kind, service, address, port, node=node)
    except OSError as error:
        raise NetpathError(f"lab: {space.name}: IPVS: {error.strerror or error}") from error


def addresses(service: Service, node_address: str) -> list[tuple[str, int]]:
    """Where a service is asked for on a node."""
    found = [(service.cluster_ip, service.port)]
    if service.external_ip is not None:
        found.append((service.external_ip, service.port))
    if service.node_port is not None:
        found.append((node_address, service.node_port))
    return found


def _virtual_server(netlink: Netlink, kind: int, service: Service, address: str, port: int, *, node: str) -> None:
    flags = family.PERSISTENT if service.affinity else 0
    identity = b"".join(
        (
            attribute(family.AF, struct.pack("=H", socket.AF_INET)),
            attribute(family.PROTOCOL, struct.pack("=H", _PROTOCOLS[service.protocol])),
            attribute(family.ADDRESS, socket.inet_aton(address).ljust(16, b"\0")),
            attribute(family.PORT, struct.pack("!H", port)),
        )
    )
    settings = b"".join(
        (
            attribute(family.SCHEDULER, SCHEDULER.encode() + b"\0"),
            attribute(family.FLAGS, struct.pack("=II", flags, 0xFFFFFFFF)),
            attribute(family.TIMEOUT, struct.pack("=I", _AFFINITY_S if flags else 0)),
            attribute(family.NETMASK, socket.inet_aton("255.255.255.255")),
        )
    )
    _tell(netlink, kind, family.NEW_SERVICE, family.nested(family.SERVICE, identity + settings))
    for endpoint in service.endpoints:
        # externalTrafficPolicy: Local is for what comes from outside: only the node's own.
        if (service.local and address == service.cluster_ip) or not service.local or endpoint.node == node:
            backend = b"".join(
                (
                    attribute(family.DEST_ADDRESS, socket.inet_aton(endpoint.address).ljust(16, b"\0")),
                    attribute(family.DEST_PORT, struct.pack("!H", endpoint.port)),
                    attribute(family.DEST_METHOD, struct.pack("=I", 0)),
                    attribute(family.DEST_WEIGHT, struct.pack("=I", 1)),
                    attribute(family.DEST_UPPER, struct.pack("=I", 0)),
                    attribute(family.DEST_LOWER, struct.pack("=I", 0)),
                    attribute(family.DEST_FAMILY, struct.pack("=H", socket.AF_INET)),
                )
            )
            payload = family.nested(family.SERVICE, identity) + family.nested(family.DEST, backend)
            _tell(netlink, kind, family.NEW_DEST, payload)


def _tell(netlink: Netlink, kind: int, command: int, payload: bytes) -> None:
    (answer,) = netlink.ask(kind, [family.request(command, payload)])
    if isinstance(answer, int) and answer:
        raise OSError(answer, os.strerror(answer))
