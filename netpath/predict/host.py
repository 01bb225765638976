"""One namespace, prepared for prediction: devices, addresses, tables and switches by key. Built once for each snapshot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property

from netpath.model.index import SnapshotIndex, canonical
from netpath.model.snapshot import Address, DeviceId, FdbEntry, Link, Namespace, Neighbour, NextHopObject, Route, Rule
from netpath.netfilter.types import Evaluator
from netpath.predict import addresses as ip

MAIN, DEFAULT, LOCAL = 254, 253, 255
SCOPES = {"global": 0, "universe": 0, "site": 200, "link": 253, "host": 254, "nowhere": 255}

EvaluatorFactory = Callable[[Namespace], Evaluator]


def scope_number(scope: str) -> int:
    """RT_SCOPE_* of a name or a number in text."""
    if scope in SCOPES:
        return SCOPES[scope]
    return int(scope) if scope.isdigit() else 0


class Table:
    """One routing table: routes by prefix length and network (the longest matching prefix first, then metric)."""

    def __init__(self, family: int, routes: Iterable[Route]) -> None:
        self._bits = ip.BITS[family]
        found: dict[int, dict[int, list[Route]]] = defaultdict(lambda: defaultdict(list))
        for route in routes:
            try:
                network, length = ip.prefix(route.destination)
            except ValueError:
                continue
            found[length][network].append(route)
        for networks in found.values():
            for alternatives in networks.values():
                if len(alternatives) > 1:
                    # net/ipv4/fib_trie.c keeps aliases by descending TOS, then by ascending priority.
                    alternatives.sort(key=lambda route: (-route.tos, route.metric))
        self._found = sorted(found.items(), reverse=True)
        self.default_count = len(found.get(0, {}).get(0, ()))

    def matches(self, address: int) -> Iterable[tuple[int, list[Route]]]:
        """(prefix length, routes to that prefix in order) from the longest prefix on."""
        for length, networks in self._found:
            shift = self._bits - length
            routes = networks.get(address >> shift << shift)
            if routes:
                yield length, routes


class Host:
    """The prepared namespace. Look-ups of what isn't there give None or nothing; nothing here raises on odd input."""

    def __init__(self, index: SnapshotIndex, namespace: Namespace, evaluators: EvaluatorFactory) -> None:
        self.index = index
        self.namespace = namespace
        self.inode = namespace.inode
        self.name = namespace.name
        self._evaluators = evaluators
        self.links = {link.ifindex: link for link in namespace.links}
        self.by_name = {link.name: link for link in namespace.links}
        self.ports: dict[int, list[Link]] = defaultdict(list)
        for link in sorted(namespace.links, key=lambda each: each.ifindex):
            if link.master is not None:
                self.ports[link.master].append(link)
        self.loopback = next((link for link in namespace.links if link.kind == "loopback"), None)
        self.on_device: dict[tuple[int, int], list[Address]] = defaultdict(list)
        self.held: dict[str, list[Address]] = defaultdict(list)
        for address in namespace.addresses:
            self.on_device[(address.device, address.family)].append(address)
            self.held[canonical(address.address)].append(address)
        self.neighbours: dict[tuple[int, str], Neighbour] = {}
        self.proxied: set[tuple[int, str]] = set()
        for neighbour in namespace.neighbours:
            key = (neighbour.device, canonical(neighbour.address))
            if neighbour.proxy:
                self.proxied.add(key)
            else:
                self.neighbours[key] = neighbour
        self.nexthops: dict[int, NextHopObject] = {item.id: item for item in namespace.nexthops}

    @cached_property
    def evaluator(self) -> Evaluator:
        return self._evaluators(self.namespace)

    # Routing

    @cached_property
    def _routes(self) -> dict[tuple[int, int], list[Route]]:
        found: dict[tuple[int, int], list[Route]] = defaultdict(list)
        for route in self.namespace.routes:
            found[(route.family, route.table)].append(route)
        return found

    @cached_property
    def _tables(self) -> dict[tuple[int, int], Table | None]:
        return {}

    def table(self, family: int, number: int) -> Table | None:
        key = (family, number)
        if key not in self._tables:
            routes = self._routes.get(key)
            self._tables[key] = Table(family, routes) if routes else None
        return self._tables[key]

    @cached_property
    def _rules(self) -> dict[int, tuple[Rule, ...]]:
        found: dict[int, tuple[Rule, ...]] = {}
        for family in (4, 6):
            rules = [rule for rule in self.namespace.rules if rule.family == family]
            if not rules:
                # A snapshot without rules is one whose reader had none to show: the kernel's own three stand in.
                rules = [Rule(family, 0, table=LOCAL), Rule(family, 32766, table=MAIN)]
                if family == 4:
                    rules.append(Rule(family, 32767, table=DEFAULT))
            found[family] = tuple(sorted(rules, key=lambda rule: rule.priority))
        return found

    def rules(self, family: int) -> tuple[Rule, ...]:
        return self._rules[family]

    @cached_property
    def custom_rules(self) -> bool:
        """IPv4 has rules beyond the kernel's three (fib4_has_custom_rules)."""
        return any(
            rule.priority not in (0, 32766, 32767) or rule.source or rule.destination or rule.in_device for rule in self.rules(4)
        )

    @cached_property
    def custom_local_routes(self) -> bool:
        """A route of type local or broadcast that the kernel did not make itself (fib_has_custom_local_routes)."""
        return any(route.family == 4 and route.type == "local" and route.protocol != "kernel" for route in self.namespace.routes)

    # Settings

    def sysctl(self, name: str) -> str | None:
        value = self.namespace.sysctls.get(name)
        return value.strip() if value is not None else None

    def number(self, name: str, default: int = 0) -> int:
        value = self.sysctl(name)
        try:
            return int(value) if value is not None else default
        except ValueError:
            return default

    def conf(self, family: int, device: str, name: str, default: int = 0) -> int:
        """net.ipv4.conf.DEVICE.NAME or its IPv6 twin."""
        return self.number(f"net.ipv{family}.conf.{device.replace('.', '/')}.{name}", default)

    def either(self, family: int, device: str, name: str) -> bool:
        """IN_DEV_ORCONF: on for all devices or for this one."""
        return bool(self.conf(family, "all", name) or self.conf(family, device, name))

    def highest(self, family: int, device: str, name: str) -> int:
        """IN_DEV_MAXCONF."""
        return max(self.conf(family, "all", name), self.conf(family, device, name))

    def both(self, family: int, device: str, name: str) -> bool:
        """IN_DEV_ANDCONF."""
        return bool(self.conf(family, "all", name) and self.conf(family, device, name))

    def forwarding(self, family: int, device: str) -> bool:
        """Whether what came in by `device` may be forwarded."""
        if family == 6:
            return bool(self.conf(6, "all", "forwarding") or self.conf(6, device, "force_forwarding"))
        known = self.sysctl(f"net.ipv4.conf.{device.replace('.', '/')}.forwarding")
        if known is not None:
            return known == "1"
        return bool(self.number("net.ipv4.ip_forward"))

    def default_ttl(self, family: int) -> int:
        """The TTL of packets that this namespace makes itself."""
        return self.number("net.ipv4.ip_default_ttl", 64) if family == 4 else self.conf(6, "all", "hop_limit", 64)

    @cached_property
    def bridge_calls_iptables(self) -> bool:
        return bool(self.number("net.bridge.bridge-nf-call-iptables"))

    @cached_property
    def bridge_calls_ip6tables(self) -> bool:
        return bool(self.number("net.bridge.bridge-nf-call-ip6tables"))

    # Layer 2

    @cached_property
    def _bridge_fdb(self) -> dict[tuple[int, str, int], FdbEntry]:
        found: dict[tuple[int, str, int], FdbEntry] = {}
        for entry in self.namespace.fdb:
            bridge = entry.master
            if bridge is None:
                link = self.links.get(entry.device)
                if link is None or link.kind != "bridge" or "self" in entry.flags:
                    continue
                bridge = entry.device
            found[(bridge, entry.mac.lower(), entry.vlan or 0)] = entry
        return found

    @cached_property
    def _known_bridges(self) -> frozenset[int]:
        return frozenset(bridge for bridge, _, _ in self._bridge_fdb)

    def bridge_entry(self, bridge: int, mac: str, vlan: int) -> FdbEntry | None:
        return self._bridge_fdb.get((bridge, mac, vlan))

    def bridge_fdb_known(self, bridge: int) -> bool:
        return bridge in self._known_bridges

    @cached_property
    def _own_fdb(self) -> dict[int, dict[str, list[FdbEntry]]]:
        found: dict[int, dict[str, list[FdbEntry]]] = defaultdict(lambda: defaultdict(list))
        for entry in self.namespace.fdb:
            if entry.destination is not None or entry.nexthop_id is not None:
                found[entry.device][entry.mac.lower()].append(entry)
        return found

    def remote_entries(self, device: int, mac: str) -> list[FdbEntry]:
        """A VXLAN device's own entries for a MAC."""
        return self._own_fdb.get(device, {}).get(mac, [])

    @cached_property
    def vlan_devices(self) -> dict[tuple[int, int], Link]:
        """VLAN devices by (parent, vid), those whose parent is in this namespace."""
        return {
            (link.lower, link.vlan_id): link
            for link in self.namespace.links
            if link.kind == "vlan"
            and link.vlan_id is not None
            and link.lower is not None
            and (link.peer is None or link.peer.netns == self.inode)
        }

    def device(self, ifindex: int) -> DeviceId:
        return DeviceId(self.inode, ifindex)

    def peer_namespace(self, nsid: int) -> int | None:
        return dict(self.namespace.nsids).get(nsid)
