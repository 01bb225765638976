"""Weave Net: a bridge that the router taps. Fast datapath: Open vSwitch and VXLAN on UDP 6784. Sleeve: pcap and UDP 6783.

Marks from weave's net/bridge.go and router: bridge `weave`; the fast datapath joins it to the switch `datapath` by the pair
vethwe-bridge/vethwe-datapath and carries frames over `vxlan-6784` (metadata mode); sleeve hangs the pair vethwe-bridge/vethwe-pcap
on it, whose far end has no address and no master, and the router `weaver` relays what it captures there over UDP port 6783.
"""

from __future__ import annotations

from netpath.cni.view import Datapath, NodeView, Signs
from netpath.model.snapshot import Link

NAME = "weave"
CONTROL_PORT = 6783
FASTDP_PORT = 6784


def recognise(view: NodeView) -> tuple[Datapath, ...]:
    signs = Signs()
    bridge = next((bridge for bridge in view.of_kind("bridge") if bridge.name == "weave"), None)
    signs.add_if(bridge, 0.5, "a bridge is called weave")
    signs.add_if("weaver" in view.processes, 0.6, "weaver holds a socket")
    router = any(s.protocol == "udp" and s.port == CONTROL_PORT for s in view.node.sockets or ())
    signs.add_if(router, 0.4, f"a socket is bound to UDP port {CONTROL_PORT}")
    signs.add_if(view.chain("WEAVE-"), 0.5, f"chain {view.chain('WEAVE-')}")
    signs.add_if("weave-net" in view.cni_types, 0.5, f"{view.cni_types.get('weave-net')} names the weave-net plugin")
    status = view.files.get("weave-status.txt", "")
    signs.add_if("Protocol: weave" in status, 0.5, "weave status")

    switch = next((link for link in view.node.links if link.kind == "openvswitch"), None)
    tunnel = next((link for link in view.of_kind("vxlan") if link.vxlan and link.vxlan.port == FASTDP_PORT), None)
    if tunnel is not None:
        signs.add(0.5, f"{tunnel.name} is a VXLAN device on UDP port {FASTDP_PORT}")
        signs.add_if(switch, 0.4, f"{switch.name if switch else ''} is an Open vSwitch datapath")
        return signs.datapath(NAME, "fastdp")
    tap = _tap(view)
    if tap is None or not (router or "weaver" in view.processes or bridge is not None):
        return ()
    signs.add(0.4, f"{tap.name} hangs off a bridge, with neither address nor master: what comes there is captured")
    signs.add_if(tap.name == "vethwe-pcap", 0.4, "it is called vethwe-pcap")
    signs.add_if(" sleeve " in status, 0.5, "weave status says sleeve")
    return signs.datapath(NAME, "sleeve")


def _tap(view: NodeView) -> Link | None:
    """The far end of a veth pair within the node whose near end is a bridge's port."""
    for link in view.of_kind("veth"):
        if link.master is not None or link.peer is None or link.peer.netns != view.node.inode:
            continue
        near = view.links.get(link.peer.ifindex)
        if near is not None and near.master is not None and not any(not text.startswith("fe80") for text in view.addresses(link)):
            return link
    return None
