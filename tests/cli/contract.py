"""The JSON documents' shape, as promised: every key, its type, whether it may be null or absent."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Key:
    """What stands behind one key. `null`: not known is possible; `optional`: it may not apply."""

    check: Check
    null: bool = False
    optional: bool = False


Shape: TypeAlias = dict[str, Key]
Check: TypeAlias = "Callable[[Any, str], list[str]]"


def kind(*types: type) -> Check:
    def check(value: Any, at: str) -> list[str]:
        right = isinstance(value, types) and not (isinstance(value, bool) and bool not in types)
        return [] if right else [f"{at}: {value!r} is no {' or '.join(each.__name__ for each in types)}"]

    return check


def word(*allowed: str) -> Check:
    return lambda value, at: [] if value in allowed else [f"{at}: {value!r} is none of {', '.join(allowed)}"]


def matching(pattern: str) -> Check:
    return lambda value, at: [] if isinstance(value, str) and re.fullmatch(pattern, value) else [f"{at}: {value!r}"]


def many(check: Check) -> Check:
    def checked(value: Any, at: str) -> list[str]:
        if not isinstance(value, list):
            return [f"{at}: {value!r} is no list"]
        return [problem for number, item in enumerate(value) for problem in check(item, f"{at}[{number}]")]

    return checked


def obj(shape: Shape, *, more: bool = False) -> Check:
    """An object with these keys and, unless `more`, no others."""

    def check(value: Any, at: str) -> list[str]:
        if not isinstance(value, dict):
            return [f"{at}: {value!r} is no object"]
        problems = [] if more else [f"{at}.{name}: not in the reference" for name in value if name not in shape]
        for name, key in shape.items():
            if name not in value:
                problems += [] if key.optional else [f"{at}.{name}: missing"]
            elif value[name] is None:
                problems += [] if key.null else [f"{at}.{name}: null"]
            else:
                problems += key.check(value[name], f"{at}.{name}")
        return problems

    return check


TEXT, INT, NUMBER, BOOL = kind(str), kind(int), kind(int, float), kind(bool)


def must(check: Check) -> Key:
    return Key(check)


def maybe(check: Check) -> Key:
    """May be null."""
    return Key(check, null=True)


def where(check: Check) -> Key:
    """Absent where it does not apply."""
    return Key(check, optional=True)


def _interval(value: Any, at: str) -> list[str]:
    right = isinstance(value, list) and len(value) == 2 and value[0] <= value[1]
    return [] if right else [f"{at}: {value!r} is no interval"]


STATS = obj(
    {
        "count": must(INT),
        **{name: must(NUMBER) for name in ("mean", "min", "p50", "p90", "p99", "max", "uncorrected_mean")},
        "ci95": maybe(_interval),
    }
)
NETNS = obj({"inode": must(INT), "name": must(TEXT)})
DEVICE = obj({"name": must(TEXT), "ifindex": must(INT), "kind": must(TEXT)})
RULE = obj(
    {
        "text": must(TEXT),
        "table": maybe(TEXT),
        "chain": maybe(TEXT),
        "comment": maybe(TEXT),
        "basis": must(word("evaluated", "observed")),
        "service": where(TEXT),
    }
)
HEADER = obj(
    {"proto": must(word("ethernet", "vlan", "ipv4", "ipv6", "udp", "tcp", "icmp", "icmpv6", "vxlan", "opaque"))}, more=True
)
PAIR = obj({"src": must(TEXT), "dst": must(TEXT)})
DATAPATH = obj({"cni": must(TEXT), "mode": must(TEXT), "confidence": must(NUMBER), "evidence": must(many(TEXT))})
NODE = obj({"name": must(TEXT), "kernel": maybe(TEXT), "datapaths": must(many(DATAPATH))})
ENDPOINT = obj({"text": must(TEXT), "netns": maybe(INT), "address": maybe(TEXT), "workload": maybe(TEXT)})
PATH_MTU = obj({"ip": must(INT), "payload": must(INT), "limited_by_hop": must(INT)})
COMPLETENESS = obj(
    {
        "verdict": must(word("COMPLETE", "PARTIAL")),
        "lost_events": must(INT),
        "missing_hooks": must(many(TEXT)),
        "reasons": must(many(TEXT)),
    }
)
TRANSLATION = obj(
    {
        "hop": must(INT),
        "kind": must(word("dnat", "snat", "masquerade", "redirect", "ipvs", "proxy")),
        "reverse": must(BOOL),
        "before": must(PAIR),
        "after": must(PAIR),
        "rule": maybe(RULE),
        "hook": where(TEXT),
        "conntrack": where(BOOL),
    }
)
DROP = obj(
    {
        "hop": must(INT),
        "reason": must(TEXT),
        "cause": must(TEXT),
        "remedy": maybe(TEXT),
        "device": where(DEVICE),
        "netns": where(NETNS),
        "rule": where(RULE),
    }
)


def _head(document_kind: str, request: Check) -> Shape:
    return {
        "apiVersion": must(word("netpath/v1alpha1")),
        "kind": must(word(document_kind)),
        "startedAt": must(matching(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")),
        "tool": must(TEXT),
        "nodes": must(many(NODE)),
        "request": must(request),
    }


def _request(*, trace: bool, measured: bool = False) -> Check:
    shape: Shape = {
        "source": must(ENDPOINT),
        "destination": must(ENDPOINT),
        "protocol": must(word("udp", "tcp", "icmp")),
        "port": where(INT),
        "size": must(INT),
        "df": must(BOOL),
        "ttl": must(INT),
        "sport": Key(INT, null=True, optional=True),
    }
    if trace:
        shape |= {"count": must(INT), "interval": must(NUMBER), "round_trip": must(BOOL)}
    if measured:
        shape |= {"rate": must(NUMBER), "flow": maybe(word("new", "established", "both")), "precision": maybe(NUMBER)}
    return obj(shape)


def _path(*, trace: bool, measured: bool = False) -> Check:
    statuses = ("observed", "missing", "unexpected", "unprobed") if trace else ("predicted", "uncertain")
    delivery: Shape = {"netns": must(NETNS), "to": must(TEXT), "process": maybe(TEXT)}
    hop: Shape = {
        "index": must(INT),
        "status": must(word(*statuses)),
        "node": maybe(TEXT),
        "netns": must(NETNS),
        "workload": maybe(TEXT),
        "device": must(DEVICE),
        "direction": must(word("tx", "rx")),
        "length": must(INT),
        "ip_length": must(INT),
        "mtu": maybe(INT),
        "headers": must(many(HEADER)),
        "note": where(TEXT),
    }
    stage: Shape = {
        "stage": must(TEXT),
        "from_hop": must(INT),
        "to_hop": must(INT),
        "bytes": must(INT),
        "detail": must(obj({}, more=True)),
    }
    whole: Shape = {
        "direction": must(word("forward", "return")),
        "share": must(NUMBER),
        "outcome": must(word("delivered", "rejected", "dropped", "lost", "uncertain")),
        "translations": must(many(TRANSLATION)),
        "drop": maybe(DROP),
        "uncertain": must(many(TEXT)),
    }
    if trace:
        hop |= {"since_start_ns": where(STATS), "segment_ns": where(STATS)}
        stage |= {"ns": where(STATS)}
        delivery |= {"hook": where(TEXT), "since_start_ns": where(STATS), "segment_ns": where(STATS)}
        encap = obj({"bytes": must(INT), "ns": maybe(STATS), "share": maybe(NUMBER)})
        conntrack = obj({"ns": maybe(STATS), "share": maybe(NUMBER)}, more=True)
        nat = obj({"translations": must(INT), "ns": maybe(STATS), "share": maybe(NUMBER)})
        userspace = obj({"crossings": must(INT), "ns": maybe(STATS)}, more=True)
        overhead: Shape = {
            "encap": must(encap),
            "nat": must(nat),
            "conntrack": must(conntrack),
            "userspace": must(userspace),
            "one_way_ns": maybe(STATS),
        }
        whole |= {"probes": must(INT), "overhead": must(obj(overhead))}
    if measured:
        whole |= {"series": must(INT)}
    return obj(whole | {"hops": must(many(obj(hop))), "stages": must(many(obj(stage))), "delivery": maybe(obj(delivery))})


PREDICTION = obj(
    {
        "outcome": must(word("delivered", "rejected", "dropped", "uncertain", "mixed")),
        "paths": must(many(_path(trace=False))),
        "path_mtu": maybe(PATH_MTU),
    }
)
PATH = obj(
    _head("Path", _request(trace=False))
    | {
        "outcome": must(word("delivered", "rejected", "dropped", "uncertain", "mixed")),
        "paths": must(many(_path(trace=False))),
        "path_mtu": maybe(PATH_MTU),
    }
)


def _trace(*, measured: bool = False) -> Shape:
    return _head("Trace", _request(trace=True, measured=measured)) | {
        "outcome": must(word("delivered", "rejected", "dropped", "lost", "mixed")),
        "paths": must(many(_path(trace=True, measured=measured))),
        "prediction": must(PREDICTION),
        "round_trip_ns": where(STATS),
        "path_mtu": maybe(PATH_MTU),
        "probe_cost": must(obj({"ns_per_event": maybe(NUMBER), "uncertainty_ns": maybe(NUMBER)})),
        "completeness": must(COMPLETENESS),
        "sent": must(INT),
        "notes": must(many(TEXT)),
        "timings_ms": must(obj({}, more=True)),
    }


TRACE = obj(_trace())
_SERIES = obj(
    {
        "way": must(word("path", "underlay")),
        "flow": must(word("new", "established")),
        "size": must(INT),
        "probes": must(INT),
        "outcomes": must(obj({}, more=True)),
        "one_way_ns": maybe(STATS),
        "p50_ci95": maybe(_interval),
        "p50_all": maybe(NUMBER),
        "p99_all": maybe(NUMBER),
        "outliers": must(obj({"count": must(INT), "above_ns": maybe(NUMBER), "max_ns": maybe(NUMBER)})),
        "histogram": maybe(obj({"start": must(NUMBER), "width": must(NUMBER), "counts": must(many(INT)), "above": must(INT)})),
        "ip_length": maybe(INT),
        "encap_bytes": maybe(INT),
        "translations": maybe(INT),
        "crossings": maybe(INT),
        "stages": must(many(obj({"stage": must(TEXT), "ns": must(NUMBER), "share": must(NUMBER)}))),
        "round_trip_ns": where(STATS),
    }
)
_COMPARISON = obj(
    {
        "flow": must(word("new", "established")),
        "size": must(INT),
        **{name: must(NUMBER) for name in ("path_ns", "underlay_ns", "extra_ns", "ratio")},
        "extra_ci95": maybe(_interval),
        "ratio_ci95": maybe(_interval),
        "encap_bytes": maybe(INT),
        "bytes_of_probe": maybe(NUMBER),
        "bytes_of_full": maybe(NUMBER),
    }
)
_BASELINE = obj(
    {
        "applies": must(BOOL),
        **{name: maybe(TEXT) for name in ("reason", "source", "destination", "source_address", "address")},
        "paths": where(many(_path(trace=True, measured=True))),
    }
)
_LOAD = obj(
    {
        "protocol": must(word("tcp", "udp")),
        "size": maybe(INT),
        "slices": must(INT),
        "seconds": must(NUMBER),
        "path_bits_per_second": must(NUMBER),
        **{
            name: maybe(NUMBER)
            for name in ("underlay_bits_per_second", "ratio", "path_lost", "path_cpu_ns", "underlay_cpu_ns", "cpu_ratio")
        },
        "ratio_ci95": maybe(_interval),
        "cpu_unit": must(word("packet", "kilobyte")),
        "cpu_source": must(TEXT),
    }
)
MEASUREMENT = obj(
    _trace(measured=True)
    | {
        "series": must(many(_SERIES)),
        "comparisons": must(many(_COMPARISON)),
        "baseline": must(_BASELINE),
        "conntrack": must(many(obj({"netns": must(TEXT), "before": must(INT), "after": must(INT), "limit": must(INT)}))),
        "stopped": must(word("count", "precision", "conntrack")),
        "rate": must(NUMBER),
        "load": where(many(_LOAD)),
    }
)
_RATIO = obj({"value": must(NUMBER), "ci95": maybe(_interval)})
_MODE = obj(
    {
        **{name: must(TEXT) for name in ("mode", "summary", "real_parts")},
        **{name: maybe(NUMBER) for name in ("one_way_p50", "one_way_p99", "one_way_new_p50", "rtt_to_hostgw", "tcp_to_hostgw")},
        **{
            name: maybe(NUMBER)
            for name in ("cpu_ratio", "packet_cpu_ns", "packet_cpu_ratio", "encap_ns", "nat_established_ns", "nat_new_ns")
        },
        **{name: must(NUMBER) for name in ("rtt_p50", "tcp_bits_per_second")},
        **{name: maybe(INT) for name in ("encap_bytes", "translations", "crossings")},
        "one_way_ratio": maybe(_RATIO),
        "rtt_ratio": must(_RATIO),
        "tcp_ratio": must(_RATIO),
        "routes_per_node": must(INT),
        "stages": must(many(obj({"stage": must(TEXT), "ns": must(NUMBER), "share": must(NUMBER)}))),
        "complete": must(BOOL),
    }
)
_CLAIM = obj(
    {
        **{name: must(TEXT) for name in ("mode", "claim", "measured", "basis")},
        "verdict": must(word("holds here", "does not hold here", "undecided here", "not measured")),
    }
)
COMPARISON = obj(
    _head("Comparison", obj({"modes": must(many(TEXT)), "rounds": must(INT), "count": must(INT)}))
    | {
        "modes": must(many(_MODE)),
        "claims": must(many(_CLAIM)),
        "skipped": must(obj({}, more=True)),
        "incomplete": must(BOOL),
        "rounds": must(INT),
        "caveat": must(TEXT),
        "kernel": must(TEXT),
    }
)
INVENTORY = obj(
    _head("Inventory", obj({}))
    | {
        "namespaces": must(
            many(
                obj(
                    {
                        "inode": must(INT),
                        "name": must(TEXT),
                        "names": must(many(TEXT)),
                        "node": maybe(TEXT),
                        "workload": maybe(TEXT),
                        "problems": must(many(TEXT)),
                    }
                )
            )
        ),
        "devices": must(
            many(
                obj(
                    {
                        "netns": must(NETNS),
                        "name": must(TEXT),
                        "ifindex": must(INT),
                        "kind": must(TEXT),
                        "mtu": must(INT),
                        "mac": maybe(TEXT),
                        "flags": must(many(TEXT)),
                        "master": where(INT),
                        "peer": Key(obj({"netns": must(INT), "ifindex": must(INT)}), null=True, optional=True),
                        "addresses": must(many(TEXT)),
                        "vxlan": where(obj({"vni": must(INT), "port": must(INT)}, more=True)),
                        "vlan": where(INT),
                    }
                )
            )
        ),
        "workloads": must(many(obj({"reference": must(TEXT), "netns": must(INT)}, more=True))),
        "problems": must(many(TEXT)),
    }
)
PROBES = obj(
    _head("Probes", obj({}))
    | {
        "hooks": must(
            many(
                obj(
                    {
                        "name": must(TEXT),
                        "available": must(BOOL),
                        "detail": must(TEXT),
                        "loss": must(TEXT),
                        "option": maybe(TEXT),
                        "requirement": maybe(TEXT),
                    }
                )
            )
        ),
        "used": must(many(TEXT)),
    }
)
SNAPSHOT = obj(
    _head("Snapshot", obj({}))
    | {"snapshot": must(obj({"schema": must(INT), "namespaces": must(many(obj({}, more=True)))}, more=True))}
)


def check(document: Any, shape: Check) -> None:
    problems = shape(document, "$")
    assert not problems, "\n".join(problems[:20])


def names(values: Sequence[Any]) -> list[str]:
    return [value["name"] for value in values]
