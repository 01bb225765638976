"""Random topologies for the kernel to judge: commands for namespaces, and the packet that is asked about.

A source and a destination hang behind two routers. How each hangs there (a veth, a bridge, a VLAN-aware bridge), what joins the
routers (a wire, two wires, a switch in a namespace of its own, a VXLAN, one layer-2 segment across a VXLAN), which tables and rules
they use, and what is broken, is drawn from a seed. Names are random.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

PORT = 7007
FEATURES = ("policy rule", "metric", "multipath", "onlink", "blackhole", "VLAN bridge", "vxlan", "IPv6")


@dataclass
class Plan:
    """What to run, in order, and what to send. Roles are S, A, B, D, X (a switch), Y (a bystander)."""

    seed: int
    family: int = 4
    names: dict[str, str] = field(default_factory=dict)
    wires: list[tuple[str, str, str, str, int]] = field(default_factory=list)
    """(role, device, role, device, MTU)."""
    early: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """sysctls before any device."""
    ip: dict[str, list[str]] = field(default_factory=dict)
    bridge: dict[str, list[str]] = field(default_factory=dict)
    late_ip: dict[str, list[str]] = field(default_factory=dict)
    late: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """sysctls after all else."""
    features: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    source: str = "S"
    destination: str = "D"
    target: str = ""
    bound: str | None = None
    sport: int = 40000
    size: int = 64
    ttl: int = 64
    mark: int = 0
    df: bool = False
    warm: bool = False
    listen: bool = True
    asked: list[str] = field(default_factory=list)
    """Addresses for `ip route get` in every namespace."""

    def do(self, role: str, *lines: str) -> None:
        self.ip.setdefault(role, []).extend(lines)

    def after(self, role: str, *lines: str) -> None:
        self.late_ip.setdefault(role, []).extend(lines)

    def switch(self, role: str, *lines: str) -> None:
        self.bridge.setdefault(role, []).extend(lines)


def _word(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(3)) + rng.choice(["", "0", ".7", "-x", "_1"])


class Drawing:
    """One plan being drawn."""

    def __init__(self, seed: int, vlans: bool) -> None:
        self.vlans = vlans
        self.rng = rng = random.Random(seed)
        self.plan = Plan(seed)
        self.family = self.plan.family = rng.choice([4, 4, 4, 6])
        if self.family == 6:
            self.plan.features.add("IPv6")
        self._devices: set[tuple[str, str]] = set()
        self.links: list[tuple[str, str, str, str]] = []
        """Ways between the routers: (device at A, A's address, device at B, B's address)."""
        self.gateways: dict[str, str] = {}
        self.bridged = False

    def device(self, role: str) -> str:
        while True:
            name = _word(self.rng)
            if (role, name) not in self._devices:
                self._devices.add((role, name))
                return name

    def net(self, number: int) -> str:
        return f"10.{20 + number}.3." if self.family == 4 else f"fd20:{number:x}::"

    def address(self, net: str, host: int) -> str:
        return f"{net}{host}" if self.family == 4 else f"{net}{host:x}"

    @property
    def bits(self) -> int:
        return 24 if self.family == 4 else 64

    def prefix(self, net: str) -> str:
        return f"{net}0/24" if self.family == 4 else f"{net}/64"

    def hold(self, role: str, device: str, address: str, bits: int | None = None) -> None:
        nodad = " nodad" if ":" in address else ""
        self.plan.do(role, f"addr add {address}/{bits or self.bits} dev {device}{nodad}")

    def wire(self, a: str, b: str, mtu: int = 1500) -> tuple[str, str]:
        left, right = self.device(a), self.device(b)
        self.plan.wires.append((a, left, b, right, mtu))
        self.plan.do(a, f"link set {left} up")
        self.plan.do(b, f"link set {right} up")
        return left, right

    # Where pods hang

    def access(self, pod: str, router: str, number: int) -> None:
        """A pod behind a router; the router's device and address on that segment."""
        rng, plan = self.rng, self.plan
        net = self.net(number)
        pod_address, gateway = self.address(net, rng.randrange(10, 200)), self.address(net, 1)
        mtu = rng.choice([1500, 1500, 1450, 1400])
        theirs, ours = self.wire(pod, router, mtu)
        kind = rng.choice(["veth", "bridge", *(["vlan", "vlan-device"] if self.vlans else [])])
        if self.bridged:
            kind = "bridge"
        device = ours
        if kind == "bridge":
            device = self.device(router)
            plan.do(router, f"link add {device} type bridge", f"link set {device} mtu {mtu} up", f"link set {ours} master {device}")
            self.bystander(router, device, None)
        elif kind in ("vlan", "vlan-device"):
            plan.features.add("VLAN bridge")
            vid = rng.randrange(2, 4000)
            bridge = self.device(router)
            plan.do(
                router,
                f"link add {bridge} type bridge vlan_filtering 1",
                f"link set {bridge} up",
                f"link set {ours} master {bridge}",
            )
            self.member(router, ours, vid, access=True)
            self.bystander(router, bridge, vid)
            if kind == "vlan":
                device = bridge
                self.member(router, bridge, vid, access=True, own=True)
            else:
                device = self.device(router)
                plan.do(router, f"link add link {bridge} name {device} type vlan id {vid}", f"link set {device} up")
                self.member(router, bridge, vid, access=False, own=True)
        self.hold(pod, theirs, pod_address)
        self.hold(router, device, gateway)
        onlink = ""
        if rng.random() < 0.2:
            plan.features.add("onlink")
            onlink = " onlink"
        plan.do(pod, f"route add default via {gateway} dev {theirs}{onlink}")
        self.gateways[router] = gateway
        if pod == "D":
            plan.target = pod_address
        plan.asked += [pod_address, gateway]

    def member(self, role: str, device: str, vid: int, *, access: bool, own: bool = False) -> None:
        selfward = " self" if own else ""
        self.plan.switch(
            role,
            f"vlan del dev {device} vid 1{selfward}",
            f"vlan add dev {device} vid {vid}{' pvid untagged' if access else ''}{selfward}",
        )

    def bystander(self, role: str, bridge: str, vid: int | None) -> None:
        """Another port on a bridge, with somebody behind it who wants nothing of this."""
        if self.rng.random() < 0.4:
            port, _ = self.wire(role, "Y")
            self.plan.do(role, f"link set {port} master {bridge}")
            if vid is not None and self.rng.random() < 0.5:
                self.member(role, port, vid, access=True)

    # What joins the routers

    def core(self, number: int, family: int) -> tuple[str, str, str, str]:
        """One way between A and B with addresses of `family` (the underlay may differ from the pods)."""
        rng, plan = self.rng, self.plan
        net = f"172.{20 + number}.9." if family == 4 else f"fd99:{number:x}::"
        bits = 24 if family == 4 else 64
        if rng.random() < 0.5:
            a, b = self.wire("A", "B")
        else:
            a, first = self.wire("A", "X")
            b, second = self.wire("B", "X")
            bridge = self.device("X")
            filtering = self.vlans and rng.random() < 0.5
            plan.do("X", f"link add {bridge} type bridge{' vlan_filtering 1' if filtering else ''}", f"link set {bridge} up")
            for port in (first, second):
                plan.do("X", f"link set {port} master {bridge}")
            vid = None
            if filtering:
                plan.features.add("VLAN bridge")
                vid = rng.randrange(2, 4000)
                tagged = rng.random() < 0.4
                for port in (first, second):
                    self.member("X", port, vid, access=not tagged)
                if tagged:
                    a, b = self.tagged("A", a, vid), self.tagged("B", b, vid)
            self.bystander("X", bridge, vid)
        left, right = (f"{net}{n}" for n in (1, 2))
        self.hold("A", a, left, bits)
        self.hold("B", b, right, bits)
        plan.asked += [left, right]
        return a, left, b, right

    def tagged(self, role: str, device: str, vid: int) -> str:
        name = self.device(role)
        self.plan.do(role, f"link add link {device} name {name} type vlan id {vid}", f"link set {name} up")
        return name

    def vxlan(self, number: int) -> None:
        """An overlay between the routers: static entries as Flannel makes them, a default remote, or a bridge port at both ends."""
        rng, plan = self.rng, self.plan
        plan.features.add("vxlan")
        _, left, _, right = self.core(number, rng.choice([4, 4, 6]))
        port, vni = rng.choice([4789, 8472, rng.randrange(2000, 60000)]), rng.randrange(1, 1 << 24)
        names = {"A": self.device("A"), "B": self.device("B")}
        macs = {"A": f"02:aa:{number:02x}:00:00:01", "B": f"02:aa:{number:02x}:00:00:02"}
        remote = {"A": right, "B": left}
        local = {"A": left, "B": right}
        static = rng.random() < 0.5 and not self.bridged
        for role in "AB":
            default = "" if static else f" remote {remote[role]}"
            learning = " nolearning" if static or rng.random() < 0.3 else ""
            plan.do(
                role,
                f"link add {names[role]} type vxlan id {vni} local {local[role]} dstport {port}{default}{learning}",
                f"link set {names[role]} address {macs[role]} up",
            )
        if self.bridged:
            for role in "AB":
                plan.do(role, f"link set {names[role]} master {self.bridges[role]}")
            return
        net = self.net(50 + number)
        ends = {"A": self.address(net, 1), "B": self.address(net, 2)}
        narrow = static and rng.random() < 0.7
        full = 32 if self.family == 4 else 128
        for role, other in (("A", "B"), ("B", "A")):
            self.hold(role, names[role], ends[role], full if narrow else None)
            if static:
                plan.after(role, f"neigh add {ends[other]} lladdr {macs[other]} dev {names[role]} nud permanent")
                plan.switch(role, f"fdb append {macs[other]} dev {names[role]} dst {remote[role]}")
        if narrow:
            plan.features.add("onlink")
        self.links.append((names["A"], ends["A"], names["B"], ends["B"]))

    # Routes

    def routes(self) -> None:
        near, far = self.prefix(self.net(1)), self.prefix(self.net(2))
        for role, target, device, via in (("A", far, 0, 3), ("B", near, 2, 1)):
            self.route(role, target, [(link[device], link[via]) for link in self.links])

    def route(self, role: str, target: str, ways: list[tuple[str, str]]) -> None:
        rng, plan = self.rng, self.plan
        onlink = " onlink" if "onlink" in plan.features or rng.random() < 0.2 else ""
        if onlink:
            plan.features.add("onlink")

        def via(way: tuple[str, str]) -> str:
            return f"via {way[1]} dev {way[0]}{onlink}"

        rng.shuffle(ways)
        main = ways[0]
        shape = rng.choice(["plain", "metric", "multipath", "objects", "policy", "policy", "blackhole"])
        if shape == "metric":
            plan.features.add("metric")
            low, high = sorted(rng.sample(range(1, 2000), 2))
            plan.after(role, f"route add {target} {via(ways[-1])} metric {high}", f"route add {target} {via(main)} metric {low}")
        elif shape == "multipath" and len(ways) > 1:
            plan.features.add("multipath")
            hops = " ".join(f"nexthop {via(way)} weight {rng.randrange(1, 5)}" for way in ways)
            plan.after(role, f"route add {target} {hops}")
        elif shape == "objects" and len(ways) > 1:
            plan.features.add("multipath")
            for number, way in enumerate(ways):
                plan.after(role, f"nexthop add id {number + 1} {via(way)}")
            group = "/".join(f"{number + 1},{rng.randrange(1, 5)}" for number in range(len(ways)))
            plan.after(role, f"nexthop add id 77 group {group}", f"route add {target} nhid 77")
        elif shape == "policy":
            plan.features.add("policy rule")
            table = rng.randrange(100, 250)
            plan.after(role, f"route add {target} {via(main)}", f"route add {target} {via(ways[-1])} table {table}")
            for line in self.rule(table):
                plan.after(role, line)
        elif shape == "blackhole":
            plan.features.add("blackhole")
            wide = "10.0.0.0/8" if self.family == 4 else "fd20::/16"
            kind = rng.choice(["blackhole", "unreachable", "prohibit"])
            plan.after(role, f"route add {kind} {wide}", f"route add {target} {via(main)}")
        else:
            plan.after(role, f"route add {target} {via(main)}")

    def rule(self, table: int) -> list[str]:
        rng, plan = self.rng, self.plan
        near, far = self.prefix(self.net(1)), self.prefix(self.net(2))
        mark = rng.randrange(1, 64)
        if rng.random() < 0.5:
            plan.mark = mark
        selectors: list[Callable[[], str]] = [
            lambda: f"from {near}",
            lambda: f"to {far}",
            lambda: f"fwmark {mark}",
            lambda: f"fwmark {mark & 1}/1",
            lambda: "iif lo",
            lambda: f"ipproto {rng.choice(['udp', 'tcp'])}",
            lambda: f"dport {rng.choice([f'{PORT}', f'{PORT - 5}-{PORT + 5}', '80'])}",
            lambda: f"sport {rng.choice(['40000-49999', '1-1023'])}",
            lambda: f"from {near} to {far}",
        ]
        chosen = rng.choice(selectors)()
        family = "-6 " if self.family == 6 else ""
        negate = "not " if rng.random() < 0.2 else ""
        priority = rng.randrange(100, 30000)
        lines = [f"{family}rule add priority {priority} {negate}{chosen} lookup {table}"]
        if rng.random() < 0.25:
            lines.append(
                f"{family}rule add priority {priority - 1} to {far} lookup {table} suppress_prefixlength {rng.choice([0, 8, 30, 64])}"
            )
        if rng.random() < 0.15:
            lines.append(f"{family}rule add priority {priority - 2} goto 32766")
        return lines

    # The whole

    def draw(self) -> Plan:
        rng, plan = self.rng, self.plan
        self.bridges: dict[str, str] = {}
        shape = rng.choice(["routed", "routed", "two", "two", "vxlan", "vxlan", "segment"])
        if shape == "segment":
            self.segment()
        else:
            self.access("S", "A", 1)
            self.access("D", "B", 2)
            if shape == "vxlan":
                self.vxlan(1)
                if rng.random() < 0.3:
                    self.links.append(self.core(2, self.family))
            else:
                for number in range(1, 3 if shape == "two" else 2):
                    self.links.append(self.core(number, self.family))
            self.routes()
        for role in "AB":
            plan.late.setdefault(role, []).extend([("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])
            if rng.random() < 0.3:
                plan.late[role].append(("net.ipv4.conf.all.rp_filter", rng.choice(["1", "2"])))
        if shape != "segment" and rng.random() < 0.2:
            plan.source = "A"
        plan.sport = rng.randrange(40000, 50000)
        plan.size = rng.choice([32, 64, 200, 1000, 2000])
        # What a first packet teaches the kernel about a path's MTU is in no snapshot.
        plan.warm = rng.random() < 0.3 and plan.size < 1400
        if rng.random() < 0.46:
            self.break_something(shape)
        if len(plan.features) < 2:
            self.enrich()
        plan.asked += ["127.0.0.1" if self.family == 4 else "::1", "192.0.2.1" if self.family == 4 else "2001:db8::1"]
        return plan

    def segment(self) -> None:
        """Both pods in one subnet, on bridges that a VXLAN joins."""
        rng, plan = self.rng, self.plan
        self.bridged = True
        net = self.net(1)
        for pod, router, host in (("S", "A", rng.randrange(10, 100)), ("D", "B", rng.randrange(100, 200))):
            theirs, ours = self.wire(pod, router, 1400)
            bridge = self.bridges[router] = self.device(router)
            plan.do(router, f"link add {bridge} type bridge", f"link set {bridge} up", f"link set {ours} master {bridge}")
            self.bystander(router, bridge, None)
            self.hold(pod, theirs, self.address(net, host))
            if rng.random() < 0.5:
                self.hold(router, bridge, self.address(net, 1 if router == "A" else 2))
            if pod == "D":
                plan.target = self.address(net, host)
            plan.asked.append(self.address(net, host))
        self.vxlan(1)

    def enrich(self) -> None:
        """Every topology shows two features at least: more rules and routes until it does, on the source."""
        plan, rng = self.plan, self.rng
        family = "-6 " if self.family == 6 else ""
        table = rng.randrange(300, 400)
        other = "203.0.113.0/24" if self.family == 4 else "2001:db8:7::/48"
        missing = [name for name in ("policy rule", "blackhole") if name not in plan.features]
        for name in missing[: 2 - len(plan.features)]:
            plan.features.add(name)
            if name == "policy rule":
                plan.after("S", f"{family}rule add priority {rng.randrange(50, 99)} to {other} lookup {table}")
                plan.after("S", f"route add unreachable {other} table {table}")
            else:
                plan.after("S", f"route add blackhole {other} metric {rng.randrange(1, 50)}")
        plan.asked.append(
            other.partition("/")[0].rstrip(":") + ("::9" if self.family == 6 else "").replace(":::", "::")
            if self.family == 6
            else "203.0.113.9"
        )

    def break_something(self, shape: str) -> None:
        rng, plan = self.rng, self.plan
        full = 32 if self.family == 4 else 128
        routed = ["reject", "no route", "no forwarding", "ttl", "nobody", "wrong neighbour"]
        common = ["down", "no listener", "too big", "source route", "no such address"]
        if shape == "vxlan" or shape == "segment":
            common.append("no fdb")
        if "VLAN bridge" in plan.features:
            common.append("vlan")
        fault = rng.choice(common + (routed if shape != "segment" else []))
        plan.faults.append(fault)
        role = rng.choice("AB")
        if fault == "reject":
            kind = rng.choice(["blackhole", "unreachable", "prohibit"])
            plan.features.add("blackhole")
            plan.after(role, f"route add {kind} {plan.target}/{full}")
        elif fault == "no route":
            plan.after(
                "A", f"route flush {self.prefix(self.net(2))}" if self.family == 4 else f"-6 route flush {self.prefix(self.net(2))}"
            )
        elif fault == "no forwarding":
            name = "net.ipv4.ip_forward" if self.family == 4 else "net.ipv6.conf.all.forwarding"
            plan.late.setdefault(role, []).append((name, "0"))
            self.forwarding_off = (role, name)
        elif fault == "ttl":
            plan.ttl = rng.choice([1, 2])
        elif fault in ("nobody", "no such address"):
            plan.target = self.address(self.net(2 if shape != "segment" else 1), 222)
        elif fault == "wrong neighbour":
            plan.after("S", f"neigh add {self.gateways['A']} lladdr 02:de:ad:00:00:01 dev {self.first_device('S')} nud permanent")
        elif fault == "down":
            a, left, b, right, _ = rng.choice(plan.wires)
            plan.after(*rng.choice([(a, f"link set {left} down"), (b, f"link set {right} down")]))
        elif fault == "no listener":
            plan.listen = False
        elif fault == "too big":
            plan.size, plan.df, plan.warm = 2000, True, False
        elif fault == "source route":
            plan.after(
                "S",
                f"{'-6 ' if self.family == 6 else ''}rule add priority 7 to {plan.target} {rng.choice(['blackhole', 'unreachable', 'prohibit'])}",
            )
            plan.features.add("policy rule")
        elif fault == "no fdb":
            entry = [line for line in plan.bridge.get("A", []) if line.startswith("fdb append")]
            if entry:
                plan.bridge["A"].remove(entry[0])
            else:
                plan.switch(role, f"fdb del 00:00:00:00:00:00 dev {self.vxlan_device(role)}")
        elif fault == "vlan":
            role = rng.choice([each for each, lines in plan.bridge.items() if any("vlan add" in line for line in lines)])
            lines = plan.bridge[role]
            line = rng.choice([line for line in lines if line.startswith("vlan add")])
            lines.append(line.replace("vlan add", "vlan del").replace(" pvid untagged", ""))

    def first_device(self, role: str) -> str:
        return next(left if a == role else right for a, left, b, right, _ in self.plan.wires if role in (a, b))

    def vxlan_device(self, role: str) -> str:
        return next(line.split()[2] for line in self.plan.ip[role] if "type vxlan" in line)


def draw(seed: int, *, vlans: bool = True) -> Plan:
    """The plan of a seed; the same each time. Without `vlans` (a kernel that has none) nothing VLAN-aware is in it."""
    return Drawing(seed, vlans).draw()
