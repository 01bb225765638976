"""What can be varied in a lab. The defaults are those of the components that the lab imitates."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from netpath.errors import UsageError

ECHO_TCP = (7070, 7071)
"""TCP ports of the echo server in every pod."""
ECHO_UDP = (7070, 7071, 7777)
"""UDP ports of the echo server in every pod."""

MAX_NODES = 40
MAX_PODS_PER_NODE = 200


@dataclass(frozen=True, slots=True)
class Options:
    """Options of `up`. Every mode takes all; those that do not concern it are ignored."""

    nodes: int = 2
    pods_per_node: int = 2
    pod_network: str = "10.244.0.0/16"
    """Node N gets the Nth /24 of it."""
    underlay: str = "192.168.50.0/24"
    """Node N has the 10+Nth address. The default gateway is the first one, and nobody answers there."""
    underlay_mtu: int = 1500
    underlay_vlan: int | None = None
    """The nodes' device on the underlay is a VLAN's, over a trunk; None: it is the wire itself."""
    overlay_mtu: int | None = None
    """MTU of the tunnel and the pods; None: what the tunnel leaves of the underlay's."""
    vni: int = 1
    port: int = 8472
    """UDP port of the tunnel."""
    tunnel: str | None = None
    """Name of the tunnel device; None: the component's own (``flannel.1`` for VNI 1)."""
    bridge: str = "cni0"
    uplink: str = "eth0"
    """The nodes' device on the underlay."""
    pod_device: str = "eth0"
    hairpin: bool = True
    masquerade: bool = True
    """Flannel's -ip-masq rules."""
    ipv6: bool = False
    """Addresses and routes for IPv6 too, as Flannel's dual stack makes them."""
    pod_network6: str = "fd00:10:244::/48"
    """Node N gets the Nth /64 of it."""
    underlay6: str = "fd00:192:168:50::/64"
    echo: bool = True
    """Run the echo servers."""
    services: str | None = None
    """kube-proxy's mode: ``iptables-nft``, ``iptables-legacy``, ``nftables`` or ``ipvs``; None: no kube-proxy."""
    policy: bool = False
    """Calico's policy chains; the last pod answers on one port only, and only pods that are the first of their node."""
    userland_proxy: bool = True
    """Docker's --userland-proxy."""

    def check(self) -> None:
        """Raise UsageError for values that no lab can be built from."""
        if not 1 <= self.nodes <= MAX_NODES:
            raise UsageError(f"lab: {self.nodes} nodes; 1 to {MAX_NODES} can be built")
        if not 1 <= self.pods_per_node <= MAX_PODS_PER_NODE:
            raise UsageError(f"lab: {self.pods_per_node} pods on a node; 1 to {MAX_PODS_PER_NODE} can be built")
        for what, text, bits, version in (
            ("pod network", self.pod_network, 24, 4),
            ("underlay", self.underlay, 26, 4),
            ("IPv6 pod network", self.pod_network6, 64, 6),
            ("IPv6 underlay", self.underlay6, 64, 6),
        ):
            try:
                network = ipaddress.ip_network(text)
            except ValueError as error:
                raise UsageError(f"lab: {what} {text!r}: {error}") from error
            if network.version != version or network.prefixlen > bits:
                raise UsageError(f"lab: {what} {text}: an IPv{version} prefix of at most {bits} bits is needed")
        if ipaddress.ip_network(self.pod_network).num_addresses < 256 * (self.nodes + 1):
            raise UsageError(f"lab: pod network {self.pod_network} has no /24 for each of {self.nodes} nodes")
        if not 0 < self.port < 65536 or not 0 <= self.vni < 1 << 24:
            raise UsageError(f"lab: UDP port {self.port} with VNI {self.vni} does not exist")
        if not 1280 <= self.underlay_mtu <= 65535 or (self.overlay_mtu is not None and not 68 <= self.overlay_mtu <= 65535):
            raise UsageError("lab: MTU out of range (underlay 1280-65535, overlay 68-65535)")
        for name in (self.tunnel, self.bridge, self.uplink, self.pod_device):
            if name is not None and (
                not 0 < len(name.encode()) < 16 or "/" in name or name in (".", "..") or any(c.isspace() for c in name)
            ):
                raise UsageError(f"lab: {name!r} is no name of a device")
        if self.underlay_vlan is not None and not 1 <= self.underlay_vlan <= 4094:
            raise UsageError(f"lab: VLAN {self.underlay_vlan} does not exist (1-4094)")
        if self.services not in (None, "iptables-nft", "iptables-legacy", "nftables", "ipvs"):
            raise UsageError(f"lab: services {self.services!r}: iptables-nft, iptables-legacy, nftables or ipvs")

    def pod_subnet(self, number: int) -> ipaddress.IPv4Network:
        """Node `number`'s subnet, counted from 1."""
        network = ipaddress.IPv4Network(self.pod_network)
        return ipaddress.IPv4Network((int(network.network_address) + 256 * number, 24))

    def pod_subnet6(self, number: int) -> ipaddress.IPv6Network:
        network = ipaddress.IPv6Network(self.pod_network6)
        return ipaddress.IPv6Network((int(network.network_address) + (number << 64), 64))

    def node_address(self, number: int) -> ipaddress.IPv4Interface:
        network = ipaddress.IPv4Network(self.underlay)
        return ipaddress.IPv4Interface((int(network.network_address) + 10 + number, network.prefixlen))

    def node_address6(self, number: int) -> ipaddress.IPv6Interface:
        network = ipaddress.IPv6Network(self.underlay6)
        return ipaddress.IPv6Interface((int(network.network_address) + 0x10 + number, network.prefixlen))

    @property
    def gateway(self) -> ipaddress.IPv4Address:
        return ipaddress.IPv4Network(self.underlay)[1]

    @property
    def gateway6(self) -> ipaddress.IPv6Address:
        return ipaddress.IPv6Network(self.underlay6)[1]
