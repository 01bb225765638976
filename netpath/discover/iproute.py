"""What ``ip -d -j``, ``bridge -j -d``, ``ss``, ``conntrack -L`` and ``sysctl -a`` print, into the model.

The text comes from anywhere: every value is checked for its type and every address for its form before the model gets it, an item
that does not pass becomes a problem line, and what stands before the place where a file was cut off is kept.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from netpath.model.snapshot import (
    Address,
    Bridge,
    BridgePort,
    BridgeVlan,
    ConntrackEntry,
    FdbEntry,
    FlowTuple,
    IpTunnel,
    Link,
    Neighbour,
    NextHop,
    NextHopObject,
    Program,
    Route,
    Rule,
    Socket,
    Vxlan,
)

T = TypeVar("T")

TABLES: Mapping[str, int] = {"unspec": 0, "default": 253, "main": 254, "local": 255}
"""The names that iproute2 has built in (lib/rt_names.c)."""
MAX_PROBLEMS = 20
"""Problem lines kept of one file: a file of rubbish must not make a snapshot of rubbish."""

_WHITE = re.compile(r"[ \t\r\n]*")


class Bad(ValueError):
    """An item that can't be taken; the text says which value and why."""


@dataclass(slots=True)
class Names:
    """What turns the names of one namespace into numbers."""

    devices: dict[str, int] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=lambda: dict(TABLES))

    def device(self, name: Any) -> int:
        if not isinstance(name, str) or name not in self.devices:
            raise Bad(f"device {name!r} is not in link.json")
        return self.devices[name]

    def table(self, name: Any) -> int:
        if isinstance(name, int) and not isinstance(name, bool):
            return _range(name, 0, 0xFFFFFFFF, "table")
        if isinstance(name, str) and name.isascii() and name.isdecimal():
            return _range(int(name[:11]), 0, 0xFFFFFFFF, "table")
        if not isinstance(name, str) or name not in self.tables:
            raise Bad(f"routing table {name!r} has no known number (rt_tables is not in the dump)")
        return self.tables[name]


def json_items(text: str) -> tuple[list[dict[str, Any]], str | None]:
    """The objects of a JSON array, and what is wrong with the rest. Empty text is an empty array (the command printed nothing)."""
    if not text.strip():
        return [], None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _items_before_damage(text), f"not whole JSON: {_short(str(error))}"
    if not isinstance(document, list):
        return [], "not a JSON array"
    objects = [item for item in document if isinstance(item, dict)]
    return objects, None if len(objects) == len(document) else "holds more than objects"


def _items_before_damage(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    decoder = json.JSONDecoder()
    position = text.find("[") + 1
    if position == 0:
        return found
    try:
        while True:
            position = _skip(text, position)
            item, position = decoder.raw_decode(text, position)
            if isinstance(item, dict):
                found.append(item)
            position = _skip(text, position)
            if text[position : position + 1] != ",":
                return found
            position += 1
    except (ValueError, RecursionError):
        return found


def _skip(text: str, position: int) -> int:
    match = _WHITE.match(text, position)
    return match.end() if match else position


def collect(
    text: str, parse: Callable[[dict[str, Any]], Iterable[T]], problems: list[str], name: str, *, empty_is_item: bool = False
) -> tuple[T, ...]:
    """Every item of a JSON file that can be taken; problem lines for the others."""
    items, damage = json_items(text)
    lines: list[str] = [] if damage is None else [f"{name}: {damage}"]
    found: list[T] = []
    for item in items:
        if not item and not empty_is_item:
            continue  # iproute2 prints {} for what its own filter left out
        try:
            found.extend(parse(item))
        except (Bad, RecursionError) as error:
            lines.append(f"{name}: {error}")
    add_problems(problems, lines, name)
    return tuple(found)


def add_problems(problems: list[str], lines: list[str], name: str) -> None:
    problems.extend(lines[:MAX_PROBLEMS])
    if len(lines) > MAX_PROBLEMS:
        problems.append(f"{name}: {len(lines) - MAX_PROBLEMS} more problems")


# Values


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 120 else text[:117] + "..."


def _range(value: int, low: int, high: int, what: str) -> int:
    if not low <= value <= high:
        raise Bad(f"{what} {_short(str(value))} is out of range")
    return value


def _int(item: Mapping[str, Any], key: str, default: int | None = None, *, low: int = 0, high: int = 0xFFFFFFFF) -> int:
    value = item.get(key, default)
    if isinstance(value, str):
        try:
            value = int(value[:20], 0)
        except ValueError:
            raise Bad(f"{key} {_short(value)!r} is not a number") from None
    if value is None or isinstance(value, bool) or not isinstance(value, int):
        raise Bad(f"{key} is {'missing' if value is None else 'not a number'}")
    return _range(value, low, high, key)


def _opt_int(item: Mapping[str, Any], key: str, *, low: int = 0, high: int = 0xFFFFFFFF) -> int | None:
    return _int(item, key, low=low, high=high) if item.get(key) is not None else None


def _soft_int(item: Mapping[str, Any], key: str, default: int, high: int = 0xFFFFFFFF) -> int:
    """A number that iproute2 may print as a word ("inherit", "auto"): the word is the default."""
    try:
        return _int(item, key, default, high=high)
    except Bad:
        return default


def _str(item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise Bad(f"{key} is {'missing' if value is None else 'not text'}")
    return value


def _opt_str(item: Mapping[str, Any], key: str) -> str | None:
    return _str(item, key) if item.get(key) is not None else None


def _flag(item: Mapping[str, Any], key: str, default: bool) -> bool:
    """iproute2 prints flags as true/false, as 0/1 and as "on"/"off", differing by version and attribute."""
    value = item.get(key, default)
    if isinstance(value, str):
        return value in ("on", "true", "1")
    return bool(value) if isinstance(value, (bool, int)) else default


def _present(item: Mapping[str, Any], key: str) -> bool:
    """A key that iproute2 prints without a value (null) when the flag is set."""
    return key in item and item[key] is not False


def _words(item: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = item.get(key)
    if isinstance(value, str):
        return (value,)
    return tuple(word for word in value if isinstance(word, str)) if isinstance(value, list) else ()


def _objects(item: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The non-empty objects of a list."""
    value = item.get(key)
    return [entry for entry in value if isinstance(entry, dict) and entry] if isinstance(value, list) else []


def _mapping(item: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = item.get(key)
    return value if isinstance(value, dict) else {}


def family_of(address: str) -> int:
    """4 or 6; Bad when the text is no address (inet_pton, so no zones and no short forms)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.inet_pton(family, address)
    except (OSError, ValueError):
        raise Bad(f"{_short(address)!r} is not an address") from None
    return 6 if family == socket.AF_INET6 else 4


def _address(item: Mapping[str, Any], key: str, family: int | None = None) -> str:
    text = _str(item, key)
    if family not in (None, family_of(text)):
        raise Bad(f"{key} {text} is not of IPv{family}")
    return text


def _opt_address(item: Mapping[str, Any], *keys: str, family: int | None = None) -> str | None:
    for key in keys:
        value = item.get(key)
        if value is not None and value not in ("any", "0.0.0.0", "::", "unset"):
            return _address(item, key, family)
    return None


def prefix(text: str, family: int) -> str:
    """A route's or rule's prefix with its length, host bits as they are given (the kernel has none)."""
    if text in ("default", "all", "any"):
        return "0.0.0.0/0" if family == 4 else "::/0"
    address, slash, length = text.partition("/")
    if not slash:
        length = "32" if family == 4 else "128"
    try:
        network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    except ValueError:
        raise Bad(f"{_short(text)!r} is not a prefix") from None
    if network.version != family:
        raise Bad(f"{_short(text)!r} is not of IPv{family}")
    return str(network)


# ip -d -j link, ip -j addr


def links(text: str, problems: list[str], name: str = "link.json") -> tuple[Link, ...]:
    """The devices of a namespace; `peer` is left to whoever knows the other namespaces."""
    items, damage = json_items(text)
    lines: list[str] = [] if damage is None else [f"{name}: {damage}"]
    indices: dict[str, int] = {}
    for item in items:
        if isinstance(item.get("ifname"), str) and isinstance(item.get("ifindex"), int):
            indices.setdefault(item["ifname"], item["ifindex"])
    found: dict[int, Link] = {}
    for item in items:
        if not item:
            continue
        try:
            link = _link(item, indices)
        except (Bad, RecursionError) as error:
            lines.append(f"{name}: {error}")
            continue
        if link.ifindex in found:
            lines.append(f"{name}: ifindex {link.ifindex} twice")
        found.setdefault(link.ifindex, link)
    add_problems(problems, lines, name)
    return tuple(found[index] for index in sorted(found))


def _link(item: Mapping[str, Any], indices: Mapping[str, int]) -> Link:
    def by_name(mapping: Mapping[str, Any], key: str) -> int | None:
        value = mapping.get(key)
        if isinstance(value, str):
            return indices.get(value)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    name = _str(item, "ifname")
    if not name or "/" in name or len(name) > 64:
        raise Bad(f"{_short(name)!r} is not the name of a device")
    info = _mapping(item, "linkinfo")
    data = _mapping(info, "info_data")
    kind = _opt_str(info, "info_kind")
    link_type = _opt_str(item, "link_type") or "ether"
    if kind is None:
        kind = "loopback" if link_type == "loopback" else "physical"
    port = _mapping(info, "info_slave_data") if info.get("info_slave_kind") == "bridge" else None
    mode = None
    if kind in ("macvlan", "macvtap", "ipvlan", "ipvtap", "bond"):
        mode = _opt_str(data, "mode")
    elif kind == "tun":
        mode = _opt_str(data, "type")
    netnsid = _opt_int(item, "link_netnsid", low=-1, high=0x7FFFFFFF)
    return Link(
        ifindex=_int(item, "ifindex", low=1, high=0x7FFFFFFF),
        name=name,
        kind=kind,
        mac=_opt_str(item, "address") if link_type in ("ether", "loopback") else None,
        mtu=_int(item, "mtu", 0),
        flags=tuple(sorted(_words(item, "flags"))),
        operstate=_opt_str(item, "operstate") or "UNKNOWN",
        link_type=link_type,
        master=by_name(item, "master"),
        lower=by_name(item, "link") or by_name(item, "link_index"),
        lower_nsid=None if netnsid == -1 else netnsid,
        qdisc=_opt_str(item, "qdisc") or "noqueue",
        gso_max_size=_opt_int(item, "gso_max_size"),
        gso_max_segs=_opt_int(item, "gso_max_segs"),
        vlan_id=_opt_int(data, "id", high=4095) if kind == "vlan" else None,
        vlan_protocol=(_opt_str(data, "protocol") or "802.1Q") if kind == "vlan" else None,
        vxlan=_vxlan(data, by_name(data, "link")) if kind == "vxlan" else None,
        tunnel=_tunnel(data, by_name(data, "link"))
        if kind in ("ipip", "sit", "gre", "gretap", "ip6tnl", "ip6gre", "ip6gretap", "vti", "vti6", "erspan", "ip6erspan")
        else None,
        bridge=_bridge(data) if kind == "bridge" else None,
        port=_bridge_port(port, by_name(port, "backup_port")) if port is not None else None,
        mode=mode,
        vrf_table=_opt_int(data, "table") if kind == "vrf" else None,
        programs=_xdp(item),
    )


def _vxlan(data: Mapping[str, Any], link: int | None) -> Vxlan:
    return Vxlan(
        vni=_soft_int(data, "id", 0, 0xFFFFFF),
        port=_int(data, "port", 8472, high=0xFFFF),
        local=_opt_address(data, "local", "local6"),
        remote=_opt_address(data, "remote", "remote6", "group", "group6"),
        link=link,
        learning=_flag(data, "learning", True),
        ttl=_soft_int(data, "ttl", 0, 255),
        tos=_soft_int(data, "tos", 0, 255),
        df=_opt_str(data, "df") or "unset",
        udp_csum=_flag(data, "udp_csum", True),
        external=_flag(data, "external", False),
        vni_filter=_flag(data, "vnifilter", False),
        proxy=_flag(data, "proxy", False),
        l2miss=_flag(data, "l2miss", False),
        l3miss=_flag(data, "l3miss", False),
        rsc=_flag(data, "rsc", False),
    )


def _tunnel(data: Mapping[str, Any], link: int | None) -> IpTunnel:
    return IpTunnel(
        local=_opt_address(data, "local", "local6"),
        remote=_opt_address(data, "remote", "remote6"),
        ttl=_soft_int(data, "ttl", 0, 255),
        link=link,
        external=_flag(data, "external", False),
        pmtudisc=_flag(data, "pmtudisc", True),
    )


def _bridge(data: Mapping[str, Any]) -> Bridge:
    return Bridge(
        vlan_filtering=_flag(data, "vlan_filtering", False),
        vlan_protocol=_opt_str(data, "vlan_protocol") or "802.1Q",
        default_pvid=_int(data, "vlan_default_pvid", 1, high=4095),
        stp=bool(_soft_int(data, "stp_state", 0)),
        nf_call_iptables=_flag(data, "nf_call_iptables", False),
        nf_call_ip6tables=_flag(data, "nf_call_ip6tables", False),
        mcast_snooping=_flag(data, "mcast_snooping", True),
        group_fwd_mask=_soft_int(data, "group_fwd_mask", 0),
    )


def _bridge_port(data: Mapping[str, Any], backup: int | None) -> BridgePort:
    return BridgePort(
        state=_opt_str(data, "state") or "forwarding",
        hairpin=_flag(data, "hairpin", False),
        learning=_flag(data, "learning", True),
        flood=_flag(data, "flood", True),
        mcast_flood=_flag(data, "mcast_flood", True),
        bcast_flood=_flag(data, "bcast_flood", True),
        isolated=_flag(data, "isolated", False),
        neigh_suppress=_flag(data, "neigh_suppress", False),
        proxy_arp=_flag(data, "proxy_arp", False),
        backup_device=backup,
        locked=_flag(data, "locked", False),
    )


def _xdp(item: Mapping[str, Any]) -> tuple[Program, ...]:
    xdp = _mapping(item, "xdp")
    if not xdp:
        return ()
    attached = xdp.get("attached")
    entries = attached if isinstance(attached, list) else [xdp]
    programs = []
    for entry in entries:
        program = _mapping(entry, "prog") if isinstance(entry, dict) else {}
        number = program.get("id")
        name = program.get("name")
        programs.append(Program("xdp", number if isinstance(number, int) else None, name if isinstance(name, str) else ""))
    return tuple(programs)


def addresses(text: str, names: Names, problems: list[str], name: str = "addr.json") -> tuple[Address, ...]:
    def parse(item: dict[str, Any]) -> Iterable[Address]:
        device = names.device(item.get("ifname"))
        for entry in _objects(item, "addr_info"):
            yield _one_address(entry, device)

    return collect(text, parse, problems, name)


_ADDRESS_FLAGS = (
    "secondary", "temporary", "tentative", "deprecated", "dadfailed", "noprefixroute", "nodad", "optimistic", "home", "mngtmpaddr",
    "autojoin", "dynamic", "stable-privacy",
)  # fmt: skip


def _one_address(item: Mapping[str, Any], device: int) -> Address:
    local = _address(item, "local")
    family = family_of(local)
    flags = [flag for flag in _ADDRESS_FLAGS if _flag(item, flag, False)]
    # iproute2 has no word for IFA_F_PERMANENT: it prints "dynamic" for what lacks it.
    if "dynamic" in flags:
        flags.remove("dynamic")
    else:
        flags.append("permanent")
    peer = item.get("address")
    return Address(
        device=device,
        family=family,
        address=local,
        prefixlen=_int(item, "prefixlen", high=32 if family == 4 else 128),
        scope=_opt_str(item, "scope") or "global",
        peer=_address(item, "address", family) if isinstance(peer, str) and peer != local else None,
        broadcast=_opt_address(item, "broadcast", family=family),
        flags=tuple(sorted(flags)),
    )


# ip -j -d route, ip -j rule, ip -j nexthop


def routes(text: str, family: int, names: Names, problems: list[str], name: str) -> tuple[Route, ...]:
    def parse(item: dict[str, Any]) -> Iterable[Route]:
        return (_route(item, family, names),)

    return collect(text, parse, problems, name)


def _route(item: Mapping[str, Any], family: int, names: Names) -> Route:
    flags = _words(item, "flags")
    nexthops: list[NextHop] = []
    several = _objects(item, "nexthops")
    if several:
        nexthops = [_nexthop(hop, names, ()) for hop in several]
    elif any(item.get(key) is not None for key in ("dev", "gateway", "via")):
        nexthops = [_nexthop(item, names, flags)]
    mtu = None
    for metric in _objects(item, "metrics"):
        if metric.get("mtu") is not None:
            mtu = _int(metric, "mtu")
    source = item.get("from")
    return Route(
        family=family,
        table=names.table(item.get("table", "main")),
        destination=prefix(_str(item, "dst"), family),
        type=_opt_str(item, "type") or "unicast",
        metric=_int(item, "metric", 0),
        tos=_soft_int(item, "tos", 0, 255),
        scope=_opt_str(item, "scope") or "global",
        protocol=_opt_str(item, "protocol") or "boot",
        preferred_source=_opt_address(item, "prefsrc"),
        source=prefix(source, family) if isinstance(source, str) and source not in ("all", "default") else None,
        nexthops=tuple(nexthops),
        nexthop_id=_opt_int(item, "nhid"),
        mtu=mtu,
        flags=() if nexthops else tuple(sorted(flags)),
    )


def _nexthop(item: Mapping[str, Any], names: Names, flags: tuple[str, ...]) -> NextHop:
    gateway = _opt_str(item, "gateway")
    if gateway is None:
        gateway = _opt_str(_mapping(item, "via"), "host")
    if gateway is not None:
        family_of(gateway)
    own = _words(item, "flags") or flags
    return NextHop(
        device=names.device(item["dev"]) if item.get("dev") is not None else None,
        gateway=gateway,
        weight=_int(item, "weight", 1, low=1, high=65536),
        flags=tuple(sorted(own)),
        encap=_opt_str(item, "encap"),
    )


def rules(text: str, family: int, names: Names, problems: list[str], name: str) -> tuple[Rule, ...]:
    def parse(item: dict[str, Any]) -> Iterable[Rule]:
        return (_rule(item, family, names),)

    return collect(text, parse, problems, name)


def default_rules(family: int) -> tuple[Rule, ...]:
    """What every namespace starts with (net/ipv4/fib_rules.c, net/ipv6/fib6_rules.c)."""
    found = [Rule(family, 0, table=255), Rule(family, 32766, table=254)]
    if family == 4:
        found.append(Rule(family, 32767, table=253))
    return tuple(found)


def _rule(item: Mapping[str, Any], family: int, names: Names) -> Rule:
    def selector(key: str) -> str | None:
        value = _opt_str(item, key)
        if value is None or value in ("all", "any", "default"):
            return None
        length = item.get(key + "len")
        return prefix(value if length is None else f"{value}/{length}", family)

    def ports(key: str) -> tuple[int, int] | None:
        if item.get(key) is not None:
            port = _int(item, key, high=0xFFFF)
            return port, port
        if item.get(key + "_start") is not None:
            return _int(item, key + "_start", high=0xFFFF), _int(item, key + "_end", high=0xFFFF)
        return None

    action = _opt_str(item, "action")
    target = _opt_int(item, "goto")
    if target is not None:
        action = "goto"
    elif _present(item, "nop"):
        action = "nop"
    elif action is None or action in ("to_tbl", "table", "lookup"):
        action = "table"
    protocol = item.get("ipproto")
    return Rule(
        family=family,
        priority=_int(item, "priority", 0),
        action=action,
        table=names.table(item["table"]) if item.get("table") is not None else 0,
        source=selector("src"),
        destination=selector("dst"),
        in_device=_opt_str(item, "iif"),
        out_device=_opt_str(item, "oif"),
        fwmark=_opt_int(item, "fwmark"),
        fwmask=_int(item, "fwmask", 0xFFFFFFFF) if item.get("fwmark") is not None or "fwmask" in item else None,
        tos=_soft_int(item, "tos", 0, 255),
        invert=_present(item, "not"),
        ip_protocol=_ip_protocol(protocol) if protocol is not None else None,
        source_ports=ports("sport"),
        destination_ports=ports("dport"),
        uid_range=(_int(item, "uid_start"), _int(item, "uid_end")) if item.get("uid_start") is not None else None,
        suppress_prefixlength=_opt_int(item, "suppress_prefixlen", low=-1) if "suppress_prefixlen" in item
        else _opt_int(item, "suppress_prefixlength", low=-1),
        suppress_ifgroup=_soft_int(item, "suppress_ifgroup", 0) if item.get("suppress_ifgroup") is not None else None,
        l3mdev=_present(item, "l3mdev"),
        tunnel_id=_opt_int(item, "tun_id", high=(1 << 64) - 1),
        goto=target,
    )  # fmt: skip


_IP_PROTOCOLS: Mapping[str, int] = {"icmp": 1, "igmp": 2, "ipencap": 4, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50,
                                    "ipv6-icmp": 58, "sctp": 132, "udplite": 136}  # fmt: skip


def _ip_protocol(value: Any) -> int:
    if isinstance(value, str) and value in _IP_PROTOCOLS:
        return _IP_PROTOCOLS[value]
    return _int({"ipproto": value}, "ipproto", high=255)


def nexthops(text: str, names: Names, problems: list[str], name: str = "nexthop.json") -> tuple[NextHopObject, ...]:
    def parse(item: dict[str, Any]) -> Iterable[NextHopObject]:
        members = _objects(item, "group")
        gateway = _opt_str(item, "gateway") or _opt_str(_mapping(item, "via"), "host")
        return (
            NextHopObject(
                id=_int(item, "id", low=1),
                device=names.device(item["dev"]) if item.get("dev") is not None else None,
                gateway=gateway,
                family=family_of(gateway) if gateway is not None else None,
                blackhole=_present(item, "blackhole"),
                group=tuple((_int(member, "id", low=1), _int(member, "weight", 1)) for member in members),
                fdb=_present(item, "fdb"),
                flags=tuple(sorted(_words(item, "flags"))),
                resilient=item.get("type") == "resilient",
            ),
        )

    return collect(text, parse, problems, name)


# ip -j neigh, bridge -j -d fdb, bridge -j vlan, bpftool -j net


def neighbours(
    text: str, names: Names, problems: list[str], name: str = "neigh.json", *, proxy: bool = False
) -> tuple[Neighbour, ...]:
    def parse(item: dict[str, Any]) -> Iterable[Neighbour]:
        address = _address(item, "dst")
        states = _words(item, "state")
        mac = _opt_str(item, "lladdr")
        if states == ("NOARP",) and not proxy and (mac is None or mac[1:2] in "13579bdf" or mac == "00:00:00:00:00:00"):
            # What the kernel keeps where nothing is resolved (multicast, broadcast, devices without ARP) decides nothing.
            return ()
        return (
            Neighbour(
                device=names.device(item.get("dev")),
                family=family_of(address),
                address=address,
                mac=mac,
                state=states[0] if states else "NONE",
                proxy=proxy or _present(item, "proxy"),
            ),
        )

    return collect(text, parse, problems, name)


def fdb(text: str, names: Names, problems: list[str], name: str = "fdb.json") -> tuple[FdbEntry, ...]:
    def parse(item: dict[str, Any]) -> Iterable[FdbEntry]:
        via = item.get("viaIf", item.get("via"))
        return (
            FdbEntry(
                device=names.device(item.get("ifname")),
                mac=_str(item, "mac").lower(),
                vlan=_opt_int(item, "vlan", high=4095),
                destination=_opt_address(item, "dst"),
                port=_opt_int(item, "port", high=0xFFFF),
                vni=_opt_int(item, "vni", high=0xFFFFFF),
                via=names.device(via) if isinstance(via, str) else None,
                nexthop_id=_opt_int(item, "nhid"),
                state=_opt_str(item, "state") or "",
                master=names.device(item["master"]) if item.get("master") is not None else None,
                flags=tuple(sorted(_words(item, "flags"))),
            ),
        )

    return collect(text, parse, problems, name)


def vlans(text: str, names: Names, problems: list[str], name: str = "vlan.json") -> dict[int, tuple[BridgeVlan, ...]]:
    def parse(item: dict[str, Any]) -> Iterable[tuple[int, tuple[BridgeVlan, ...]]]:
        members: list[BridgeVlan] = []
        for entry in _objects(item, "vlans"):
            first = _int(entry, "vlan", low=1, high=4094)
            last = _int(entry, "vlanEnd", first, low=first, high=4094)
            flags = {word.lower() for word in _words(entry, "flags")}
            members.extend(BridgeVlan(vid, "pvid" in flags, "egress untagged" in flags) for vid in range(first, last + 1))
        return ((names.device(item.get("ifname")), tuple(members)),)

    return dict(collect(text, parse, problems, name))


def programs(text: str, names: Names, problems: list[str], name: str = "bpf.json") -> dict[int, tuple[Program, ...]]:
    """tc and tcx programs of ``bpftool -j net show``; XDP stands in link.json."""
    found: dict[int, list[Program]] = {}

    def parse(item: dict[str, Any]) -> Iterable[None]:
        for entry in _objects(item, "tc"):
            device = names.device(entry.get("devname"))
            kind = _opt_str(entry, "kind") or ""
            side = "egress" if "egress" in kind else "ingress"
            hook = "netkit" if "netkit" in kind else f"tcx {side}" if "tcx" in kind else f"tc {side}"
            number = entry.get("prog_id", entry.get("id"))
            program = Program(hook, number if isinstance(number, int) else None, _opt_str(entry, "name") or "")
            found.setdefault(device, []).append(program)
        return ()

    collect(text, parse, problems, name)
    return {device: tuple(entries) for device, entries in found.items()}


# Text


def tx_checksums(text: str, names: Names) -> dict[int, bool]:
    """Whether each device computes transport checksums when it sends: ``ethtool -k`` of every device, one after the other."""
    found: dict[int, bool] = {}
    device = None
    for line in text.splitlines():
        if line.startswith("Features for ") and line.endswith(":"):
            device = names.devices.get(line[len("Features for ") : -1])
        elif line.startswith("tx-checksumming:") and device is not None:
            found[device] = line.split(":", 1)[1].split()[:1] == ["on"]
    return found


def sysctls(text: str, problems: list[str], name: str = "sysctl.txt") -> dict[str, str]:
    """Lines ``name = value`` as ``sysctl -a`` prints them; a slash in a name is a dot of a device's name."""
    found: dict[str, str] = {}
    bad = 0
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        key = key.strip()
        if not line.strip() or line.startswith("sysctl: "):
            continue
        if not equals or not key or " " in key:
            bad += 1
            continue
        found[key] = value.strip()
    if bad:
        problems.append(f"{name}: {bad} lines are not of the form name = value")
    return found


_PROCESS = re.compile(r'\(\("((?:[^"\\]|\\.)*)",pid=(\d{1,10})')


def sockets(text: str, problems: list[str], name: str = "ss.txt") -> tuple[Socket, ...]:
    """Sockets that can receive, from ``ss -H -a -n -p -t -u`` (with or without -l, -4 or -6); established TCP is left out."""
    found: dict[tuple[str, str, int, str | None, bool], Socket] = {}
    lines: list[str] = []
    for line in text.splitlines():
        fields = line.split(None, 6)
        if not fields or fields[0] == "Netid":
            continue
        try:
            entry = _socket(fields)
        except Bad as error:
            lines.append(f"{name}: {error}")
            continue
        if entry is not None:
            found.setdefault((entry.protocol, entry.address, entry.port, entry.device, entry.connected), entry)
    add_problems(problems, lines, name)
    return tuple(found.values())


def _socket(fields: list[str]) -> Socket | None:
    if len(fields) < 6 or fields[0] not in ("udp", "tcp"):
        if fields[0] in ("udp", "tcp"):
            raise Bad(f"a line of {len(fields)} fields, six were expected")
        return None
    protocol, state, local = fields[0], fields[1], fields[4]
    if protocol == "tcp" and state != "LISTEN":
        return None
    rest = fields[6] if len(fields) > 6 else ""
    address, _, port = local.rpartition(":")
    if not port.isascii() or not port.isdecimal():
        raise Bad(f"{_short(local)!r} has no port")
    address, _, device = address.partition("%")
    # ss prints * for a socket of IPv6 that takes IPv4 too, [::] for one that does not.
    v6only = address == "[::]"
    address = "::" if address == "*" else address.strip("[]")
    if device.endswith("]"):
        device = device[:-1]
    family_of(address)
    process = _PROCESS.search(rest)
    return Socket(
        protocol=protocol,
        address=address,
        port=_range(int(port[:6]), 0, 0xFFFF, "port"),
        device=device or None,
        process=process.group(1) if process else None,
        pid=int(process.group(2)) if process else None,
        connected=protocol == "udp" and state == "ESTAB",
        v6only=v6only,
    )


_PLAIN = re.compile(
    r"(?:ipv4 +2 +)?(?P<protocol>udp|tcp) +\d+ +(?:(?P<timeout>\d{1,9}) +)?(?:(?P<state>[A-Z_]+\d?) +)?"
    r"src=(?P<s1>[\d.]{7,15}) dst=(?P<d1>[\d.]{7,15}) sport=(?P<sp1>\d{1,5}) dport=(?P<dp1>\d{1,5}) (?:packets=\d+ bytes=\d+ )?"
    r"(?P<unreplied>\[UNREPLIED\] )?"
    r"src=(?P<s2>[\d.]{7,15}) dst=(?P<d2>[\d.]{7,15}) sport=(?P<sp2>\d{1,5}) dport=(?P<dp2>\d{1,5}) (?:packets=\d+ bytes=\d+ )?"
    r"(?P<assured>\[ASSURED\] )?mark=(?P<mark>\d{1,10}) (?:zone=(?P<zone>\d{1,5}) )?use=\d+\s*"
)
"""The line that most of a busy node's are. Others are taken apart word by word, which takes ten times as long."""
_TUPLE_KEYS = ("src", "dst", "sport", "dport", "type", "code", "id", "srckey", "dstkey")


def conntrack(text: str, problems: list[str], name: str = "conntrack.txt") -> tuple[ConntrackEntry, ...]:
    """Entries of ``conntrack -L``, with the family first (``-o extended``, ``/proc/net/nf_conntrack``) or without."""
    found: list[ConntrackEntry] = []
    lines: list[str] = []
    for line in text.splitlines():
        match = _PLAIN.fullmatch(line)
        entry = _plain(match) if match is not None else None
        if entry is not None:
            found.append(entry)
            continue
        words = line.split()
        if not words or line.startswith("conntrack v"):
            continue
        try:
            found.append(_conntrack(words))
        except Bad as error:
            lines.append(f"{name}: {error}")
    add_problems(problems, lines, name)
    return tuple(found)


def _plain(match: re.Match[str]) -> ConntrackEntry | None:
    protocol, timeout, state, s1, d1, sp1, dp1, unreplied, s2, d2, sp2, dp2, assured, mark, zone = match.groups()
    ports = int(sp1), int(dp1), int(sp2), int(dp2)
    try:
        for address in (s1, d1, s2, d2):
            socket.inet_pton(socket.AF_INET, address)
    except OSError:
        return None
    if max(ports) > 0xFFFF or int(mark) > 0xFFFFFFFF:
        return None
    flags = (("assured",) if assured else ()) + (("unreplied",) if unreplied else ())
    return ConntrackEntry(
        4,
        protocol,
        FlowTuple(s1, d1, ports[0], ports[1]),
        FlowTuple(s2, d2, ports[2], ports[3]),
        state,
        flags,
        int(mark),
        int(zone or 0),
        int(timeout) if timeout else None,
    )


def _conntrack(words: list[str]) -> ConntrackEntry:
    family = {"ipv4": 4, "ipv6": 6}.get(words[0])
    if family is not None:
        words = words[2:]
    if len(words) < 3:
        raise Bad("a line that is cut off")
    protocol = {"icmpv6": "icmpv6", "unknown": words[1]}.get(words[0], words[0])
    words = words[2:]
    timeout = None
    if words[0].isascii() and words[0].isdecimal():
        timeout = int(words[0][:12])
        words = words[1:]
    state = None
    tuples: list[dict[str, str]] = []
    flags: list[str] = []
    numbers = {"mark": 0, "zone": 0}
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("["):
            flags.append(word.strip("[]").lower())
        elif not equals:
            if not tuples and state is None:
                state = word
        elif key in numbers:
            numbers[key] = _int({key: value}, key)
        elif key in _TUPLE_KEYS:
            if key == "src":
                tuples.append({})
            if tuples:
                tuples[-1][key] = value
    if len(tuples) != 2:
        raise Bad("a line without both directions")
    original, reply = (_tuple(entry) for entry in tuples)
    if family is None:
        family = family_of(original.source)
    return ConntrackEntry(
        family, protocol, original, reply, state, tuple(sorted(flags)), numbers["mark"], numbers["zone"], timeout
    )  # fmt: skip


def _tuple(entry: Mapping[str, str]) -> FlowTuple:
    source = _address(entry, "src")
    if "id" in entry:  # ICMP: conntrack has the identifier in the place of the source port
        return FlowTuple(source, _address(entry, "dst"), _opt_int(entry, "id", high=0xFFFF), _opt_int(entry, "id", high=0xFFFF))
    return FlowTuple(source, _address(entry, "dst"), _opt_int(entry, "sport", high=0xFFFF), _opt_int(entry, "dport", high=0xFFFF))
