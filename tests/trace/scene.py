"""A hand-made VXLAN overlay of two nodes, and the events of a packet that crosses it."""

from __future__ import annotations

from netpath.model.event import Event
from netpath.model.packet import Ethernet, Header, Headers, Ipv4, Udp, VxlanHeader
from netpath.model.snapshot import Address, Bridge, BridgePort, DeviceId, Link, Namespace, Snapshot, Vxlan

POD1, NODE1, FABRIC, NODE2, POD2 = 101, 201, 301, 202, 102
UP = ("LOWER_UP", "UP")


def veth(ifindex: int, name: str, peer: DeviceId, **more: object) -> Link:
    return Link(ifindex=ifindex, name=name, kind="veth", mac=None, mtu=1500, flags=UP, peer=peer, **more)  # type: ignore[arg-type]


def node(inode: int, name: str, pod: int, fabric_port: int) -> Namespace:
    return Namespace(
        inode=inode,
        name=name,
        links=(
            veth(2, "eth0", DeviceId(FABRIC, fabric_port)),
            Link(ifindex=3, name="flannel.1", kind="vxlan", mac=None, mtu=1450, flags=UP, vxlan=Vxlan(vni=1, port=8472)),
            Link(ifindex=4, name="cni0", kind="bridge", mac=None, mtu=1450, flags=UP, bridge=Bridge()),
            veth(5, "veth0", DeviceId(pod, 2), master=4, port=BridgePort()),
            veth(6, "veth1", DeviceId(999, 2), master=4, port=BridgePort()),
        ),
        sysctls={"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.forwarding": "1"},
    )


def snapshot() -> Snapshot:
    return Snapshot(
        namespaces=(
            Namespace(
                inode=FABRIC,
                name="fabric",
                links=(
                    Link(ifindex=2, name="br0", kind="bridge", mac=None, mtu=1500, flags=UP, bridge=Bridge()),
                    veth(3, "p1", DeviceId(NODE1, 2), master=2, port=BridgePort()),
                    veth(4, "p2", DeviceId(NODE2, 2), master=2, port=BridgePort()),
                ),
            ),
            node(NODE1, "node1", POD1, 3),
            node(NODE2, "node2", POD2, 4),
            Namespace(
                inode=POD1,
                name="pod1",
                links=(veth(2, "eth0", DeviceId(NODE1, 5)),),
                addresses=(Address(device=2, family=4, address="10.244.1.2", prefixlen=24),),
            ),
            Namespace(
                inode=POD2,
                name="pod2",
                links=(veth(2, "eth0", DeviceId(NODE2, 5)),),
                addresses=(Address(device=2, family=4, address="10.244.2.2", prefixlen=24),),
            ),
        )
    )


def inner(src: str = "10.244.1.2", dst: str = "10.244.2.2", sport: int = 40001, dport: int = 7777) -> tuple[Header, ...]:
    return (Ipv4(src, dst, ttl=64, length=92), Udp(sport, dport))


def wrapped(headers: Headers) -> Headers:
    outer = (Ethernet(), Ipv4("192.168.50.11", "192.168.50.12", ttl=64, length=142), Udp(40000, 8472), VxlanHeader(1))
    return (*outer, Ethernet(), *headers)


def event(
    time_ns: int, hook: str, netns: int, ifindex: int, headers: Headers, *, sequence: int = 1, skb: int = 7, **more: object
) -> Event:
    first = next(header for header in headers if isinstance(header, Ipv4))
    return Event(
        time_ns=time_ns,
        hook=hook,
        netns=netns,
        ifindex=ifindex,
        sequence=sequence,
        length=(first.length or 0) + 14,
        ip_length=first.length or 0,
        headers=headers,
        skb=skb,
        **{"role": "probe", **more},  # type: ignore[arg-type]
    )


WAY = (
    ("tx", POD1, 2, False),
    ("rx", NODE1, 5, False),
    ("rx", NODE1, 4, False),
    ("tx", NODE1, 3, False),
    ("tx", NODE1, 2, True),
    ("rx", FABRIC, 3, True),
    ("tx", FABRIC, 4, True),
    ("rx", NODE2, 2, True),
    ("local_in", NODE2, 2, True),
    ("rx", NODE2, 3, False),
    ("tx", NODE2, 4, False),
    ("tx", NODE2, 5, False),
    ("rx", POD2, 2, False),
    ("local_in", POD2, 2, False),
    ("socket", POD2, 2, False),
)


def forward(start: int = 1000, sequence: int = 1) -> list[Event]:
    """The events of one delivered probe, 100 ns apart."""
    packet = (Ethernet(), *inner())
    return [
        event(start + 100 * number, hook, netns, ifindex, wrapped(inner()) if outer else packet, sequence=sequence)
        for number, (hook, netns, ifindex, outer) in enumerate(WAY)
    ]


def keys(events: tuple[Event, ...]) -> list[tuple[str, int, int]]:
    return [(item.hook, item.netns, item.ifindex) for item in events]


HOPS = [(hook, netns, ifindex) for hook, netns, ifindex, _ in WAY if hook in ("tx", "rx")]
