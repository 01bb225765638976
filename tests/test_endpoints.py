"""How endpoints are written and what they mean."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpath.endpoints import Endpoint, has_port, primary_address, resolve
from netpath.errors import UsageError
from netpath.model.snapshot import Address, Link, Namespace, Netfilter, NextHop, Route, Snapshot, Workload, Xtables


def namespace(inode: int, name: str, *addresses: str, pids: tuple[int, ...] = (), **options: object) -> Namespace:
    links = (
        Link(1, "lo", "loopback", None, 65536),
        Link(2, "eth0", "veth", None, 1500),
        Link(3, "kube-ipvs0", "dummy", None, 1500),
    )
    held = [Address(1, 4, "127.0.0.1", 8, "host")]
    for text in addresses:
        device, _, address = text.rpartition("%")
        family = 6 if ":" in address else 4
        scope = "link" if address.startswith("fe80") else "global"
        held.append(Address(int(device or 2), family, address, 24, scope))
    return Namespace(inode, name, (name,), pids=pids, links=links, addresses=tuple(held), **options)  # type: ignore[arg-type]


SNAPSHOT = Snapshot(
    namespaces=(
        namespace(10, "host", "192.168.1.1", "3%10.96.0.10", pids=(1, 900)),
        namespace(11, "pod1", "10.244.1.2", "fe80::1", "fd00::2", pids=(42,)),
        namespace(12, "c1", "172.17.0.2"),
        namespace(13, "c2", "172.17.0.2"),
        namespace(14, "node2", "192.168.1.2", "3%10.96.0.10"),
        namespace(15, "web", "10.1.1.1"),
        namespace(16, "v6", "fd00::6"),
        namespace(17, "bare"),
        namespace(18, "a@b", "10.1.1.9"),
    ),
    workloads=(
        Workload("docker:c1", "c1", "3f2a" + "0" * 60, 12, runtime="docker"),
        Workload("docker:same", "same", "aa11" + "0" * 60, 12, runtime="docker"),
        Workload("docker:same", "same", "bb22" + "0" * 60, 13, runtime="docker"),
        Workload("docker:gone", "gone", "cc33" + "0" * 60, 99, runtime="docker"),
        Workload("pod:default/web", "web", "1234-uid", 11, runtime="kubernetes", containers=("dd44" + "0" * 60,)),
        Workload("pod:other/web", "web", "5678-uid", 16, runtime="kubernetes"),
    ),
)


@pytest.mark.parametrize(
    ("text", "netns", "address", "port"),
    [
        ("10.244.1.2", 11, "10.244.1.2", None),
        ("10.244.1.2:53", 11, "10.244.1.2", 53),
        ("fd00::2", 11, "fd00::2", None),
        ("FD00:0::2", 11, "fd00::2", None),
        ("[fd00::2]", 11, "fd00::2", None),
        ("[fd00::2]:65535", 11, "fd00::2", 65535),
        ("8.8.8.8:53", None, "8.8.8.8", 53),
        ("127.0.0.1:80", None, "127.0.0.1", 80),
        ("10.96.0.10:53", None, "10.96.0.10", 53),
        ("netns:pod1", 11, "10.244.1.2", None),
        ("netns:pod1:80", 11, "10.244.1.2", 80),
        ("netns:pod1@fd00::2", 11, "fd00::2", None),
        ("netns:pod1@[fd00::2]:80", 11, "fd00::2", 80),
        ("netns:pod1@10.244.1.2:80", 11, "10.244.1.2", 80),
        ("netns:13:80", 13, "172.17.0.2", 80),
        ("netns:a@b@10.1.1.9", 18, "10.1.1.9", None),
        ("pid:42", 11, "10.244.1.2", None),
        ("pid:42:80", 11, "10.244.1.2", 80),
        ("docker:c1:8080", 12, "172.17.0.2", 8080),
        ("container:3f2a", 12, "172.17.0.2", None),
        ("container:dd440", 11, "10.244.1.2", None),
        ("pod:default/web:80", 11, "10.244.1.2", 80),
        ("default/web", 11, "10.244.1.2", None),
        ("netns:v6:80", 16, "fd00::6", 80),
        ("host", 10, "192.168.1.1", None),
        ("host:22", 10, "192.168.1.1", 22),
        ("node2", 14, "192.168.1.2", None),
        ("c1", 12, "172.17.0.2", None),
    ],
)
def test_destinations(text: str, netns: int | None, address: str, port: int | None) -> None:
    got = resolve(text, SNAPSHOT, "destination")
    assert (got.netns, got.address, got.port, got.text) == (netns, address, port, text)
    assert has_port(text) == (port is not None)


def test_sources() -> None:
    assert resolve("netns:bare", SNAPSHOT) == Endpoint(17, None, None, None, "netns:bare")
    assert resolve("pod:default/web", SNAPSHOT) == Endpoint(11, None, None, "pod:default/web", "pod:default/web")
    assert resolve("docker:c1@172.17.0.2", SNAPSHOT).address == "172.17.0.2"
    assert resolve("10.244.1.2", SNAPSHOT) == Endpoint(11, "10.244.1.2", None, "pod:default/web", "10.244.1.2")


@pytest.mark.parametrize(
    ("text", "role", "words"),
    [
        ("172.17.0.2", "source", ["ambiguous", "docker:c1@172.17.0.2", "netns:c2@172.17.0.2"]),
        ("172.17.0.2:80", "destination", ["ambiguous", "docker:c1@172.17.0.2:80"]),
        ("docker:same", "source", ["ambiguous", "netns:12", "netns:13"]),
        ("web:80", "destination", ["ambiguous", "pod:default/web:80", "pod:other/web:80", "netns:web:80"]),
        ("pod:web", "source", ["ambiguous", "pod:default/web", "pod:other/web"]),
        ("8.8.8.8", "source", ["no network namespace here holds 8.8.8.8"]),
        ("netns:pod1:80", "source", ["--sport"]),
        ("netns:nosuch", "source", ["no network namespace is called nosuch"]),
        ("netns:pod", "source", ["did you mean", "pod1"]),
        ("docker:gone", "source", ["was not read"]),
        ("pid:77", "source", ["no network namespace that was read has a process 77"]),
        ("pid:x", "source", ["not a process id"]),
        ("netns:pod1@10.9.9.9", "source", ["does not hold 10.9.9.9", "10.244.1.2", "fd00::2"]),
        ("netns:bare", "destination", ["no address"]),
        ("svc:default/dns", "source", ["only be a destination"]),
        ("svc:default/dns:53", "destination", ["service data"]),
        ("svc:dns", "destination", ["NAMESPACE/NAME"]),
        ("10.0.0.1:0", "destination", ["not a port"]),
        ("10.0.0.1:99999", "destination", ["not a port"]),
        ("10.0.0.1:", "destination", ["not a port"]),
        ("10.0.0.300", "destination", ["not an address"]),
        ("[fd00::2", "destination", ["not an address"]),
        ("[10.0.0.1]:80", "destination", ["not an address"]),
        ("fe80::1%eth0", "destination", ["zone"]),
        ("netns:", "source", ["not an endpoint"]),
        ("", "source", ["not an endpoint"]),
        ("a\nb", "source", ["not an endpoint"]),
        ("pod1@nonsense", "source", ["not an address"]),
    ],
)
def test_errors_are_one_line_with_what_to_do(text: str, role: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        resolve(text, SNAPSHOT, role)  # type: ignore[arg-type]
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_every_candidate_of_an_ambiguous_endpoint_is_an_answer() -> None:
    for text in ("172.17.0.2", "docker:same", "web"):
        with pytest.raises(UsageError) as raised:
            resolve(text, SNAPSHOT, "source")
        for candidate in str(raised.value).rpartition(": ")[2].split(", "):
            assert resolve(candidate, SNAPSHOT, "source").netns is not None


def test_a_snapshot_without_the_node_says_so() -> None:
    with pytest.raises(UsageError, match="own namespace is not in this snapshot"):
        resolve("host", Snapshot(namespaces=SNAPSHOT.namespaces[1:]), "source")


def test_the_primary_address_is_that_of_the_default_route() -> None:
    links = (Link(1, "lo", "loopback", None, 1), Link(2, "docker0", "bridge", None, 1), Link(3, "eth0", "physical", None, 1))
    addresses = (Address(2, 4, "172.17.0.1", 16), Address(3, 4, "192.0.2.1", 24), Address(3, 6, "2001:db8::1", 64))
    route = Route(4, 254, "0.0.0.0/0", nexthops=(NextHop(3, "192.0.2.254"),))
    assert primary_address(Namespace(1, "n", links=links, addresses=addresses, routes=(route,))) == "192.0.2.1"
    assert primary_address(Namespace(1, "n", links=links, addresses=addresses)) == "172.17.0.1"


IPTABLES = """*nat
[13:780] -A KUBE-SERVICES ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p udp -m comment --comment "kube-system/kube-dns:dns cluster IP" -j X
-A KUBE-SERVICES -d fd96::a/128 -p tcp -m comment --comment "default/six cluster IP" -m tcp --dport 53 -j KUBE-SVC-Y
COMMIT
"""
NFT = json.dumps({"nftables": [{"map": {"name": "service-ips", "table": "kube-proxy", "elem": [
    [{"concat": ["10.96.0.20", "tcp", 80]}, {"goto": {"target": "service-ABC234-shop/cart/tcp/http"}}]]}}]})  # fmt: skip
FLAT = json.dumps([{"name": "flat", "spec": {"clusterIP": "10.96.0.40"}}])
OBJECTS = json.dumps(
    {"items": [{"metadata": {"namespace": "ns", "name": "both"}, "spec": {"clusterIPs": ["10.96.0.30", "fd96::30"]}}]}
)


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("svc:kube-system/kube-dns:53", "10.96.0.10", 53),
        ("svc:default/six", "fd96::a", None),
        ("svc:shop/cart:80", "10.96.0.20", 80),
        ("svc:ns/both", "10.96.0.30", None),
        ("svc:default/flat", "10.96.0.40", None),
        ("svc:ns/both@fd96::30", "fd96::30", None),
    ],
)
def test_services_are_found_in_rules_and_objects(text: str, address: str, port: int | None) -> None:
    netfilter = Netfilter((Xtables(4, "nft", IPTABLES),), NFT)
    snapshot = Snapshot(
        (Namespace(1, "n", netfilter=netfilter), Namespace(2, "m", netfilter=None)),
        files={"n/services.json": OBJECTS, "services.json": FLAT},
    )
    got = resolve(text, snapshot, "destination")
    assert (got.netns, got.address, got.port) == (None, address, port)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("netspidockrvc:@[]./0123456789abf%- \n"), max_size=30), st.sampled_from(["source", "destination"]))
def test_any_text_is_an_endpoint_or_a_usage_error(text: str, role: str) -> None:
    try:
        got = resolve(text, SNAPSHOT, role)  # type: ignore[arg-type]
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert got.netns is not None or role == "destination"
