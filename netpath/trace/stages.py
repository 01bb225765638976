"""What a packet goes through inside the kernel between two devices, told apart by marks at the netfilter hooks. Pure.

`plan` says where to put the marks, from what the namespaces on a path have registered; `split` names the time between two marks
by what lies between them. Time in which several things happen that no mark separates is `other`.

Order of the hooks: net/ipv4/ip_input.c, ip_forward.c, ip_output.c; priorities: include/uapi/linux/netfilter_ipv4.h.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from netpath.model.event import LOCAL_IN_PRIORITY, LOCAL_OUT_PRIORITY, QUEUED, Boundary, Event, Stamp
from netpath.model.index import SnapshotIndex
from netpath.model.packet import Headers, Ipv4, Ipv6
from netpath.model.path import Prediction
from netpath.model.snapshot import Namespace

LOWEST, HIGHEST = -(2**31) + 1, 2**31 - 2
"""The first and the last priority are not given to eBPF programs (net/netfilter/nf_bpf_link.c)."""
ONWARD = {("prerouting", "forward"), ("prerouting", "input"), ("forward", "postrouting"), ("output", "postrouting")}
"""Pairs of hooks that follow one another, with nothing but IP's own work (route lookup, TTL, options) between them."""
CONFIRMING = ("input", "postrouting")
"""Hooks at whose very end conntrack enters a new connection into its table (nf_confirm, priority INT_MAX)."""

Key = tuple[int, int, str]
"""(namespace, family, hook)"""


@dataclass(frozen=True, slots=True)
class Registered:
    """What the kernel runs at the netfilter hooks of the namespaces on a path: (priority, conntrack | nat | filter) in order."""

    at: Mapping[Key, tuple[tuple[int, str], ...]] = field(default_factory=dict)

    def boundaries(self, netns: int) -> tuple[Boundary, ...]:
        """The marks that separate the stages in a namespace, as few as will do; the marks of the local hooks are counted on."""
        found: list[Boundary] = []
        for (inode, family, hook), entries in self.at.items():
            if inode == netns:
                found += _around(family, hook, entries)
        return tuple(found)

    def marks(self) -> dict[int, int]:
        """How many marks each namespace has."""
        return {netns: len(self.boundaries(netns)) for netns, _, _ in self.at}

    def work(self, key: Key, after: int | None, before: int | None) -> set[str]:
        """What is registered at a hook from one priority to another; None: from its beginning, to its end."""
        entries = self.at.get(key, ())
        return {what for number, what in entries if (after is None or number >= after) and (before is None or number < before)}

    def tracks(self, netns: int, family: int) -> bool:
        return any(
            what == "conntrack"
            for (inode, of, _), entries in self.at.items()
            if (inode, of) == (netns, family)
            for _, what in entries
        )


def _around(family: int, hook: str, entries: Sequence[tuple[int, str]]) -> list[Boundary]:
    groups: list[tuple[str, int, int]] = []
    for number, what in entries:
        if groups and groups[-1][0] == what:
            groups[-1] = (what, groups[-1][1], number)
        else:
            groups.append((what, number, number))
    if not groups:
        # Nothing but a place on the way: where IP's input ends and its routing begins, or the other way round.
        return [Boundary(family, hook, 0, 100)] if hook in ("prerouting", "forward") else []
    found: list[Boundary] = []
    first, last = groups[0][1], groups[-1][2]
    if hook != "output" or first < LOCAL_OUT_PRIORITY:
        found.append(Boundary(family, hook, max(LOWEST, first - 1), max(LOWEST, first - 32)))
    found += [Boundary(family, hook, end + 1, start) for (_, _, end), (_, start, _) in pairwise(groups)]
    if hook != "input" or last >= LOCAL_IN_PRIORITY:
        found.append(Boundary(family, hook, min(HIGHEST, last + 1), min(HIGHEST, last + 32)))
    return found


def plan(prediction: Prediction, index: SnapshotIndex) -> Registered:
    """What is registered in the namespaces that a predicted path crosses above layer 2, for the families that cross them."""
    from netpath.netfilter.evaluate import RulesetEvaluator
    from netpath.netfilter.types import HOOKS

    wanted: dict[int, set[int]] = {}
    for path in prediction.paths:
        for hop in path.hops:
            wanted.setdefault(hop.netns.inode, set()).update({family} if (family := outer_family(hop.headers)) else ())
    found: dict[Key, tuple[tuple[int, str], ...]] = {}
    for inode, families in wanted.items():
        namespace = index.namespace(inode)
        if namespace is None:
            continue
        key = ("registered", inode)
        if key not in index.prepared:
            rules = RulesetEvaluator(namespace)
            index.prepared[key] = {(family, hook): rules.registered(hook, family) for family in (4, 6) for hook in HOOKS}
        registered = index.prepared[key]
        if not any(registered.values()) and not _has_ip(namespace):
            continue  # a bridge and its ports: no packet gets to IP here
        found |= {(inode, family, hook): registered[family, hook] for family in sorted(families) for hook in HOOKS}
    return Registered(found)


def _has_ip(namespace: Namespace) -> bool:
    """It holds an address by which others may know it: not of the loopback, not of the link alone."""
    held = [ipaddress.ip_address(item.address.partition("%")[0]) for item in namespace.addresses]
    return any(not address.is_loopback and not address.is_link_local for address in held)


def outer_family(headers: Headers) -> int | None:
    """4 or 6: the version of the outermost IP header."""
    for header in headers:
        if isinstance(header, Ipv4 | Ipv6):
            return 4 if isinstance(header, Ipv4) else 6
    return None


@dataclass(frozen=True, slots=True)
class Part:
    """The time from one sighting to the next, and what it was spent on."""

    stage: str
    before: Event | Stamp
    after: Event | Stamp
    detail: Mapping[str, object] = field(default_factory=dict)


def between(before: Event | None, after: Event, marks: Iterable[Event], stamps: Iterable[Stamp]) -> tuple[Event | Stamp, ...]:
    """All sightings of one packet from `before` (None: from its first one) to `after`, in the order of time."""
    start = before.time_ns if before is not None else 0
    seen: list[Event | Stamp] = [*marks, *stamps]
    inner = [each for each in seen if start < each.time_ns < after.time_ns]
    inner.sort(key=lambda sighting: sighting.time_ns)
    return (*([before] if before is not None else ()), *inner, after)


def split(points: Sequence[Event | Stamp], base: str, registered: Registered) -> tuple[Part, ...]:
    """Name the time between adjacent sightings. `base` is what the devices at both ends say the whole of it is."""
    if len(points) == 2 and not any(isinstance(point, Stamp) or _hook(point) for point in points):
        return (Part(base, points[0], points[1]),)
    return tuple(Part(_name(one, two, base, registered), one, two, _detail(one, two, registered)) for one, two in pairwise(points))


def _hook(point: Event | Stamp) -> tuple[int, str, int] | None:
    """(family, hook, priority) of a sighting at a netfilter hook; None at a device or a socket."""
    if isinstance(point, Stamp):
        if point.hook == QUEUED:
            return None  # as at the device whose queue it is
        return point.family, point.hook, point.priority
    if point.hook in ("local_in", "local_out"):
        inward = point.hook == "local_in"
        family = outer_family(point.headers) or 4
        return family, "input" if inward else "output", LOCAL_IN_PRIORITY if inward else LOCAL_OUT_PRIORITY
    return None


def _name(one: Event | Stamp, two: Event | Stamp, base: str, registered: Registered) -> str:
    if one.hook == QUEUED:
        # sch_direct_xmit (net/sched/sch_generic.c): from the queue to the device's driver, whenever that is.
        return "qdisc" if two.hook == "tx" else "other"
    here, there = _hook(one), _hook(two)
    if here is None and there is None:
        return base if base == "userspace" or two.hook == QUEUED else "other"
    if here is not None and there is not None:
        family, hook, priority = here
        if hook == there[1]:
            work = registered.work((one.netns, family, hook), priority, there[2])
        elif (hook, there[1]) in ONWARD:
            # br_netfilter shows bridged packets to these hooks; what lies between them is then the bridge's work.
            work = {"bridge" if base == "bridge" else "route"} | registered.work((one.netns, family, hook), priority, None)
            work |= registered.work((two.netns, there[0], there[1]), None, there[2])
        else:
            work = {"other"}
        return work.pop() if len(work) == 1 else "other"
    if here is not None:
        if registered.work((one.netns, here[0], here[1]), here[2], None):
            return "other"
        if here[1] == "input":
            socket = isinstance(two, Event) and two.hook == "socket"
            return "socket" if socket else base if base in ("decap", "userspace") else "other"
        return base if base == "bridge" and here[1] != "output" else "other"
    assert there is not None
    if registered.work((two.netns, there[0], there[1]), None, there[2]):
        return "other"
    if there[1] == "output":
        return base if base in ("encap", "userspace") else "other"
    return base if base == "bridge" else "other"


def _detail(one: Event | Stamp, two: Event | Stamp, registered: Registered) -> dict[str, object]:
    here, there = _hook(one), _hook(two)
    if here is not None and there is not None and here[1] == there[1]:
        return {"hook": here[1]}
    if isinstance(two, Event) and two.hook == "tun_read":
        return {"work": "wake-up and read"}
    if isinstance(one, Event) and one.hook in ("tun_read", "socket"):
        return {"work": "look-up and send" if one.hook == "tun_read" else "wake-up, receive and write"}
    if here is not None and there is None and here[1] in CONFIRMING and registered.tracks(one.netns, here[0]):
        return {"includes": "conntrack's confirmation of a new connection"}
    return {}
