"""IP in IP: Calico's tunl0 and Flannel's device; built, recognised, predicted and traced where the kernel has ipip."""

from __future__ import annotations

import pytest

from netpath import lab
from netpath.cni import recognise
from netpath.discover import take
from netpath.errors import MissingError
from netpath.lab import Lab
from netpath.model.path import Path
from netpath.trace.request import TraceRequest
from netpath.trace.session import TraceRun, run
from tests.cli.command import netpath
from tests.lab import kinds
from tests.lab.helpers import Space, read

pytestmark = [pytest.mark.root, pytest.mark.ebpf, pytest.mark.timeout(300)]


def trace(made: Lab, source: str, target: str, protocol: str = "udp") -> TraceRun:
    request = TraceRequest(
        source=f"netns:{made.name}-{source}",
        destination=f"netns:{made.name}-{target}:7070",
        protocol=protocol,
        count=3,
        round_trip=True,
    )
    return run(request)


def recognised(made: Lab) -> dict[str, list[tuple[str, str]]]:
    """The datapaths of the lab's nodes, by namespace: what `inventory` shows."""
    found = recognise(take(only=[Space(name).inode for name in made.namespaces]))
    return {node.netns: [(each.cni, each.mode) for each in found[node.netns]] for node in made.nodes}


def only(result: TraceRun, direction: str) -> Path:
    (path,) = [path for path in result.trace.paths if path.direction == direction]
    return path


def devices(path: Path) -> list[str]:
    return [f"{hop.netns.name.rpartition('-')[2]}.{hop.device.name}.{hop.direction}" for hop in path.hops]


def tunnelled(result: TraceRun, tunnel: str, other: str = "node2") -> None:
    """There and back through the tunnel: all hops observed, 20 bytes more while they are in it, as predicted."""
    assert result.trace.outcome == result.trace.prediction.outcome == "delivered"
    assert result.trace.completeness.verdict == "COMPLETE", result.trace.completeness
    for direction, (first, second) in (("forward", ("node1", other)), ("return", (other, "node1"))):
        path = only(result, direction)
        assert [hop.status for hop in path.hops] == ["observed"] * len(path.hops), devices(path)
        way = devices(path)
        out, into = way.index(f"{first}.{tunnel}.tx"), way.index(f"{second}.{tunnel}.rx")
        inner, outer = path.hops[out].ip_length, path.hops[out + 1].ip_length
        assert outer == inner + 20 and {hop.ip_length for hop in path.hops[out + 1 : into]} == {outer}
        assert path.hops[into].ip_length == inner
        assert [(stage.stage, stage.bytes) for stage in path.stages if stage.bytes] == [("encap", 20), ("decap", -20)]
        assert [header.proto for header in path.hops[out + 1].headers] == ["ethernet", "ipv4", "ipv4", "udp"]
    (predicted,) = result.trace.prediction.paths
    assert devices(predicted) == devices(only(result, "forward"))


@pytest.mark.parametrize("mode", ["calico-ipip", "flannel-ipip"])
def test_without_ipip_one_line_says_so(mode: str, lab_name: str) -> None:
    if kinds.has("ipip"):
        assert lab.up(mode, lab_name).status == "up"
        return
    with pytest.raises(MissingError, match="this kernel makes no ipip devices"):
        lab.up(mode, lab_name)
    done = netpath("lab", "up", mode, "--name", lab_name)
    assert done.code == 3 and done.out == ""
    assert done.err.strip() == "netpath: lab: this kernel makes no ipip devices (modprobe ipip may help)"
    assert lab_name not in [made.name for made in lab.list_labs()]


def test_calico_ipip_pod_to_pod(lab_name: str) -> None:
    kinds.need("ipip")
    made = lab.up("calico-ipip", lab_name)
    (block,) = [route for route in read(made.node("node1").netns, "ip", "-j", "-d", "route") if route.get("dev") == "tunl0"]
    assert (block["protocol"], block["flags"], block["gateway"]) == ("bird", ["onlink"], made.node("node2").address)
    result = trace(made, "pod1a", "pod2a")
    tunnelled(result, "tunl0")
    way = devices(only(result, "forward"))
    assert way[0] == "pod1a.eth0.tx" and way[2:4] == ["node1.tunl0.tx", "node1.eth0.tx"] and way[-1] == "pod2a.eth0.rx"
    tunnelled(trace(made, "pod1b", "pod2b", "udp"), "tunl0")


def test_calico_ipip_is_recognised(lab_name: str) -> None:
    kinds.need("ipip")
    made = lab.up("calico-ipip", lab_name, echo=False)
    assert recognised(made) == {node.netns: [("calico", "ipip")] for node in made.nodes}


def test_calico_crosses_subnets_by_the_tunnel_only(lab_name: str) -> None:
    kinds.need("ipip")
    made = lab.up("calico-ipip-crosssubnet", lab_name, nodes=3, pods_per_node=1)
    assert recognised(made)[made.node("node1").netns] == [("calico", "ipip+crosssubnet")]
    plain = only(trace(made, "pod1a", "pod2a"), "forward")
    assert "tunl0" not in {hop.device.name for hop in plain.hops} and plain.outcome == "delivered"
    tunnelled(trace(made, "pod1a", "pod3a"), "tunl0", "node3")


def test_flannel_ipip_over_a_vlan(lab_name: str) -> None:
    """The backend's device over a VLAN sub-interface: both are on the path."""
    kinds.need("ipip")
    kinds.need("vlan")
    made = lab.up("flannel-ipip", lab_name, underlay_vlan=77)
    (tunnel,) = read(made.node("node1").netns, "ip", "-j", "-d", "link", "show", "flannel.ipip")
    assert tunnel["linkinfo"]["info_data"]["local"] == made.node("node1").address and tunnel["mtu"] == 1480
    result = trace(made, "pod1a", "pod2a")
    path = only(result, "forward")
    assert result.trace.outcome == result.trace.prediction.outcome == "delivered"
    way = devices(path)
    start = way.index("node1.flannel.ipip.tx")
    assert way[start + 1 : start + 3] == ["node1.eth0.tx", "node1.trunk0.tx"]
    tagged = path.hops[start + 2]
    assert [header.proto for header in tagged.headers][:2] == ["ethernet", "vlan"]
    # Above its own device a VLAN's tag is off: the kernel takes it before the hook, and that hop is predicted.
    assert [hop.device.name for hop in path.hops if hop.status != "observed"] in ([], ["eth0"])
    assert recognised(made)[made.node("node1").netns] == [("flannel", "ipip")]


def test_a_tunnel_that_nobody_unwraps_is_found(lab_name: str) -> None:
    """Down at the far end: the packet ends there, and prediction says so too."""
    kinds.need("ipip")
    made = lab.up("calico-ipip", lab_name)
    Space(made.node("node2").netns).ip("link", "set", "tunl0", "down")
    result = trace(made, "pod1a", "pod2a")
    path = only(result, "forward")
    assert result.trace.outcome == result.trace.prediction.outcome == "dropped"
    assert path.hops[-1].netns.name == made.node("node2").netns and path.hops[-1].device.name == "eth0"
