"""Open vSwitch, as Weave's fast datapath has it: one opaque step on each node. No lab: these are snapshots made by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from netpath.cni import recognise
from netpath.discover.dump import read
from netpath.model.index import SnapshotIndex
from netpath.model.packet import Flow, Ipv4, Udp, VxlanHeader
from netpath.predict import predict
from tests import recordings
from tests.predict.build import Build, Ns, hops


def fast_datapath(nodes: int = 2) -> tuple[Build, list[Ns], list[Ns]]:
    """Nodes whose bridge `weave` is joined to the switch `datapath` by a veth pair, and a pod on each (weave, net/bridge.go)."""
    net = Build()
    made, pods = [], []
    fabric = net.ns("fabric")
    for number in range(1, nodes + 1):
        node, pod = net.ns(f"node{number}", forward=True), net.ns(f"pod{number}")
        net.wire(node, "eth0", fabric, f"p{number}")
        node.addr("eth0", f"192.0.2.{number}/24").route("0.0.0.0/0", via="192.0.2.254", dev="eth0")
        net.wire(pod, "eth0", node, f"vethwepl{number}", mtu=1376)
        pod.addr("eth0", f"10.32.{number}.2/12").listen("udp", 7777)
        net.wire(node, "vethwe-bridge", node, "vethwe-datapath", mtu=1376)
        node.bridge("weave", f"vethwepl{number}", "vethwe-bridge", mtu=1376)
        node.dev("datapath", "openvswitch", mtu=1376)
        node.vxlan("vxlan-6784", 0, port=6784, external=True, learning=False, mtu=65535)
        for port in ("vethwe-datapath", "vxlan-6784"):
            node.change(port, master=node.index("datapath"))
        node.listen("udp", 6784)
        made.append(node)
        pods.append(pod)
    fabric.bridge("br0", *(f"p{number}" for number in range(1, nodes + 1)))
    return net, made, pods


def test_between_nodes_two_opaque_steps() -> None:
    net, _, pods = fast_datapath(3)
    path = net.only(pods[0].flow("10.32.2.2"))
    assert hops(path) == [
        "pod1.eth0.tx",
        "node1.vethwepl1.rx",
        "node1.vethwe-bridge.tx",
        "node1.vethwe-datapath.rx",
        "node1.vxlan-6784.tx",
        "node1.eth0.tx",
        "fabric.p1.rx",
        "fabric.p2.tx",
        "node2.eth0.rx",
        "node2.vxlan-6784.rx",
        "node2.vethwe-datapath.tx",
        "node2.vethwe-bridge.rx",
        "node2.vethwepl2.tx",
        "pod2.eth0.rx",
    ]
    assert path.outcome == "delivered"
    plain, wire = path.hops[0], path.hops[5]
    assert wire.ip_length == plain.ip_length + 50
    outer = wire.headers
    assert [header.dst for header in outer if isinstance(header, Ipv4)] == ["192.0.2.2", "10.32.2.2"]
    assert next(header.dport for header in outer if isinstance(header, Udp)) == 6784
    assert any(isinstance(header, VxlanHeader) for header in outer)
    # What is guessed says so, once for each switch.
    assert [name for reason in path.uncertain for name in ("node1", "node2") if f"in {name} " in reason] == ["node1", "node2"]
    assert all("opaque" in reason for reason in path.uncertain)
    assert sum(stage.detail.get("opaque") is True for stage in path.stages) == 2


def test_on_one_node_the_switch_takes_no_part() -> None:
    net, nodes, pods = fast_datapath()
    third = net.ns("pod3")
    net.wire(third, "eth0", nodes[0], "vethwepl3", mtu=1376)
    third.addr("eth0", "10.32.1.3/12").listen("udp", 7777)
    nodes[0].plug("weave", "vethwepl3")
    path = net.only(pods[0].flow("10.32.1.3"))
    assert hops(path) == ["pod1.eth0.tx", "node1.vethwepl1.rx", "node1.vethwepl3.tx", "pod3.eth0.rx"]
    assert (path.outcome, path.uncertain) == ("delivered", ())


def test_a_destination_that_no_switch_knows() -> None:
    net, _, pods = fast_datapath()
    pods[0].neigh("eth0", "10.32.9.9", "02:99:99:99:99:99")
    path = net.only(pods[0].flow("10.32.9.9"))
    assert path.outcome == "uncertain" and hops(path)[-1] == "node1.vethwe-datapath.rx"


def test_an_address_that_nobody_seems_to_have_may_be_behind_the_switch() -> None:
    net, _, pods = fast_datapath()
    assert net.only(pods[0].flow("10.32.9.9")).outcome == "uncertain"


def test_a_tunnel_of_another_port_is_no_way() -> None:
    net, nodes, pods = fast_datapath()
    nodes[1].vxlan("vxlan-6784", 0, port=6785, external=True, learning=False)
    nodes[1].change("vxlan-6784", master=nodes[1].index("datapath"))
    pods[0].neigh("eth0", "10.32.2.2", pods[1].mac("eth0"))
    assert net.only(pods[0].flow("10.32.2.2")).outcome == "uncertain"


def as_fast_datapath(target: Path) -> Path:
    """The recording of sleeve, edited into what the same nodes have with Open vSwitch: iproute2's own JSON, as ip 6.1 prints it."""
    shutil.copytree(recordings.folder("weave-sleeve"), target)
    for node in ("fcn1", "fcn2"):
        file = target / node / "link.json"
        links = json.loads(file.read_text())
        tap = next(link for link in links if link["ifname"] == "vethwe-pcap")
        near = next(link for link in links if link["ifname"] == "vethwe-bridge")
        tap |= {"ifname": "vethwe-datapath", "master": "datapath"}
        tap["linkinfo"] = {**tap["linkinfo"], "info_slave_kind": "openvswitch"}
        for link in (tap, near):
            link["mtu"] = 1376
            if "link" in link:
                link["link"] = "vethwe-datapath" if link is near else "vethwe-bridge"
        common = {
            key: tap[key] for key in ("flags", "qdisc", "operstate", "linkmode", "group", "link_type", "broadcast", "promiscuity")
        }
        switch = {"ifindex": 90, "ifname": "datapath", "mtu": 1376, "address": "02:00:00:00:00:90", **common}
        tunnel = {
            "ifindex": 91,
            "ifname": "vxlan-6784",
            "mtu": 65535,
            "address": "02:00:00:00:00:91",
            "master": "datapath",
            **common,
        }
        switch["linkinfo"] = {"info_kind": "openvswitch"}
        tunnel["linkinfo"] = {
            "info_kind": "vxlan",
            "info_data": {"external": True, "vnifilter": False, "port": 6784, "learning": False, "ttl": 0},
            "info_slave_kind": "openvswitch",
        }
        file.write_text(json.dumps([*links, switch, tunnel]))
        for name in ("fdb.json", "neigh.json"):
            text = (target / node / name).read_text()
            (target / node / name).write_text(text.replace("vethwe-pcap", "vethwe-datapath"))
        status = target / node / "weave-status.txt"
        status.write_text(status.read_text().replace(" sleeve ", " fastdp "))
    return target


def test_a_dump_of_the_fast_datapath_is_recognised_and_one_opaque_step(tmp_path: Path) -> None:
    snapshot = read(as_fast_datapath(tmp_path / "dump"))
    index = SnapshotIndex(snapshot)
    found = recognise(snapshot, index)
    for node in ("fcn1", "fcn2"):
        assert [(known.cni, known.mode) for known in found[node]] == [("weave", "fastdp")]
        assert any("Open vSwitch" in line for line in found[node][0].evidence)
    pod = next(space for space in snapshot.namespaces if space.name == "fcp1a")
    (path,) = predict(snapshot, Flow(pod.inode, "10.40.0.0", "udp", sport=40001, dport=7071, payload=32), index=index).paths
    wire = [hop for hop in path.hops if hop.device.name == "eth0" and hop.netns.name == "fcn1"]
    assert [hop.ip_length for hop in wire] == [60 + 50]
    assert [hop.device.name for hop in path.hops if hop.netns.name == "fcn2"] == [
        "eth0",
        "vxlan-6784",
        "vethwe-datapath",
        "vethwe-bridge",
        "vethwepl2a",
    ]
    assert path.outcome == "delivered" and len([reason for reason in path.uncertain if "opaque" in reason]) == 2
