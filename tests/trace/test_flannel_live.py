"""Flannel's VXLAN with DirectRouting: the tunnel only where a router is between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path as File

import pytest

from netpath import lab
from netpath.cni import recognise
from netpath.lab import Lab
from tests.lab.helpers import read
from tests.trace.nat import as_predicted, trace
from tests.trace.test_nat_live import agrees_with_tcpdump

pytestmark = [pytest.mark.root, pytest.mark.ebpf, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab.running("flannel-directrouting", f"npt{os.urandom(3).hex()}", pods_per_node=1) as running:
        yield running


def ends(made: Lab, source: str, target: str, port: str) -> tuple[str, str]:
    return f"netns:{made.name}-{source}", f"netns:{made.name}-{target}@{made.pod(target).address}{port}"


@pytest.mark.parametrize("protocol", ["udp", "tcp", "icmp"])
@pytest.mark.parametrize(
    ("source", "target", "tunnel"), [("pod1a", "pod2a", False), ("pod1a", "pod3a", True), ("pod3a", "pod2a", True)]
)
def test_the_tunnel_leads_only_behind_the_router(made: Lab, source: str, target: str, tunnel: bool, protocol: str) -> None:
    (forward,), (back,) = as_predicted(trace(*ends(made, source, target, "" if protocol == "icmp" else ":7070"), protocol))
    for path in (forward, back):
        assert ("flannel.1" in [hop.device.name for hop in path.hops]) == tunnel
        lengths = {hop.ip_length for hop in path.hops}
        assert len(lengths) == (2 if tunnel else 1) and max(lengths) - min(lengths) == (50 if tunnel else 0)


def test_it_is_recognised(made: Lab) -> None:
    done = trace(*ends(made, "pod1a", "pod2a", ":7777"), count=1)
    found = recognise(done.snapshot, done.index)
    (known,) = found[made.node("node1").netns]
    assert (known.cni, known.mode) == ("flannel", "vxlan+directrouting")
    # The node behind the router has nobody on its link.
    (known,) = found[made.node("node3").netns]
    assert (known.cni, known.mode) == ("flannel", "vxlan")


def test_direct_peers_have_no_entries_in_the_tunnel(made: Lab) -> None:
    neighbours = [entry["dst"] for entry in read(made.node("node1").netns, "ip", "-j", "neigh", "show", "dev", "flannel.1")]
    assert [address for address in neighbours if ":" not in address] == ["10.244.3.0"]


@pytest.mark.parametrize("target", ["pod2a", "pod3a"])
def test_tcpdump_agrees(made: Lab, target: str, tmp_path: File) -> None:
    agrees_with_tcpdump(made, *ends(made, "pod1a", target, ":7070"), tmp_path)
