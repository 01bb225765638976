"""An overlay that no CNI would build: odd names, ports and numbers, made with iproute2 alone, with echo services in its pods."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.netns import Netns, namespaces, run

ECHO_PORT = 7777


@dataclass(frozen=True)
class Overlay:
    """Two nodes joined by a bridge in a third namespace; each has a bridge with pods, and a VXLAN device to the other node."""

    fabric: Netns
    nodes: tuple[Netns, Netns]
    pods: tuple[tuple[Netns, ...], tuple[Netns, ...]]
    addresses: dict[str, str] = field(default_factory=dict)
    """Pod namespace name -> its address."""

    def address(self, node: int, pod: int) -> str:
        return self.addresses[self.pods[node][pod].name]


@dataclass(frozen=True)
class Shape:
    """What `overlay` builds. Device names are the kernel's to accept and netpath's to ignore."""

    vni: int = 4242
    port: int = 5999
    family: int = 4
    pods: int = 1
    vxlan: str = "tunnel-x"
    bridge: str = "sw.itch"
    uplink: str = "up_0"
    underlay: str = "172.31.7"
    vlan: int | None = None
    """Put the pods into this VLAN of a VLAN-aware bridge; the node's own address is on a VLAN device of it."""


@contextmanager
def overlay(shape: Shape | None = None) -> Iterator[Overlay]:
    shape = shape or Shape()
    with ExitStack() as stack:
        made = stack.enter_context(namespaces(3 + 2 * shape.pods))
        fabric, nodes, rest = made[0], (made[1], made[2]), made[3:]
        pods = (rest[: shape.pods], rest[shape.pods :])
        result = Overlay(fabric, nodes, pods)
        for netns in made:
            # Link-local addresses that are still being checked for duplicates would keep a first packet's neighbours waiting.
            netns.sysctl("net.ipv6.conf.default.accept_dad", 0)
        fabric.batch("link add lan type bridge", "link set lan up")
        for number, node in enumerate(nodes):
            _uplink(shape, fabric, node, number)
        for number, node in enumerate(nodes):
            _node(shape, node, number, nodes[1 - number])
            for index, pod in enumerate(pods[number]):
                result.addresses[pod.name] = _pod(shape, node, number, pod, index)
        _join(shape, nodes)
        stack.enter_context(echo([(pod, result.addresses[pod.name]) for side in pods for pod in side]))
        yield result


def _net(shape: Shape, number: int) -> str:
    return f"fd77:{number + 1}::" if shape.family == 6 else f"10.{77 + number}.3."


def _plen(shape: Shape) -> int:
    return 64 if shape.family == 6 else 24


def _uplink(shape: Shape, fabric: Netns, node: Netns, number: int) -> None:
    port = f"p{number}"
    run("ip", "link", "add", shape.uplink, "netns", node.name, "type", "veth", "peer", port, "netns", fabric.name)
    fabric.batch(f"link set {port} master lan up")
    node.batch(f"addr add {shape.underlay}.{number + 1}/24 dev {shape.uplink}", f"link set {shape.uplink} up")
    node.sysctl("net.ipv4.ip_forward", 1)
    node.sysctl("net.ipv6.conf.all.forwarding", 1)


def _node(shape: Shape, node: Netns, number: int, other: Netns) -> None:
    local, remote = f"{shape.underlay}.{number + 1}", f"{shape.underlay}.{2 - number}"
    filtering = " vlan_filtering 1" if shape.vlan else ""
    node.batch(
        f"link add {shape.bridge} type bridge{filtering}",
        f"link set {shape.bridge} up",
        f"link add {shape.vxlan} type vxlan id {shape.vni} local {local} dstport {shape.port} nolearning",
        f"link set {shape.vxlan} address 02:77:00:00:00:0{number + 1} up",
    )
    gateway = shape.bridge
    if shape.vlan:
        gateway = "gw-vlan"
        node.batch(
            f"link add link {shape.bridge} name {gateway} type vlan id {shape.vlan}",
            f"link set {gateway} up",
        )
        node.run("bridge", "vlan", "add", "dev", shape.bridge, "vid", str(shape.vlan), "self")
    nodad = " nodad" if shape.family == 6 else ""
    node.batch(f"addr add {_net(shape, number)}1/{_plen(shape)} dev {gateway}{nodad}")
    node.run("bridge", "fdb", "append", f"02:77:00:00:00:0{2 - number}", "dev", shape.vxlan, "dst", remote)


def _join(shape: Shape, nodes: tuple[Netns, Netns]) -> None:
    for number, node in enumerate(nodes):
        far = _net(shape, 1 - number)
        via = "fd77:ff::" if shape.family == 6 else "10.99.0."
        bits, nodad = (128, " nodad") if shape.family == 6 else (32, "")
        node.batch(
            f"addr add {via}{number + 1}/{bits} dev {shape.vxlan}{nodad}",
            f"neigh add {via}{2 - number} lladdr 02:77:00:00:00:0{2 - number} dev {shape.vxlan} nud permanent",
            f"route add {via}{2 - number}/{bits} dev {shape.vxlan}",
            f"route add {far}{'' if shape.family == 6 else '0'}/{_plen(shape)} via {via}{2 - number} dev {shape.vxlan} onlink",
        )


def _pod(shape: Shape, node: Netns, number: int, pod: Netns, index: int) -> str:
    port, address = f"c{index}", f"{_net(shape, number)}{index + 10}"
    run(
        "ip",
        "link",
        "add",
        "if0",
        "netns",
        pod.name,
        "mtu",
        "1450",
        "type",
        "veth",
        "peer",
        port,
        "netns",
        node.name,
        "mtu",
        "1450",
    )
    node.batch(f"link set {port} master {shape.bridge} up")
    if shape.vlan:
        node.run("bridge", "vlan", "add", "dev", port, "vid", str(shape.vlan), "pvid", "untagged")
    nodad = " nodad" if shape.family == 6 else ""
    pod.batch(
        f"addr add {address}/{_plen(shape)} dev if0{nodad}",
        "link set if0 up",
        f"route add default via {_net(shape, number)}1",
    )
    return address


@contextmanager
def echo(places: list[tuple[Netns, str]]) -> Iterator[None]:
    """UDP echo and TCP accept on `ECHO_PORT` at every (namespace, address), served by one thread."""
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for netns, address in places:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                sock = stack.enter_context(netns.socket(family, kind))
                sock.bind((address, ECHO_PORT))
                if kind == socket.SOCK_STREAM:
                    sock.listen(16)
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ)
        wake, stop = socket.socketpair()
        stack.enter_context(wake)
        stack.enter_context(stop)
        selector.register(stop, selectors.EVENT_READ)
        thread = threading.Thread(target=_serve, args=(selector, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            wake.send(b".")
            thread.join()


def _serve(selector: selectors.BaseSelector, stop: socket.socket) -> None:
    while True:
        for key, _ in selector.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if sock is stop:
                return
            try:
                if sock.type == socket.SOCK_STREAM:
                    sock.accept()[0].close()
                else:
                    data, address = sock.recvfrom(65535)
                    sock.sendto(data, address)
            except OSError:
                continue
