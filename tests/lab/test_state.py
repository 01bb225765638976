"""A lab's kernel state is that of a node where the real components ran.

The expectations are what was read on such nodes: flanneld 0.20.2 with the CNI bridge plugin 1.1.1 and host-local, two nodes.
"""

from __future__ import annotations

from typing import Any

import pytest

from netpath import lab
from netpath.lab import Lab
from tests.lab import kinds
from tests.lab.helpers import read, rules
from tests.netns import Netns

pytestmark = pytest.mark.root

MASQ = '-m comment --comment "flanneld masq"'
FORWARD = '-m comment --comment "flanneld forward"'


def links(netns: str) -> dict[str, Any]:
    return {link["ifname"]: link for link in read(netns, "ip", "-d", "-j", "link")}


def addresses(netns: str) -> dict[str, list[tuple[str, int, str | None]]]:
    return {
        link["ifname"]: [
            (entry["local"], entry["prefixlen"], entry.get("broadcast")) for entry in link["addr_info"] if entry["family"] == "inet"
        ]
        for link in read(netns, "ip", "-j", "addr")
    }


def routes(netns: str, table: str = "main") -> set[tuple[Any, ...]]:
    return {
        (
            route["dst"],
            route.get("gateway"),
            route["dev"],
            route["protocol"],
            route["scope"],
            route.get("prefsrc"),
            tuple(route["flags"]),
        )
        for route in read(netns, "ip", "-4", "-j", "-d", "route", "show", "table", table)
    }


def check_node_rules(netns: str, subnet: str) -> None:
    tables = rules(netns)
    assert tables["filter"] == [
        ":INPUT ACCEPT",
        ":FORWARD ACCEPT",
        ":OUTPUT ACCEPT",
        ":FLANNEL-FWD -",
        f"-A FORWARD {FORWARD} -j FLANNEL-FWD",
        f"-A FLANNEL-FWD -s 10.244.0.0/16 {FORWARD} -j ACCEPT",
        f"-A FLANNEL-FWD -d 10.244.0.0/16 {FORWARD} -j ACCEPT",
    ]
    assert tables["nat"] == [
        ":PREROUTING ACCEPT",
        ":INPUT ACCEPT",
        ":OUTPUT ACCEPT",
        ":POSTROUTING ACCEPT",
        ":FLANNEL-POSTRTG -",
        f"-A POSTROUTING {MASQ} -j FLANNEL-POSTRTG",
        f"-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {MASQ} -j RETURN",
        f"-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.0.0/16 {MASQ} -j RETURN",
        f"-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 {MASQ} -j MASQUERADE --random-fully",
        f"-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d {subnet} {MASQ} -j RETURN",
        f"-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 {MASQ} -j MASQUERADE --random-fully",
    ]
    assert set(tables) == {"filter", "nat"}


def check_pods(made: Lab, mtu: int) -> None:
    for number, node in enumerate(made.nodes, start=1):
        on_node = links(node.netns)
        ports = [link for link in on_node.values() if link.get("master") == "cni0"]
        assert len(ports) == 2
        for port in ports:
            assert port["linkinfo"]["info_kind"] == "veth"
            data = port["linkinfo"]["info_slave_data"]
            assert (data["state"], data["hairpin"], data["learning"], data["flood"]) == ("forwarding", True, True, True)
            assert (port["mtu"], port.get("txqlen", 0), port["promiscuity"]) == (mtu, 0, 1)
        bridge = on_node["cni0"]
        # Not some time later: a bridge whose state lags looks as if it were down.
        assert (bridge["mtu"], bridge["operstate"]) == (mtu, "UP")
        assert "NO-CARRIER" not in bridge["flags"]
        data = bridge["linkinfo"]["info_data"]
        assert (data["stp_state"], data["vlan_filtering"], data["ageing_time"], data["nf_call_iptables"]) == (0, 0, 30000, 0)
        assert addresses(node.netns)["cni0"] == [(f"10.244.{number}.1", 24, f"10.244.{number}.255")]
        for position, pod in enumerate(pod for pod in made.pods if pod.node == node.name):
            in_pod = links(pod.netns)
            assert set(in_pod) == {"lo", "eth0"}
            assert (in_pod["eth0"]["ifindex"], in_pod["eth0"]["mtu"], in_pod["eth0"]["link_netnsid"]) == (2, mtu, 0)
            assert addresses(pod.netns)["eth0"] == [(f"10.244.{number}.{2 + position}", 24, f"10.244.{number}.255")]
            assert pod.address == f"10.244.{number}.{2 + position}"
            gateway = f"10.244.{number}.1"
            assert routes(pod.netns) == {
                ("default", gateway, "eth0", "boot", "global", None, ()),
                ("10.244.0.0/16", gateway, "eth0", "boot", "global", None, ()),
                (f"10.244.{number}.0/24", None, "eth0", "kernel", "link", pod.address, ()),
            }
            assert Netns(pod.netns).run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "0"
            assert rules(pod.netns) == {}


def check_fabric(made: Lab) -> None:
    fabric = links(f"{made.name}-fabric")
    assert (fabric["br0"]["mtu"], fabric["br0"]["operstate"]) == (1500, "UP")
    assert fabric["br0"]["linkinfo"]["info_kind"] == "bridge"
    ports = [link for link in fabric.values() if link.get("master") == "br0"]
    assert [port["linkinfo"]["info_slave_data"]["hairpin"] for port in ports] == [False, False]
    assert {link["ifname"] for link in fabric.values()} == {"lo", "br0", *(port["ifname"] for port in ports)}


def check_node_base(netns: str, number: int) -> None:
    assert addresses(netns)["eth0"] == [(f"192.168.50.{10 + number}", 24, None)]
    assert Netns(netns).run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"
    for device in ("all", "default", "eth0", "cni0"):
        names = [
            f"net.ipv4.conf.{device}.{key}" for key in ("forwarding", "rp_filter", "route_localnet", "proxy_arp", "accept_local")
        ]
        assert Netns(netns).run("sysctl", "-n", *names).split() == ["1", "0", "0", "0", "0"]
    assert [(rule["priority"], rule["table"]) for rule in read(netns, "ip", "-j", "rule")] == [
        (0, "local"),
        (32766, "main"),
        (32767, "default"),
    ]


def test_flannel_vxlan_is_the_recorded_state(lab_name: str) -> None:
    made = lab.up("flannel-vxlan", lab_name)
    macs = {node.name: links(node.netns)["flannel.1"]["address"] for node in made.nodes}
    for number, node in enumerate(made.nodes, start=1):
        other, peer = 3 - number, f"node{3 - number}"
        found = links(node.netns)
        assert [name if not name.startswith("veth") else "veth" for name in found] == [
            "lo",
            "eth0",
            "flannel.1",
            "cni0",
            "veth",
            "veth",
        ]
        assert [link["ifindex"] for link in found.values()] == [1, 2, 3, 4, 5, 6]
        tunnel = found["flannel.1"]
        assert (tunnel["mtu"], tunnel.get("txqlen", 0), tunnel["operstate"]) == (1450, 0, "UNKNOWN")
        assert tunnel["linkinfo"] == {
            "info_kind": "vxlan",
            "info_data": {
                "id": 1,
                "local": f"192.168.50.{10 + number}",
                "link": "eth0",
                "port_range": {"low": 0, "high": 0},
                "port": 8472,
                "learning": False,
                "ttl": 0,
                "df": "unset",
                "ageing": 300,
                "udp_csum": True,
                "udp_zero_csum6_tx": False,
                "udp_zero_csum6_rx": False,
            },
        }
        assert addresses(node.netns)["flannel.1"] == [(f"10.244.{number}.0", 32, None)]
        assert routes(node.netns) == {
            ("default", "192.168.50.1", "eth0", "boot", "global", None, ()),
            (f"10.244.{number}.0/24", None, "cni0", "kernel", "link", f"10.244.{number}.1", ()),
            (f"10.244.{other}.0/24", f"10.244.{other}.0", "flannel.1", "boot", "global", None, ("onlink",)),
            ("192.168.50.0/24", None, "eth0", "kernel", "link", f"192.168.50.{10 + number}", ()),
        }
        neighbours = read(node.netns, "ip", "-4", "-j", "neigh", "show", "nud", "permanent")
        assert neighbours == [{"dst": f"10.244.{other}.0", "dev": "flannel.1", "lladdr": macs[peer], "state": ["PERMANENT"]}]
        assert read(node.netns, "bridge", "-j", "fdb", "show", "dev", "flannel.1") == [
            {"mac": macs[peer], "dst": f"192.168.50.{10 + other}", "flags": ["self"], "state": "permanent"}
        ]
        check_node_base(node.netns, number)
        check_node_rules(node.netns, f"10.244.{number}.0/24")
    check_pods(made, 1450)
    check_fabric(made)


def test_flannel_dual_stack(lab_name: str) -> None:
    """The second tunnel is like the first, with the same VNI and port; and the IPv4 side is as without it."""
    made = lab.up("flannel-vxlan", lab_name, ipv6=True)
    macs = {node.name: links(node.netns)["flannel-v6.1"]["address"] for node in made.nodes}
    for number, node in enumerate(made.nodes, start=1):
        other = 3 - number
        tunnel = links(node.netns)["flannel-v6.1"]
        data = tunnel["linkinfo"]["info_data"]
        assert (data["id"], data["port"], data["learning"], data["local6"]) == (
            1,
            8472,
            False,
            f"fd00:192:168:50::{10 + number + 6:x}",
        )
        # IPv6's header is 20 bytes longer than IPv4's.
        assert tunnel["mtu"] == 1430
        table = read(node.netns, "ip", "-6", "-j", "route", "show", "dev", "flannel-v6.1")
        far = [route for route in table if route.get("gateway")]
        assert [(route["dst"], route["gateway"], route["flags"]) for route in far] == [
            (f"fd00:10:244:{other}::/64", f"fd00:10:244:{other}::", ["onlink"])
        ]
        assert read(node.netns, "ip", "-6", "-j", "neigh", "show", "nud", "permanent", "dev", "flannel-v6.1") == [
            {"dst": f"fd00:10:244:{other}::", "lladdr": macs[f"node{other}"], "state": ["PERMANENT"]}
        ]
        tables = rules(node.netns, "ip6tables-nft")
        assert [line for line in tables["nat"] if "MASQUERADE" in line and "ff00::/8" in line]
        check_node_rules(node.netns, f"10.244.{number}.0/24")
        assert Netns(node.netns).run("sysctl", "-n", "net.ipv6.conf.all.forwarding").strip() == "1"
    for pod in made.pods:
        found = [entry for link in read(pod.netns, "ip", "-6", "-j", "addr") for entry in link["addr_info"]]
        assert not [entry for entry in found if entry.get("tentative") or entry.get("dadfailed")]
    check_pods(made, 1450)


def test_flannel_hostgw_is_the_recorded_state(lab_name: str) -> None:
    made = lab.up("flannel-hostgw", lab_name)
    for number, node in enumerate(made.nodes, start=1):
        other = 3 - number
        assert [name if not name.startswith("veth") else "veth" for name in links(node.netns)] == [
            "lo",
            "eth0",
            "cni0",
            "veth",
            "veth",
        ]
        assert routes(node.netns) == {
            ("default", "192.168.50.1", "eth0", "boot", "global", None, ()),
            (f"10.244.{number}.0/24", None, "cni0", "kernel", "link", f"10.244.{number}.1", ()),
            (f"10.244.{other}.0/24", f"192.168.50.{10 + other}", "eth0", "boot", "global", None, ()),
            ("192.168.50.0/24", None, "eth0", "kernel", "link", f"192.168.50.{10 + number}", ()),
        }
        check_node_base(node.netns, number)
        check_node_rules(node.netns, f"10.244.{number}.0/24")
    check_pods(made, 1500)
    check_fabric(made)


def test_a_plain_bridge_has_no_rules(lab_name: str) -> None:
    made = lab.up("bridge", lab_name)
    for number, node in enumerate(made.nodes, start=1):
        assert rules(node.netns) == {}
        assert (f"10.244.{3 - number}.0/24", f"192.168.50.{13 - number}", "eth0", "boot", "global", None, ()) in routes(node.netns)
        check_node_base(node.netns, number)


def test_options_reach_the_kernel(lab_name: str) -> None:
    made = lab.up(
        "flannel-vxlan",
        lab_name,
        vni=4711,
        port=4789,
        tunnel="ovl-x",
        bridge="brätz0",
        uplink="ens7",
        pod_device="net1",
        pod_network="172.20.0.0/15",
        underlay="10.1.0.0/20",
        underlay_mtu=9000,
        pods_per_node=3,
        nodes=3,
        hairpin=False,
        masquerade=False,
    )
    assert [node.name for node in made.nodes] == ["node1", "node2", "node3"]
    assert len(made.pods) == 9
    found = links(made.node("node3").netns)
    assert set(found) >= {"ovl-x", "brätz0", "ens7"}
    assert (found["ovl-x"]["mtu"], found["ens7"]["mtu"]) == (8950, 9000)
    data = found["ovl-x"]["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["local"], data["link"]) == (4711, 4789, "10.1.0.13", "ens7")
    assert len(read(made.node("node3").netns, "bridge", "-j", "fdb", "show", "dev", "ovl-x")) == 2
    assert set(links(made.pod("pod3c").netns)) == {"lo", "net1"}
    assert made.pod("pod3c").address == "172.20.3.4"
    assert rules(made.node("node3").netns) == {}
    ports = [link for link in found.values() if link.get("master") == "brätz0"]
    assert [port["linkinfo"]["info_slave_data"]["hairpin"] for port in ports] == [False] * 3


def test_flannel_udp_is_the_recorded_state(lab_name: str) -> None:
    made = lab.up("flannel-udp", lab_name)
    for number, node in enumerate(made.nodes, start=1):
        tunnel = links(node.netns)["flannel0"]
        assert tunnel["flags"] == ["POINTOPOINT", "MULTICAST", "NOARP", "UP", "LOWER_UP"]
        assert (tunnel["ifindex"], tunnel["mtu"], tunnel["txqlen"], tunnel["link_type"]) == (3, 1472, 500, "none")
        assert tunnel["linkinfo"]["info_data"] == {
            "type": "tun",
            "pi": False,
            "vnet_hdr": False,
            "multi_queue": False,
            "persist": False,
        }
        assert addresses(node.netns)["flannel0"] == [(f"10.244.{number}.0", 32, None)]
        assert routes(node.netns) == {
            ("default", "192.168.50.1", "eth0", "boot", "global", None, ()),
            ("10.244.0.0/16", None, "flannel0", "boot", "global", None, ()),
            (f"10.244.{number}.0/24", None, "cni0", "kernel", "link", f"10.244.{number}.1", ()),
            ("192.168.50.0/24", None, "eth0", "kernel", "link", f"192.168.50.{10 + number}", ()),
        }
        check_node_base(node.netns, number)
        check_node_rules(node.netns, f"10.244.{number}.0/24")
    check_pods(made, 1472)
    check_fabric(made)


def test_calico_bgp_is_the_recorded_state(lab_name: str) -> None:
    made = lab.up("calico-bgp", lab_name)
    for number, node in enumerate(made.nodes, start=1):
        other = 3 - number
        found = links(node.netns)
        first, second = (name for name in found if name.startswith("cali"))
        assert set(found) == {"lo", "eth0", first, second}
        pods = [pod.address for pod in made.pods if pod.node == node.name]
        assert pods == [f"10.244.{number}.65", f"10.244.{number}.66"]
        table = read(node.netns, "ip", "-4", "-j", "-d", "route")
        assert [(route["dst"], route["protocol"]) for route in table if route["type"] == "blackhole"] == [
            (f"10.244.{number}.64/26", "bird")
        ]
        expected = {
            ("default", "192.168.50.1", "eth0", "boot", "global", None, ()),
            (pods[0], None, first, "boot", "link", None, ()),
            (pods[1], None, second, "boot", "link", None, ()),
            (f"10.244.{other}.64/26", f"192.168.50.{10 + other}", "eth0", "bird", "global", None, ()),
            ("192.168.50.0/24", None, "eth0", "kernel", "link", f"192.168.50.{10 + number}", ()),
        }
        unicast = {
            (
                route["dst"],
                route.get("gateway"),
                route["dev"],
                route["protocol"],
                route["scope"],
                route.get("prefsrc"),
                tuple(route["flags"]),
            )
            for route in table
            if route["type"] == "unicast"
        }
        assert unicast == expected
        for device in (first, second):
            assert found[device]["address"] == "ee:ee:ee:ee:ee:ee"
            assert (found[device]["txqlen"], found[device]["mtu"]) == (1000, 1500)
            keys = [f"net.ipv4.conf.{device}.{key}" for key in ("proxy_arp", "rp_filter", "forwarding", "route_localnet")]
            assert Netns(node.netns).run("sysctl", "-n", *keys).split() == ["1", "1", "1", "0"]
            assert not [
                entry for link in read(node.netns, "ip", "-j", "addr") if link["ifname"] == device for entry in link["addr_info"]
            ]
        assert rules(node.netns) == {}
    pod = made.pod("pod1a")
    assert addresses(pod.netns)["eth0"] == [("10.244.1.65", 32, None)]
    assert routes(pod.netns) == {
        ("default", "169.254.1.1", "eth0", "boot", "global", None, ()),
        ("169.254.1.1", None, "eth0", "boot", "link", None, ()),
    }


def test_calico_vxlan_is_the_recorded_state(lab_name: str) -> None:
    """As recorded, but for the pods' MTU: there 1500, here what Calico's own detection gives."""
    made = lab.up("calico-vxlan", lab_name)
    macs = {node.name: links(node.netns)["vxlan.calico"]["address"] for node in made.nodes}
    for number, node in enumerate(made.nodes, start=1):
        other = 3 - number
        tunnel = links(node.netns)["vxlan.calico"]
        assert (tunnel["mtu"], tunnel["txqlen"]) == (1450, 1000)
        data = tunnel["linkinfo"]["info_data"]
        assert (data["id"], data["port"], data["learning"], data["local"]) == (4096, 4789, False, f"192.168.50.{10 + number}")
        assert addresses(node.netns)["vxlan.calico"] == [(f"10.244.{number}.64", 32, None)]
        table = read(node.netns, "ip", "-4", "-j", "-d", "route")
        assert [(route["dst"], route["protocol"]) for route in table if route["type"] == "blackhole"] == [
            (f"10.244.{number}.64/26", "80")
        ]
        assert [
            (route["dst"], route["gateway"], route["protocol"], route["flags"])
            for route in table
            if route.get("dev") == "vxlan.calico"
        ] == [(f"10.244.{other}.64/26", f"10.244.{other}.64", "80", ["onlink"])]
        assert read(node.netns, "ip", "-4", "-j", "neigh", "show", "nud", "permanent") == [
            {"dst": f"10.244.{other}.64", "dev": "vxlan.calico", "lladdr": macs[f"node{other}"], "state": ["PERMANENT"]}
        ]
        assert read(node.netns, "bridge", "-j", "fdb", "show", "dev", "vxlan.calico") == [
            {"mac": macs[f"node{other}"], "dst": f"192.168.50.{10 + other}", "flags": ["self"], "state": "permanent"}
        ]
    assert links(made.pod("pod1a").netns)["eth0"]["mtu"] == 1450


def test_ptp_has_what_the_plugin_makes(lab_name: str) -> None:
    kinds.need("plugins")
    made = lab.up("ptp", lab_name)
    node = made.node("node1").netns
    veths = [name for name in links(node) if name.startswith("veth")]
    assert [addresses(node)[name] for name in veths] == [[("10.244.1.1", 32, None)]] * 2
    for name, address in zip(veths, ("10.244.1.2", "10.244.1.3"), strict=True):
        assert (address, None, name, "boot", "host", None, ()) in routes(node)
    assert routes(made.pod("pod1a").netns) == {
        ("default", "10.244.1.1", "eth0", "boot", "global", None, ()),
        ("10.244.1.0/24", "10.244.1.1", "eth0", "boot", "global", "10.244.1.2", ()),
        ("10.244.1.1", None, "eth0", "boot", "link", "10.244.1.2", ()),
    }
