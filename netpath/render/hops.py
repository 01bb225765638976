"""Paths and traces as tables that a tired person can read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from tabulate import tabulate

from netpath.model.packet import Headers, Icmp, Ipv4, Ipv6, Opaque, Tcp, Udp, Vlan, VxlanHeader
from netpath.model.path import Completeness, Hop, Path, PathMtu, Prediction, RuleRef, Stats, Trace, Translation
from netpath.render.text import Screen, clean, command, duration, fold, seen

_MARKS = {
    "observed": "",
    "predicted": "",
    "missing": "MISSING",
    "unexpected": "UNEXPECTED",
    "unprobed": "unprobed",
    "uncertain": "uncertain",
}
_OUTCOMES = {"delivered": "good", "rejected": "warn", "dropped": "bad", "lost": "bad", "mixed": "warn", "uncertain": "warn"}
_COLUMNS = ("#", "NODE", "NETNS", "DEVICE", "DIR", "PACKET", "LENGTH", "AT", "HOP", "")
_WIDE = (
    "#",
    "NODE",
    "NETNS",
    "WORKLOAD",
    "DEVICE",
    "IFINDEX",
    "KIND",
    "DIR",
    "PACKET",
    "LENGTH",
    "IP",
    "MTU",
    "TTL",
    "AT",
    "HOP",
    "P50",
    "P99",
    "",
)
_NARROW = ("#", "DEVICE", "DIR", "LENGTH", "AT", "HOP", "")


def packet(headers: Headers) -> str:
    """What a packet looks like in one line: ``10.0.0.1:4000 > 10.0.0.2:53 udp``, with its tunnel in front when it is wrapped."""
    layers: list[str] = []
    source = target = ""
    for number, header in enumerate(headers):
        if isinstance(header, Ipv4 | Ipv6):
            source, target = header.src, header.dst
            following = headers[number + 1] if number + 1 < len(headers) else None
            if isinstance(following, Ipv4 | Ipv6):
                layers.append(f"{source} > {target} ipip")
            elif following is None:
                layers.append(f"{source} > {target}")
        elif isinstance(header, Udp | Tcp):
            following = headers[number + 1] if number + 1 < len(headers) else None
            if isinstance(following, VxlanHeader):
                layers.append(f"{source} > {target} vxlan {following.vni}")
            elif isinstance(following, Ipv4 | Ipv6):
                layers.append(f"{source} > {target} udp/{header.dport}")
            elif isinstance(header, Udp) and isinstance(following, Opaque):
                layers.append(f"{source} > {target} {clean(following.name)}/{header.dport}")
            else:
                flags = f" {header.flags}" if isinstance(header, Tcp) else ""
                layers.append(f"{_end(source, header.sport)} > {_end(target, header.dport)} {header.proto}{flags}")
        elif isinstance(header, Icmp):
            layers.append(f"{source} > {target} {_icmp(header)}")
        elif isinstance(header, Vlan):
            layers.append(f"vlan {header.vid}")
        elif isinstance(header, Opaque) and not (number and isinstance(headers[number - 1], Udp)):
            layers.append(f"{source} > {target} {clean(header.name)}")
    return " | ".join(layers)


def _icmp(header: Icmp) -> str:
    names = {8: "echo", 0: "echo reply", 3: "unreachable", 11: "time exceeded"}
    if header.proto == "icmpv6":
        names = {128: "echo", 129: "echo reply", 1: "unreachable", 2: "too big", 3: "time exceeded"}
    return f"{header.proto} {names.get(header.type, f'type {header.type}')}" + (f" code {header.code}" if header.code else "")


def _end(address: str, port: int | None) -> str:
    shown = "*" if port is None else str(port)
    return f"[{address}]:{shown}" if ":" in address else f"{address}:{shown}"


def ttl(headers: Headers) -> int | None:
    """The outermost TTL or hop limit."""
    return next((header.ttl for header in headers if isinstance(header, Ipv4 | Ipv6)), None)


def _time(stats: Stats | None) -> str:
    return duration(stats.mean) if stats is not None else ""


def _rows(hops: Sequence[Hop], screen: Screen, columns: Sequence[str]) -> list[list[str]]:
    rows: list[list[str]] = []
    before: Hop | None = None
    for hop in hops:
        change = hop.ip_length - before.ip_length if before is not None else 0
        shown, same = packet(hop.headers), before is not None and packet(before.headers) == packet(hop.headers)
        mark = _MARKS.get(hop.status, hop.status)
        if hop.note:
            mark = f"{mark} ({clean(hop.note)})" if mark else clean(hop.note)
        style = "bad" if hop.status in ("missing", "unexpected") else "warn" if mark else "dim"
        cells = {
            "#": str(hop.index),
            "NODE": clean(hop.node or "-"),
            "NETNS": clean(hop.netns.name),
            "WORKLOAD": clean(hop.workload or "-"),
            "DEVICE": clean(hop.device.name),
            "IFINDEX": str(hop.device.ifindex),
            "KIND": clean(hop.device.kind),
            "DIR": hop.direction,
            "PACKET": "\N{DITTO MARK}" if same and "KIND" not in columns else shown,
            "LENGTH": f"{hop.length}" + (f" ({change:+d})" if change else ""),
            "IP": str(hop.ip_length),
            "MTU": str(hop.mtu) if hop.mtu is not None else "?",
            "TTL": str(ttl(hop.headers) or ""),
            "AT": _time(hop.since_start_ns),
            "HOP": _time(hop.segment_ns),
            "P50": duration(hop.segment_ns.p50) if hop.segment_ns else "",
            "P99": duration(hop.segment_ns.p99) if hop.segment_ns else "",
            "": screen.style(mark, style),
        }
        rows.append([cells[column] for column in columns])
        before = hop
    return rows


def hop_table(hops: Sequence[Hop], screen: Screen, *, wide: bool = False) -> str:
    """The hops of one path. On a screen that is too narrow they stand below their namespace, and the packet below that."""
    chosen: Sequence[str] = _WIDE if wide else _COLUMNS
    if not any(hop.since_start_ns for hop in hops):
        chosen = [column for column in chosen if column not in ("AT", "HOP", "P50", "P99")]
    table = _tabulate(_rows(hops, screen, chosen), chosen)
    if wide or max((seen(line) for line in table.splitlines()), default=0) <= screen.width or not hops:
        return table
    return "\n".join(_narrow(hops, screen, [column for column in _NARROW if column in chosen]))


def _narrow(hops: Sequence[Hop], screen: Screen, columns: Sequence[str]) -> list[str]:
    bare = [replace(hop, note=None) for hop in hops]
    head, *rows = _tabulate(_rows(bare, screen, columns), columns).splitlines()
    lines, place, looks = [head], "", ""
    for hop, row in zip(hops, rows, strict=True):
        here = clean(hop.netns.name) + (f" on {clean(hop.node)}" if hop.node and hop.node != hop.netns.name else "")
        if here != place:
            lines += [screen.style(line, "head") for line in fold(here, screen.width)]
        now = packet(hop.headers)
        if now != looks:
            for layer in now.split(" | "):
                lines += [screen.style(line, "dim") for line in fold(layer, screen.width, first="      ", rest="        ")]
        lines.append(row.rstrip())
        if hop.note:
            lines += [screen.style(line, "warn") for line in fold(clean(hop.note), screen.width, first="      ", rest="      ")]
        place, looks = here, now
    return lines


def _tabulate(rows: list[list[str]], columns: Sequence[str]) -> str:
    aligned = [
        "right" if column in ("#", "LENGTH", "IP", "MTU", "TTL", "AT", "HOP", "P50", "P99", "IFINDEX") else "left"
        for column in columns
    ]
    return tabulate(rows, headers=list(columns), tablefmt="plain", colalign=aligned if rows else None, disable_numparse=True)


def stage_table(path: Path) -> str:
    """What the time between the hops was spent on, one line for each stage."""
    rows = []
    for stage in path.stages:
        if stage.ns is None:
            continue
        detail = ", ".join(f"{clean(str(name))} {clean(str(value))}" for name, value in stage.detail.items())
        to = "socket" if stage.from_hop == stage.to_hop else str(stage.to_hop)
        times = [duration(value) for value in (stage.ns.mean, stage.ns.p50, stage.ns.p99)]
        added = f"{stage.bytes:+d}" if stage.bytes else ""
        rows.append([f"{stage.from_hop or 'call'} > {to}", stage.stage, *times, added, detail])
    columns = ("BETWEEN", "STAGE", "TIME", "P50", "P99", "BYTES", "")
    aligned = ("left", "left", "right", "right", "right", "right", "left")
    return tabulate(rows, headers=columns, tablefmt="plain", colalign=aligned, disable_numparse=True) if rows else ""


def translation_lines(translations: Iterable[Translation], width: int) -> list[str]:
    """One line for each rewrite, and one below it for the rule behind it."""
    lines: list[str] = []
    for item in translations:
        sides = [side for side in ("src", "dst") if getattr(item.before, side) != getattr(item.after, side)]
        changes = ", ".join(f"{side} {clean(getattr(item.before, side))} -> {clean(getattr(item.after, side))}" for side in sides)
        name = f"{item.kind} (undone)" if item.reverse else item.kind
        confirmed = ", in conntrack" if item.conntrack else ""
        text = f"{name} before hop {item.hop}: {changes}{confirmed}"
        lines += fold(text, width, first="  ", rest="      ")
        if item.rule is not None:
            service = f" [{clean(item.rule.service)}]" if item.rule.service else ""
            text = f"by {_place(item.rule)}{clean(item.rule.text)}{service} ({item.rule.basis})"
            lines += fold(text, width, first="    ", rest="      ")
    return lines


def _place(rule: RuleRef) -> str:
    """``table/chain: ``, as far as they are known."""
    place = "/".join(clean(part) for part in (rule.table, rule.chain) if part)
    return f"{place}: " if place else ""


def ending(path: Path, screen: Screen) -> list[str]:
    """How the path ended; for a drop what was the cause, the rule, and the command that mends it."""
    style = _OUTCOMES.get(path.outcome, "warn")
    if path.drop is not None:
        drop = path.drop
        where = f"after hop {drop.hop}" if drop.hop else "before the first hop"
        netns = f" in {clean(drop.netns.name)}" if drop.netns is not None else ""
        device = f" at {clean(drop.device.name)}" if drop.device is not None else ""
        first, *rest = fold(f"{path.outcome} {where}{netns}{device}: {clean(drop.reason)}", screen.width, rest="  ")
        lines = [screen.style(path.outcome, style) + first[len(path.outcome) :], *rest]
        lines += fold(f"cause: {clean(drop.cause)}", screen.width, first="  ", rest="    ")
        if drop.rule is not None:
            lines += fold(f"rule: {_place(drop.rule)}{clean(drop.rule.text)}", screen.width, first="  ", rest="    ")
        if drop.remedy:
            lines += command(f"  remedy: {clean(drop.remedy)}", screen.width, rest="    ")
        return lines
    text = path.outcome
    if path.delivery is not None:
        taken = path.delivery
        arrived = f" {duration(taken.since_start_ns.mean)} after its first hop" if taken.since_start_ns else ""
        hook = f" (seen by {taken.hook})" if taken.hook else ""
        process = f" {clean(taken.process)}" if taken.process else ""
        word = " delivery" if path.outcome == "uncertain" else ""
        text += f"{word} to {taken.to}{process} in {clean(taken.netns.name)}{arrived}{hook}"
    first, *rest = fold(text, screen.width, rest="  ")
    return [screen.style(path.outcome, style) + first[len(path.outcome) :], *rest]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _totals(path: Path) -> str | None:
    if path.overhead is None:
        return None
    encap, user, whole = path.overhead["encap"], path.overhead["userspace"], path.overhead["one_way_ns"]
    parts = []
    if encap["bytes"]:
        parts.append(f"encapsulation +{encap['bytes']} bytes")
        if encap["ns"] is not None and encap["share"] is not None:
            parts[-1] += f", {duration(encap['ns'].mean)} ({encap['share']:.0%} of the way)"
    else:
        parts.append("no encapsulation")
    nat, conntrack = path.overhead["nat"], path.overhead["conntrack"]
    parts.append(_count(nat["translations"], "translation") + (f", nat {duration(nat['ns'].mean)}" if nat["ns"] else ""))
    parts += [f"conntrack {duration(conntrack['ns'].mean)}"] if conntrack["ns"] else []
    if user["crossings"]:
        parts.append(_count(user["crossings"], "user-space segment") + (f", {duration(user['ns'].mean)}" if user["ns"] else ""))
    if whole is not None:
        parts.append(f"one way {duration(whole.mean)}")
    return "total: " + "; ".join(parts)


def _boundary(path: Path) -> str | None:
    """Where a packet that processes passed on crossed from user space into the kernel, and back."""
    if path.overhead is None or not path.overhead["userspace"]["crossings"]:
        return None
    seen = path.overhead["userspace"].get("boundary") or []
    parts, number = [], 0
    while number < len(seen):
        each = seen[number]
        process, where = clean(each["process"] or "a process"), clean(each["netns"])
        if each["into"] == "kernel":
            parts.append(f"into the kernel in {where}")
        elif number + 1 < len(seen) and seen[number + 1]["netns"] == each["netns"]:
            number += 1
            parts.append(f"out to {process} in {where}, and into it again")
        else:
            parts.append(f"out to {process} in {where}")
        number += 1
    return f"user space: {_count(len(seen), 'crossing')} of the kernel's boundary: {'; '.join(parts)}"


def _mtu(mtu: PathMtu | None) -> list[str]:
    return (
        [f"path MTU: {mtu.ip} bytes of IP, {mtu.payload} of payload (limited by hop {mtu.limited_by_hop})"]
        if mtu is not None
        else []
    )


def _title(path: Path, number: int, count: int, kind: str) -> str:
    head = f"{path.direction} path" if count == 1 else f"{path.direction} path {number} of {count}"
    if path.probes is not None:
        return f"{head}: {_count(path.probes, 'probe')} ({path.share:.0%}), {kind}"
    return f"{head}: {kind}" + (f", probability {path.share:.3g}" if path.share < 1 else "")


def _path(path: Path, title: str, screen: Screen, *, wide: bool) -> list[str]:
    lines = [screen.style(title, "head"), hop_table(path.hops, screen, wide=wide) if path.hops else "  (no device was reached)"]
    if wide and (table := stage_table(path)):
        lines += ["stages:", *(f"  {line}" for line in table.splitlines())]
    rewrites = translation_lines(path.translations, screen.width)
    if rewrites:
        lines += ["translations:", *rewrites]
    lines += ending(path, screen)
    for reason in path.uncertain:
        folded = fold(f"uncertain: {clean(reason)}", screen.width, first="  ", rest="    ")
        lines += [screen.style(line, "warn") for line in folded]
    return lines


def prediction_text(prediction: Prediction, screen: Screen, *, wide: bool = False) -> str:
    """What `netpath path` shows."""
    lines: list[str] = []
    for number, path in enumerate(prediction.paths, start=1):
        lines += [*_path(path, _title(path, number, len(prediction.paths), "predicted"), screen, wide=wide), ""]
    lines += _mtu(prediction.path_mtu)
    lines.append(f"prediction: {screen.style(prediction.outcome, _OUTCOMES.get(prediction.outcome, 'warn'))}")
    return "\n".join(lines) + "\n"


def trace_text(trace: Trace, screen: Screen, *, wide: bool = False) -> str:
    """What `netpath trace` shows."""
    lines: list[str] = []
    for direction in ("forward", "return"):
        chosen = [path for path in trace.paths if path.direction == direction]
        for number, path in enumerate(chosen, start=1):
            lines += _path(path, _title(path, number, len(chosen), "observed"), screen, wide=wide)
            for line in (_totals(path), _boundary(path)):
                lines += fold(line, screen.width, rest="  ") if line else []
            lines.append("")
    lines += _mtu(trace.path_mtu)
    if trace.round_trip_ns is not None:
        lines.append(
            f"round trip: {duration(trace.round_trip_ns.mean)} (p50 {duration(trace.round_trip_ns.p50)}, p99 {duration(trace.round_trip_ns.p99)})"
        )
    if trace.probe_cost.ns_per_event is not None:
        lines.append(f"probe cost: {duration(trace.probe_cost.ns_per_event)} an event, taken out of the times above")
    for note in trace.notes:
        lines += fold(f"note: {clean(note)}", screen.width, rest="  ")
    if wide and trace.timings_ms:
        spent = ", ".join(f"{name} {value:.0f}" for name, value in trace.timings_ms.items())
        lines.append(f"this run took (ms; btf, compile and load run beside the rest): {spent}")
    lines += _completeness(trace.completeness, screen)
    lines += _verdict(trace, screen)
    return "\n".join(lines) + "\n"


def _completeness(completeness: Completeness, screen: Screen) -> list[str]:
    if completeness.verdict == "COMPLETE" and not completeness.reasons:
        return []
    style = "warn" if completeness.verdict != "COMPLETE" else "dim"
    text = f"{completeness.verdict}: {'; '.join(clean(reason) for reason in completeness.reasons)}"
    return [screen.style(line, style) for line in fold(text, screen.width, rest="  ")]


def _verdict(trace: Trace, screen: Screen) -> list[str]:
    forward = [hop for path in trace.paths if path.direction == "forward" for hop in path.hops]
    differing = sum(hop.status in ("missing", "unexpected") for hop in forward)
    unwatched = sum(hop.status == "unprobed" for hop in forward)
    if trace.prediction.outcome == "uncertain":
        agreement = "the prediction was uncertain"
    elif trace.diverged:
        hops = f": {_count(differing, 'hop')} {'differs' if differing == 1 else 'differ'}" if differing else ""
        agreement = f"NOT as predicted ({trace.prediction.outcome}){hops}"
    else:
        agreement = "as predicted, hop by hop" + (f" ({unwatched} not watchable)" if unwatched else "")
    first, *rest = fold(f"verdict: {trace.outcome}, {agreement}; {trace.completeness.verdict}", screen.width, rest="  ")
    word = screen.style(trace.outcome, _OUTCOMES.get(trace.outcome, "warn"))
    marked = first.replace(trace.outcome, word, 1).replace("NOT as predicted", screen.style("NOT as predicted", "bad"))
    return [marked, *rest]
