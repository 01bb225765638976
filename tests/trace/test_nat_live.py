"""NAT on real dockerds and on kube-proxy's rules: every rewrite seen, named by rule, confirmed by the kernel, and undone on the way back."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path as File

import pytest

from netpath import lab
from netpath.cli.trace import exit_code
from netpath.errors import MissingError, UsageError
from netpath.lab import Lab, guests
from tests.trace.capture import FIRST, captured, claimed
from tests.trace.nat import as_predicted, rewrites, trace

pytestmark = [pytest.mark.root, pytest.mark.ebpf, pytest.mark.timeout(400)]


def prefix() -> str:
    return f"npt{os.urandom(2).hex()}"


@pytest.fixture(scope="module", params=[True, False], ids=["proxy", "no-proxy"])
def docker(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, bool]]:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("needs root and apt-get")
    try:
        guests.fetch("docker", guests.DOCKER)
    except MissingError as error:
        pytest.skip(str(error))
    with lab.running("docker", prefix(), userland_proxy=request.param) as made:
        yield made, request.param


@pytest.fixture(scope="module", params=["iptables-nft", "iptables-legacy", "nftables"])
def kube(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with lab.running("flannel-vxlan", prefix(), services=request.param) as made:
        yield made


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_docker_to_the_other_nodes_published_port_is_rewritten_twice(docker: tuple[Lab, bool], protocol: str) -> None:
    made, _ = docker
    port = 12348 if protocol == "udp" else 12347
    (forward,), (back,) = as_predicted(trace("docker:c1", f"netns:{made.name}-node2@192.168.50.12:{port}", protocol))
    assert rewrites(forward) == [("masquerade", False), ("dnat", False)]
    assert rewrites(back) == [("dnat", True), ("masquerade", True)]
    masquerade, dnat = forward.translations
    assert masquerade.rule and "MASQUERADE" in masquerade.rule.text and dnat.rule and f"--dport {port}" in dnat.rule.text
    assert masquerade.after.src.startswith("192.168.50.11:") and dnat.after.dst.startswith("172.17.0.2:")
    assert forward.hops[-1].workload != forward.hops[0].workload
    assert forward.overhead and forward.overhead["nat"]["translations"] == 2


@pytest.mark.parametrize("source", ["c1", "c2"])
def test_docker_to_its_own_nodes_published_port(docker: tuple[Lab, bool], source: str) -> None:
    made, proxied = docker
    done = trace(f"docker:{source}", f"netns:{made.name}-node1@192.168.50.11:12346")
    (forward,), _ = as_predicted(done)
    assert forward.overhead is not None
    if proxied:
        assert rewrites(forward) == [("proxy", False)]
        assert forward.overhead["userspace"]["crossings"] == 1
        assert [stage.stage for stage in forward.stages].count("userspace") == 1
    else:
        assert ("dnat", False) in rewrites(forward) and forward.overhead["userspace"]["crossings"] == 0


def test_docker_loopback_on_the_node(docker: tuple[Lab, bool]) -> None:
    made, proxied = docker
    (forward,), _ = as_predicted(trace(f"netns:{made.name}-node1", "127.0.0.1:12346"))
    assert rewrites(forward) == ([("proxy", False)] if proxied else [("dnat", False), ("masquerade", False)])


def test_docker_published_port_of_another_network(docker: tuple[Lab, bool]) -> None:
    """c4's port is published on the node's address: reached by docker-proxy; without it, stopped between the networks."""
    made, proxied = docker
    done = trace("docker:c2", f"netns:{made.name}-node1@192.168.50.11:12349")
    if proxied:
        (forward,), _ = as_predicted(done)
        assert rewrites(forward) == [("proxy", False)]
    else:
        assert done.trace.outcome == "dropped" and not done.trace.diverged
        forward = done.trace.paths[0]
        assert forward.drop and forward.drop.rule and forward.drop.rule.chain == "DOCKER-ISOLATION-STAGE-2"


def test_docker_to_the_outside_is_masqueraded(docker: tuple[Lab, bool]) -> None:
    """An ICMP echo to the other node: the source is rewritten, and the answer's destination back."""
    made, _ = docker
    (forward,), (back,) = as_predicted(trace("docker:c2", f"netns:{made.name}-node2@192.168.50.12", "icmp"))
    assert rewrites(forward) == [("masquerade", False)] and rewrites(back) == [("masquerade", True)]
    assert forward.translations[0].after.src == "192.168.50.11"


@pytest.mark.usefixtures("docker")
def test_docker_siblings_share_a_bridge() -> None:
    (forward,), _ = as_predicted(trace("docker:c2", "docker:c1:7071"))
    assert rewrites(forward) == [] and [hop.device.kind for hop in forward.hops] == ["veth"] * 4


def test_docker_networks_are_isolated_by_a_rule(docker: tuple[Lab, bool]) -> None:
    done = trace("docker:c1", "docker:c4:7071")
    (forward,) = [path for path in done.trace.paths if path.direction == "forward"]
    assert done.trace.outcome == "dropped" and not done.trace.diverged and exit_code(done.trace, None, None) == 1
    assert forward.drop and forward.drop.rule and "DOCKER-ISOLATION-STAGE-2" in forward.drop.rule.text
    assert forward.drop.rule.basis == "evaluated"


def test_an_address_of_two_containers_is_ambiguous(docker: tuple[Lab, bool]) -> None:
    with pytest.raises(UsageError, match=r"ambiguous.*docker:c1.*docker:c3"):
        trace("docker:c2", "172.17.0.2:7071")


@pytest.mark.parametrize(
    ("source", "target", "first"),
    [
        ("pod1a", "10.96.7.8:5353", "dnat"),
        ("pod1b", "10.96.7.8:5353", "dnat"),
        ("node1", "10.96.7.8:5353", "dnat"),
        ("pod1a", "10.96.7.9:5354", "dnat"),
        ("node2", "node1@192.168.50.11:30053", "dnat"),
        ("node2", "node1@192.168.50.11:30056", "dnat"),
        ("node2", "node1@192.168.50.99:5357", "masquerade"),
    ],
    ids=["clusterip", "hairpin", "node", "affinity", "nodeport", "local", "external"],
)
def test_kube_proxy_services(kube: Lab, source: str, target: str, first: str) -> None:
    destination = f"netns:{kube.name}-{target}" if "@" in target else target
    forward, back = as_predicted(trace(f"netns:{kube.name}-{source}", destination))
    for path in forward:
        kinds = [item.kind for item in path.translations]
        assert first in kinds and "dnat" in kinds
    # What was rewritten on the way there is restored on the way back, by as many steps.
    assert sorted(len(path.translations) for path in forward) == sorted(len(path.translations) for path in back)
    for path in back:
        assert path.translations[-1].after.dst.startswith(forward[0].translations[0].before.src)


def test_a_pod_that_is_chosen_by_its_own_service_gets_its_packet_back(kube: Lab) -> None:
    """Hairpin: sent to the service, DNATed to the sender, and masqueraded, as its own address would be a martian."""
    for _ in range(20):
        forward, back = as_predicted(trace(f"netns:{kube.name}-pod1b", "10.96.7.8:5353", count=1))
        # Which endpoint gets it is the kernel's choice: half of the flows come back.
        if forward[0].hops[-1].netns.name == f"{kube.name}-pod1b":
            break
    else:
        pytest.fail("no flow of 20 was balanced to the pod itself")
    assert rewrites(forward[0]) == [("dnat", False), ("masquerade", False)]
    # The answer goes to the address of the masquerade first; its source is restored on the way out.
    assert rewrites(back[0]) == [("masquerade", True), ("dnat", True)]
    first, last = forward[0].hops[1], forward[0].hops[-2]
    assert (first.device, first.direction, last.direction) == (last.device, "rx", "tx")


def test_a_service_without_endpoints_refuses_by_rule(kube: Lab) -> None:
    done = trace(f"netns:{kube.name}-pod1a", "10.96.7.10:5355")
    forward = done.trace.paths[0]
    assert done.trace.outcome == "rejected" and not done.trace.diverged
    assert forward.drop and forward.drop.rule and re.search("reject", forward.drop.rule.text, re.IGNORECASE)


def test_connections_spread_over_endpoints_are_no_divergence(kube: Lab) -> None:
    """A SYN that was reset or forgotten is balanced anew: each way is compared with the one predicted for it."""
    done = trace(f"netns:{kube.name}-pod1a", "10.96.7.7:80", "tcp", count=6)
    forward, _ = as_predicted(done)
    assert len([path for path in done.trace.prediction.paths if path.share]) == 2
    assert sum(path.share for path in done.trace.prediction.paths) == pytest.approx(1)
    assert sum(path.probes or 0 for path in forward) == 6


def agrees_with_tcpdump(made: Lab, source: str, destination: str, folder: File, *, dropped: bool = False) -> None:
    """Devices, order and lengths, there and back (or there to the drop), from captures in all of the lab's namespaces."""
    if shutil.which("tcpdump") is None:
        pytest.skip("no tcpdump")
    spaces = {File(path).stat().st_ino: path for path in [f"/run/netns/{name}" for name in made.namespaces]}
    spaces |= {member.inode: member.path for member in (*made.nodes, *made.pods)}
    with captured(spaces, folder) as captures:
        done = trace(source, destination, count=1, cold=True)
    assert (done.trace.outcome == "dropped") == dropped
    ways = done.trace.paths if dropped else [path for both in as_predicted(done) for path in both]
    assert captures.of(FIRST) == claimed(*ways)


@pytest.mark.parametrize(("source", "target"), [("pod1a", "10.96.7.8:5353"), ("node2", "node1@192.168.50.11:30053")])
def test_tcpdump_on_every_device_agrees(kube: Lab, source: str, target: str, tmp_path: File) -> None:
    destination = f"netns:{kube.name}-{target}" if "@" in target else target
    agrees_with_tcpdump(kube, f"netns:{kube.name}-{source}", destination, tmp_path)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("docker:c1", "node2@192.168.50.12:12348"),
        ("docker:c1", "node1@192.168.50.11:12346"),
        ("docker:c2", "node1@192.168.50.11:12346"),
        ("docker:c2", "node1@192.168.50.11:12349"),
        ("node1", "127.0.0.1:12346"),
    ],
    ids=["other node", "own port", "sibling's port", "other network's port", "loopback"],
)
def test_tcpdump_agrees_on_docker(docker: tuple[Lab, bool], source: str, target: str, tmp_path: File) -> None:
    made, proxied = docker
    destination = f"netns:{made.name}-{target}" if "@" in target else target
    sender = source if ":" in source else f"netns:{made.name}-{source}"
    # Without its proxy Docker drops what goes from one of its networks to another's published port.
    agrees_with_tcpdump(made, sender, destination, tmp_path, dropped=target.endswith("12349") and not proxied)
