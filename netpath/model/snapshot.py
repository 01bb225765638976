"""A node's network state, frozen: what discovery produces and prediction walks.

A snapshot is a file: everything in here is made of strings, integers, booleans, tuples and dictionaries, so that it
round-trips through JSON. Addresses and prefixes are strings in the kernel's own notation (``10.244.0.0/16``);
interfaces are (network namespace inode, ifindex), never names. Names are kept for people.

``None`` means "not known" throughout (not readable, or not in a recording), never "none there": an empty tuple says that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SCHEMA = 1
"""Version of the snapshot document. Later versions of netpath read every earlier one."""


@dataclass(frozen=True, slots=True, order=True)
class DeviceId:
    """An interface: the inode of its network namespace and its index there."""

    netns: int
    ifindex: int


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A VXLAN device's attributes (IFLA_VXLAN_*, linux/if_link.h)."""

    vni: int
    port: int
    local: str | None = None
    remote: str | None = None
    """Default destination (a unicast VTEP or a multicast group) of frames that no FDB entry covers."""
    link: int | None = None
    """ifindex, in the namespace the device was made in, that outer packets are bound to."""
    learning: bool = True
    ttl: int = 0
    """0: the outer packet gets the route's default TTL, 64."""
    tos: int = 0
    df: str = "unset"
    """``unset``, ``set`` or ``inherit``."""
    udp_csum: bool = True
    external: bool = False
    """Metadata mode (collect_md): the destination comes from a route or a program, not from the FDB."""
    vni_filter: bool = False
    proxy: bool = False
    l2miss: bool = False
    l3miss: bool = False
    rsc: bool = False


@dataclass(frozen=True, slots=True)
class IpTunnel:
    """An ipip, sit or gre device's end points."""

    local: str | None = None
    remote: str | None = None
    ttl: int = 0
    link: int | None = None
    external: bool = False
    pmtudisc: bool = True


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge's attributes (IFLA_BR_*)."""

    vlan_filtering: bool = False
    vlan_protocol: str = "802.1Q"
    default_pvid: int = 1
    stp: bool = False
    nf_call_iptables: bool = False
    nf_call_ip6tables: bool = False
    mcast_snooping: bool = True
    group_fwd_mask: int = 0


@dataclass(frozen=True, slots=True)
class BridgePort:
    """A bridge port's attributes (IFLA_BRPORT_*)."""

    state: str = "forwarding"
    """``disabled``, ``listening``, ``learning``, ``forwarding`` or ``blocking``."""
    hairpin: bool = False
    learning: bool = True
    flood: bool = True
    mcast_flood: bool = True
    bcast_flood: bool = True
    isolated: bool = False
    neigh_suppress: bool = False
    proxy_arp: bool = False
    backup_device: int | None = None
    locked: bool = False


@dataclass(frozen=True, slots=True)
class BridgeVlan:
    """One VLAN that a bridge port (or the bridge itself) is a member of."""

    vid: int
    pvid: bool = False
    untagged: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A BPF program or tc action attached to a device, which may redirect, rewrite or drop what passes."""

    hook: str
    """``xdp``, ``tc ingress``, ``tc egress``, ``tcx ingress``, ``tcx egress`` or ``netkit``."""
    id: int | None
    name: str


@dataclass(frozen=True, slots=True)
class Link:
    """A network device."""

    ifindex: int
    name: str
    kind: str
    """IFLA_INFO_KIND; ``loopback`` for lo and ``physical`` for a device without a kind."""
    mac: str | None
    mtu: int
    flags: tuple[str, ...] = ()
    """IFF_* without the prefix, sorted: UP, LOWER_UP, LOOPBACK, NOARP, ..."""
    operstate: str = "UNKNOWN"
    link_type: str = "ether"
    """ARPHRD as iproute2 names it: ``ether``, ``none`` (TUN), ``loopback``, ``ipip`` ..."""
    master: int | None = None
    lower: int | None = None
    """IFLA_LINK: a veth's peer or a VLAN's parent, as an ifindex of the namespace that `lower_nsid` names."""
    lower_nsid: int | None = None
    """IFLA_LINK_NETNSID as the owning namespace sees it; None: the same namespace."""
    peer: DeviceId | None = None
    """`lower` resolved to the namespace it lives in; None when it has none or that namespace is not visible."""
    qdisc: str = "noqueue"
    gso_max_size: int | None = None
    gso_max_segs: int | None = None
    tx_checksum_offload: bool | None = None
    vlan_id: int | None = None
    vlan_protocol: str | None = None
    vxlan: Vxlan | None = None
    tunnel: IpTunnel | None = None
    bridge: Bridge | None = None
    port: BridgePort | None = None
    mode: str | None = None
    """The mode of a macvlan, ipvlan or bond, or ``tun`` / ``tap``."""
    vrf_table: int | None = None
    vlans: tuple[BridgeVlan, ...] = ()
    programs: tuple[Program, ...] = ()

    @property
    def up(self) -> bool:
        """Administratively up: IFF_UP."""
        return "UP" in self.flags

    @property
    def carrier(self) -> bool:
        """IFF_LOWER_UP; a device without it drops what is sent."""
        return "LOWER_UP" in self.flags


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a device."""

    device: int
    family: int
    """4 or 6."""
    address: str
    prefixlen: int
    scope: str = "global"
    peer: str | None = None
    broadcast: str | None = None
    flags: tuple[str, ...] = ()
    """IFA_F_* in lower case without the prefix: secondary, tentative, deprecated, dadfailed, ..."""


@dataclass(frozen=True, slots=True)
class NextHop:
    """One next hop of a route."""

    device: int | None = None
    gateway: str | None = None
    """May be of the other family (RFC 5549, RTA_VIA)."""
    weight: int = 1
    flags: tuple[str, ...] = ()
    """RTNH_F_*: onlink, dead, linkdown, pervasive, ..."""
    encap: str | None = None
    """The kind of a lightweight tunnel (mpls, seg6, bpf, ip), which netpath does not evaluate."""

    @property
    def onlink(self) -> bool:
        return "onlink" in self.flags


@dataclass(frozen=True, slots=True)
class Route:
    """A route of any table and type."""

    family: int
    table: int
    destination: str
    """A prefix with its length; the default route is ``0.0.0.0/0`` or ``::/0``."""
    type: str = "unicast"
    """unicast, local, broadcast, multicast, anycast, blackhole, unreachable, prohibit, throw, nat."""
    metric: int = 0
    tos: int = 0
    scope: str = "global"
    """``global``, ``site``, ``link``, ``host``, ``nowhere`` or a number."""
    protocol: str = "boot"
    preferred_source: str | None = None
    source: str | None = None
    """IPv6 source-specific routing: the source prefix (RTA_SRC)."""
    nexthops: tuple[NextHop, ...] = ()
    nexthop_id: int | None = None
    mtu: int | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy routing rule."""

    family: int
    priority: int
    action: str = "table"
    """table (to_tbl), goto, nop, blackhole, unreachable, prohibit."""
    table: int = 0
    source: str | None = None
    destination: str | None = None
    in_device: str | None = None
    out_device: str | None = None
    fwmark: int | None = None
    fwmask: int | None = None
    tos: int = 0
    invert: bool = False
    ip_protocol: int | None = None
    source_ports: tuple[int, int] | None = None
    destination_ports: tuple[int, int] | None = None
    uid_range: tuple[int, int] | None = None
    suppress_prefixlength: int | None = None
    suppress_ifgroup: int | None = None
    l3mdev: bool = False
    tunnel_id: int | None = None
    goto: int | None = None


@dataclass(frozen=True, slots=True)
class NextHopObject:
    """A nexthop object (RTM_NEWNEXTHOP) that routes and FDB entries refer to by id."""

    id: int
    device: int | None = None
    gateway: str | None = None
    family: int | None = None
    blackhole: bool = False
    group: tuple[tuple[int, int], ...] = ()
    """(id, weight) of each member of a group."""
    fdb: bool = False
    flags: tuple[str, ...] = ()
    resilient: bool = False
    encap: str | None = None
    """As in `NextHop`."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An ARP or NDP entry."""

    device: int
    family: int
    address: str
    mac: str | None
    state: str
    """NUD_*: REACHABLE, STALE, DELAY, PROBE, FAILED, INCOMPLETE, PERMANENT, NOARP, NONE."""
    proxy: bool = False


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """A forwarding entry of a bridge (`master` set) or of a device of its own, such as a VXLAN's (``self``)."""

    device: int
    mac: str
    vlan: int | None = None
    destination: str | None = None
    """The VTEP, for a VXLAN device."""
    port: int | None = None
    vni: int | None = None
    via: int | None = None
    nexthop_id: int | None = None
    state: str = ""
    """permanent, static, stale, or empty for a learned, reachable entry."""
    master: int | None = None
    flags: tuple[str, ...] = ()
    """self, router, sticky, offload, extern_learn, ..."""


@dataclass(frozen=True, slots=True)
class Xtables:
    """What one ``*tables-save -c`` printed in a namespace."""

    family: int
    backend: str
    """``nft`` or ``legacy``."""
    text: str


@dataclass(frozen=True, slots=True)
class Netfilter:
    """A namespace's rulesets as their own tools print them; they are evaluated by `netpath.netfilter`.

    Kept as text because text is what an engineer compares with the node, and because a later netpath that understands more
    matches can evaluate it again. A nft document shows xtables rules of the nft backend too, but without their arguments.
    """

    xtables: tuple[Xtables, ...] = ()
    nft: str | None = None
    """The document of ``nft -j list ruleset``; empty or None when there is nothing."""
    ipset: str | None = None
    """The output of ``ipset save``."""
    unread: tuple[str, ...] = ()
    """Rulesets that the kernel holds but that could not be read, each with the reason: hooks there are uncertain."""


@dataclass(frozen=True, slots=True)
class FlowTuple:
    """One direction of a connection."""

    source: str
    destination: str
    sport: int | None = None
    dport: int | None = None


@dataclass(frozen=True, slots=True)
class ConntrackEntry:
    """A connection that conntrack tracks."""

    family: int
    protocol: str
    original: FlowTuple
    reply: FlowTuple
    state: str | None = None
    flags: tuple[str, ...] = ()
    """assured, unreplied, ..."""
    mark: int = 0
    zone: int = 0
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket that can receive: a listening TCP or a bound UDP socket."""

    protocol: str
    address: str
    """``0.0.0.0`` or ``::`` for any."""
    port: int
    device: str | None = None
    process: str | None = None
    pid: int | None = None
    command: str | None = None
    """The command line, kept for user-space proxies (docker-proxy), whose target stands there."""
    connected: bool = False
    """A UDP socket with a peer: it takes that peer's datagrams only."""
    v6only: bool = False


@dataclass(frozen=True, slots=True)
class IpvsBackend:
    """A real server of a virtual one."""

    address: str
    port: int
    weight: int
    """0: it gets no new connections."""
    method: str
    """How packets get there: ``masq`` (NAT), ``local``, ``tunnel``, ``route`` or ``bypass``."""


@dataclass(frozen=True, slots=True)
class VirtualServer:
    """A service of IPVS in a namespace, by address and port or by firewall mark."""

    family: int
    protocol: str | None
    """``tcp``, ``udp``, ``sctp``; None with a mark."""
    address: str | None
    port: int | None
    """0: every port that no other virtual server of the address has."""
    scheduler: str
    fwmark: int | None = None
    flags: tuple[str, ...] = ()
    """``persistent``, ``onepacket``, ..."""
    timeout: int | None = None
    """Seconds for which a client keeps its backend, if persistent."""
    backends: tuple[IpvsBackend, ...] = ()
    """In the kernel's order."""

    @property
    def title(self) -> str:
        """As ``ipvsadm -Ln`` begins its line: ``TCP 10.96.0.1:443 rr``."""
        if self.fwmark is not None:
            return f"FWM {self.fwmark} {self.scheduler}"
        shown = f"[{self.address}]" if self.family == 6 else self.address
        return f"{(self.protocol or '').upper()} {shown}:{self.port} {self.scheduler}"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace with all that decides where its packets go."""

    inode: int
    name: str
    """The best name for people: iproute2's, else a container's, else ``host``, else ``netns:INODE``."""
    names: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    """Files by which it can be entered (bind mounts, /proc/PID/ns/net); not part of what is predicted."""
    pids: tuple[int, ...] = ()
    nsids: tuple[tuple[int, int], ...] = ()
    """(nsid, namespace inode): how this namespace numbers the others it knows."""
    links: tuple[Link, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    nexthops: tuple[NextHopObject, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    fdb: tuple[FdbEntry, ...] = ()
    netfilter: Netfilter | None = field(default_factory=Netfilter)
    conntrack: tuple[ConntrackEntry, ...] | None = None
    sockets: tuple[Socket, ...] | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
    """Names as in /proc/sys with dots between parts and a slash for a dot in a device name: net.ipv4.conf.flannel/1.rp_filter."""
    xfrm_policies: int | None = None
    problems: tuple[str, ...] = ()
    """What could not be read of this namespace, one line each."""
    ipvs: tuple[VirtualServer, ...] | None = None
    """Virtual servers of the kernel's load balancer."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A container or pod and the namespace it runs in."""

    reference: str
    """As an endpoint is written: ``docker:web``, ``pod:default/web``, ``container:3f2a...``."""
    name: str
    id: str | None
    netns: int
    node: str | None = None
    runtime: str | None = None
    containers: tuple[str, ...] = ()
    """Ids of the containers of a pod; `id` is the pod's own."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything netpath read of a machine, or of several nodes' dumps, at one time."""

    namespaces: tuple[Namespace, ...]
    """Sorted by name, then inode."""
    schema: int = SCHEMA
    taken_at: str = ""
    """RFC 3339, UTC."""
    tool: str = ""
    hostname: str = ""
    kernel: str = ""
    workloads: tuple[Workload, ...] = ()
    problems: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    """Small files that tell a CNI (subnet.env, /etc/cni/net.d/*.conflist), by path; a dump prefixes the namespace's name."""
