"""What a Linux bridge does with a frame: VLAN classification, forwarding entry or flood, which ports may send it.

Sources: net/bridge/br_input.c, br_forward.c, br_vlan.c, br_fdb.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote

from netpath.model.snapshot import BridgeVlan, Link
from netpath.predict import addresses as ip
from netpath.predict.host import Host
from netpath.predict.packet import TPIDS, Tags


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a bridge sends a frame: to one `port`, up to the host (`local`), or to every one of `flood`."""

    vid: int
    tags: Tags
    port: Link | None = None
    local: bool = False
    flood: tuple[Link, ...] = ()
    refused: str | None = None
    """Why the frame is dropped on the way in, in plain words."""
    remedy: str | None = None


def _member(link: Link, vid: int) -> BridgeVlan | None:
    return next((vlan for vlan in link.vlans if vlan.vid == vid), None)


def decide(
    host: Host, bridge: Link, port: Link | None, mac: str, tags: Tags, learned: dict[tuple[int, int, int, str], int] | None = None
) -> Decision:
    """`port` is where the frame came in, None for what the host itself sends through the bridge device.

    `learned` are entries that the same exchange taught the bridge since the snapshot: (netns, bridge, VLAN, MAC) -> port.
    """
    vid = 0
    if port is not None and port.port is not None and port.port.state != "forwarding":
        return Decision(
            0,
            tags,
            refused=f"port {port.name} is in state {port.port.state}",
            remedy=f"bridge link set dev {quote(port.name)} state 3",
        )
    if bridge.bridge is not None and bridge.bridge.vlan_filtering:
        side = port if port is not None else bridge
        tpid = TPIDS.get(bridge.bridge.vlan_protocol, 0x8100)
        if tags and tags[0][0] == tpid and tags[0][1]:
            vid = tags[0][1]
        else:
            pvid = next((vlan.vid for vlan in side.vlans if vlan.pvid), None)
            own = "" if port is not None else " self"
            if pvid is None:
                return Decision(
                    0,
                    tags,
                    refused=f"{side.name} takes no untagged frames (no PVID)",
                    remedy=f"bridge vlan add dev {quote(side.name)} vid VLAN pvid untagged{own}",
                )
            vid = pvid
            tags = ((tpid, vid), *(tags[1:] if tags and tags[0][0] == tpid else tags))
        if _member(side, vid) is None:
            own = "" if port is not None else " self"
            return Decision(
                0,
                tags,
                refused=f"{side.name} is not a member of VLAN {vid}",
                remedy=f"bridge vlan add dev {quote(side.name)} vid {vid}{own}",
            )
    if ip.is_group_mac(mac):
        return Decision(vid, tags, flood=tuple(flood_ports(host, bridge, port, vid, mac)), local=port is not None)
    taught = learned.get((host.inode, bridge.ifindex, vid, mac)) if learned else None
    entry = host.bridge_entry(bridge.ifindex, mac, vid)
    if taught is not None and (entry is None or entry.state not in ("permanent", "static")):
        target = host.links.get(taught)
        if target is not None:
            return Decision(vid, tags, port=target)
    if entry is not None:
        if entry.state == "permanent" or entry.device == bridge.ifindex:
            # br_dev_xmit does not ask whether the entry is local: what the host sends to a port's own MAC leaves by that port.
            out = host.links.get(entry.device) if port is None else None
            return Decision(
                vid, tags, port=out if out is not None and out.master == bridge.ifindex else None, local=port is not None
            )
        target = host.links.get(entry.device)
        if target is not None and target.master == bridge.ifindex:
            return Decision(vid, tags, port=target)
    if port is not None and not (vid and host.bridge_fdb_known(bridge.ifindex)) and mac in _own_macs(host, bridge):
        # A snapshot may lack the bridge's local entries; without VLANs they are the MACs of its ports and its own.
        return Decision(vid, tags, local=True)
    return Decision(vid, tags, flood=tuple(flood_ports(host, bridge, port, vid, mac)))


def _own_macs(host: Host, bridge: Link) -> Iterator[str]:
    for link in (bridge, *host.ports[bridge.ifindex]):
        if link.mac is not None:
            yield link.mac.lower()


def flood_ports(host: Host, bridge: Link, port: Link | None, vid: int, mac: str) -> Iterator[Link]:
    for target in host.ports[bridge.ifindex]:
        switches = target.port
        if switches is not None:
            if mac == ip.BROADCAST_MAC:
                wanted = switches.bcast_flood or port is None
            elif ip.is_group_mac(mac):
                wanted = switches.mcast_flood or port is None
            else:
                wanted = switches.flood
            if not wanted:
                continue
        if refusal(bridge, port, target, vid) is None:
            yield target


def refusal(bridge: Link, port: Link | None, target: Link, vid: int) -> tuple[str, str] | None:
    """(cause, remedy) when `target` may not send what came in by `port` (should_deliver); None when it may."""
    switches = target.port
    if port is not None and target.ifindex == port.ifindex and (switches is None or not switches.hairpin):
        return (
            f"the way out is the port it came in by ({target.name}), and hairpin mode is off",
            f"bridge link set dev {quote(target.name)} hairpin on",
        )
    if switches is not None and switches.state != "forwarding":
        return f"port {target.name} is in state {switches.state}", f"bridge link set dev {quote(target.name)} state 3"
    if vid and _member(target, vid) is None:
        return f"{target.name} is not a member of VLAN {vid}", f"bridge vlan add dev {quote(target.name)} vid {vid}"
    if port is not None and port.port is not None and port.port.isolated and switches is not None and switches.isolated:
        return (
            f"{port.name} and {target.name} are isolated from each other",
            f"bridge link set dev {quote(target.name)} isolated off",
        )
    return None


def leave(side: Link, vid: int, tags: Tags) -> Tags | None:
    """The tags of a frame of VLAN `vid` as it leaves by `side` (a port, or the bridge itself upwards); None: no member."""
    if not vid:
        return tags
    member = _member(side, vid)
    if member is None:
        return None
    return tags[1:] if member.untagged else tags
