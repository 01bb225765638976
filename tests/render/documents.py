"""Traces by hand, for the tests of what they look like."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from netpath.model.packet import Ethernet, Headers, Ipv4, Ipv6, Udp, VxlanHeader
from netpath.model.path import (
    AddressPair,
    Completeness,
    Delivery,
    DeviceRef,
    Drop,
    Hop,
    NetnsRef,
    Path,
    PathMtu,
    Prediction,
    ProbeCost,
    RuleRef,
    Stats,
    Trace,
    Translation,
)

INNER: Headers = (Ethernet(), Ipv4("10.244.1.2", "10.244.2.2", ttl=64), Udp(40000, 7777))
OUTER: Headers = (Ethernet(), Ipv4("192.168.50.11", "192.168.50.12", ttl=64), Udp(51234, 8472), VxlanHeader(1), *INNER)
SIX: Headers = (
    Ethernet(),
    Ipv6("fd00:1234:5678:9abc:def0:1234:5678:9abc", "fd00:1234:5678:9abc:def0:1234:5678:9abd", ttl=64),
    Udp(40000, 7777),
)
RULE = RuleRef(
    '-A KUBE-SVC-X -m comment --comment "default/web:http" -j DNAT --to-destination 10.244.2.2:7777', "nat", "KUBE-SVC-X"
)


def stats(ns: float) -> Stats:
    return Stats(5, ns, ns * 0.9, ns, ns * 1.1, ns * 1.2, ns * 1.3, (ns * 0.95, ns * 1.05), ns + 900)


def _hop(number: int, netns: str, device: str, kind: str, direction: str, headers: Headers, at: float, took: float | None) -> Hop:
    length = 156 if headers is OUTER else 106
    return Hop(
        index=number,
        status="observed",
        node=netns if "pod" not in netns else f"node{netns[-1]}",
        netns=NetnsRef(4026532000 + number, netns),
        workload="pod:default/web" if "pod" in netns else None,
        device=DeviceRef(device, number + 1, kind),
        direction=direction,
        length=length,
        ip_length=length - 14,
        mtu=1450,
        headers=headers,
        since_start_ns=stats(at),
        segment_ns=stats(took) if took is not None else None,
    )


def hops() -> tuple[Hop, ...]:
    return (
        _hop(1, "pod1", "eth0", "veth", "tx", INNER, 0, None),
        _hop(2, "node1", "vethd4cf5649", "veth", "rx", INNER, 6430, 6430),
        _hop(3, "node1", "flannel.1", "vxlan", "tx", INNER, 40900, 34470),
        _hop(4, "node1", "eth0", "veth", "tx", OUTER, 54900, 14000),
        _hop(5, "node2", "eth0", "veth", "rx", OUTER, 67900, 13000),
        _hop(6, "node2", "flannel.1", "vxlan", "rx", INNER, 98000, 30100),
        _hop(7, "pod2", "eth0", "veth", "rx", INNER, 114000, 16000),
    )


def delivered(*, way: tuple[Hop, ...] | None = None, **more: Any) -> Trace:
    overhead = {
        "encap": {"bytes": 50, "ns": stats(44100), "share": 0.36},
        "nat": {"translations": 1, "ns": None, "share": None},
        "conntrack": {"ns": None, "share": None},
        "userspace": {"crossings": 0, "ns": None, "share": 0.0},
        "one_way_ns": stats(122000),
    }
    path = Path(
        "forward",
        1.0,
        "delivered",
        way or hops(),
        probes=5,
        translations=(
            Translation(
                2,
                "dnat",
                False,
                AddressPair("10.244.1.2:40000", "10.96.0.10:80"),
                AddressPair("10.244.1.2:40000", "10.244.2.2:7777"),
                RULE,
            ),
        ),
        delivery=Delivery(NetnsRef(4026532007, "pod2"), "socket", "nginx", hook="socket readable", since_start_ns=stats(122000)),
        overhead=overhead,
    )
    prediction = Prediction("delivered", (path,), None)
    return replace(
        Trace("delivered", (path,), prediction, Completeness("COMPLETE"), PathMtu(1450, 1422, 1), ProbeCost(1250.0, 30.0)), **more
    )


def dropped() -> Trace:
    """Ends at the tunnel, where prediction said it would go on."""
    way = (*hops()[:3], replace(hops()[3], status="missing", since_start_ns=None, segment_ns=None))
    drop = Drop(
        3,
        "NO_TX_TARGET",
        "flannel.1 in node1 has no forwarding entry for aa:a7:61:cb:9b:e3 and no default remote",
        "ip netns exec node1 bridge fdb append aa:a7:61:cb:9b:e3 dev flannel.1 dst VTEP",
        DeviceRef("flannel.1", 4, "vxlan"),
        NetnsRef(4026532002, "node1"),
    )
    path = replace(delivered().paths[0], outcome="dropped", hops=way, drop=drop, delivery=None, translations=(), overhead=None)
    return delivered(
        outcome="dropped",
        paths=(path,),
        completeness=Completeness("PARTIAL", 7, (), ("7 events were lost: the buffer was full",)),
        notes=("node1: the neighbours could not be read: permission denied",),
    )
