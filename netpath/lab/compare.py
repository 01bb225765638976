"""Every datapath beside the same host sockets: builds labs, measures them in turns, and holds the articles' claims against the figures."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TypeVar

from netpath import lab
from netpath.errors import MissingError, NetpathError, UsageError
from netpath.lab import netns
from netpath.measure import load, plan, robust, session
from netpath.measure.client import Sender
from netpath.measure.load import Route, Slice
from netpath.measure.plan import MeasureRequest
from netpath.measure.result import Measurement, StageShare
from netpath.measure.robust import Interval
from netpath.measure.station import Station
from netpath.model.snapshot import Snapshot
from netpath.trace.stats import quantile

T = TypeVar("T")
Progress = Callable[[str], None]
HOST_GATEWAY = "flannel-hostgw"
SEED = 20
ROUNDS, COUNT = 2, 120
"""Turns through all modes, and probes of each kind in each. Fewer probes would not say well enough what their own events cost."""
CALIBRATIONS = 20
"""Fewer than a measurement alone would take: each mode is measured more than once, and all of them within minutes."""
SIZE = 64
PING_PAIRS, STREAM_PAIRS, DATAGRAM_PAIRS = 12, 8, 3
"""Each round: pairs of runs on the path and on the host sockets. Many short ones: what disturbs the machine lasts longer than one."""
DATAGRAM = 1400
"""Bytes of payload of the UDP streams' datagrams, each one packet on every path."""
LEAST_SLICES = 3
"""Slices of streams below which CPU time, which the kernel counts in ticks of 10 ms, is not given."""
UDP_PORT, TCP_PORT = 7071, 7070
"""Where our receivers listen in a workload; the docker lab publishes these."""
MAIN_TABLE = 254
CAVEAT = "a lab is a single kernel with no NIC: no wire, no offload, no second machine's cores"


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times host sockets' figure it is: a median, and its 95 % bootstrap interval (null for too few values)."""

    value: float
    ci95: Interval | None


@dataclass(frozen=True, slots=True)
class ModeResult:
    """What one datapath costs, beside host sockets on the same fabric, measured in turns. Times in ns, all of 64-byte UDP."""

    mode: str
    summary: str
    real_parts: str
    one_way_p50: float | None
    """Of an established flow, from the first device to the receiver."""
    one_way_p99: float | None
    one_way_new_p50: float | None
    one_way_ratio: Ratio | None
    """Established flow, over host sockets."""
    rtt_p50: float
    """An application's ping-pong, both ends on one core, nothing armed."""
    rtt_ratio: Ratio
    rtt_to_hostgw: float | None
    """Its ratio over the ratio of `flannel-hostgw`; null where that was not measured."""
    tcp_bits_per_second: float
    tcp_ratio: Ratio
    tcp_to_hostgw: float | None
    cpu_ratio: float | None
    """CPU time of the machine for a byte of the TCP stream, over host sockets."""
    packet_cpu_ns: float | None
    """CPU time of the machine for each datagram of 1400 bytes that a UDP stream, as fast as it goes, brings over."""
    packet_cpu_ratio: float | None
    encap_bytes: int | None
    encap_ns: float | None
    """Encapsulating and decapsulating; null where no stage says so."""
    nat_established_ns: float | None
    nat_new_ns: float | None
    translations: int | None
    crossings: int | None
    routes_per_node: int
    stages: tuple[StageShare, ...]
    """Of an established flow: where the mean goes."""
    complete: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """What is said about a datapath, beside what was measured here."""

    mode: str
    claim: str
    measured: str
    verdict: str
    """holds here, does not hold here, undecided here (the interval is too wide), or not measured."""
    basis: str
    """Against which baseline, and what the figure is not."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All modes, and the claims."""

    modes: tuple[ModeResult, ...]
    claims: tuple[Claim, ...]
    skipped: Mapping[str, str]
    """Modes that could not be built or measured, with the reason."""
    incomplete: bool
    """One of them was asked for by name, or failed for another reason than that this kernel or machine lacks something."""
    rounds: int
    caveat: str
    kernel: str
    taken_at: str


@dataclass
class _Subject:
    """One lab with all that is measured in it."""

    mode: lab.Mode
    made: lab.Lab
    source: lab.LabPod
    target: str
    path: Route
    host: Route
    measurements: list[Measurement] = field(default_factory=list)
    rtts: list[tuple[float, float]] = field(default_factory=list)
    """Medians of a run of pings on the path, and of one on the host sockets right before or after it."""
    streams: list[tuple[Slice, Slice]] = field(default_factory=list)
    datagrams: list[tuple[Slice, Slice]] = field(default_factory=list)


def chosen(names: Sequence[str]) -> tuple[lab.Mode, ...]:
    """The modes of these names, all without any, each once. Raises UsageError."""
    known = {mode.name: mode for mode in lab.MODES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"lab mode {unknown[0]!r}: one of {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(names)) if names else lab.MODES


def run(
    names: Sequence[str] = (),
    *,
    rounds: int = ROUNDS,
    count: int = COUNT,
    pings: int = 1800,
    seconds: float = 0.8,
    progress: Progress = lambda text: None,
) -> Comparison:
    """Build the labs and measure them in turns, in an order drawn anew for each of `rounds`.

    `count` probes of each series, `pings` round trips and `seconds` of TCP stream each round and way. A mode that fails is in `skipped`.
    Raises UsageError for an unknown mode, and when no mode could be measured what the first one said.
    """
    modes = chosen(names)
    skipped: dict[str, Exception] = {}
    generator = random.Random(SEED)
    with ExitStack() as stack:
        subjects: list[_Subject] = []
        for mode in modes:
            progress(f"building {mode.name}")
            with _noted(mode.name, skipped):
                subjects.append(_build(mode, stack))
        for number in range(1, rounds + 1):
            for subject in generator.sample(subjects, len(subjects)):
                if subject.mode.name not in skipped:
                    progress(f"measuring {subject.mode.name}, round {number} of {rounds}")
                    with _noted(subject.mode.name, skipped):
                        _measure(subject, generator, count=count, pings=pings, seconds=seconds)
        measured = [subject for subject in subjects if subject.mode.name not in skipped]
        if not measured:
            raise next(iter(skipped.values()))
        progress("evaluating, and removing the labs")
        snapshot = measured[0].measurements[0].snapshot
        results = with_host_gateway([_result(subject) for subject in measured])
    left_out = {name: " ".join(str(error).split()) for name, error in skipped.items()}
    return Comparison(
        modes=results,
        claims=claims(results, left_out),
        skipped=left_out,
        incomplete=any(name in names or not isinstance(error, MissingError) for name, error in skipped.items()),
        rounds=rounds,
        caveat=CAVEAT,
        kernel=snapshot.kernel or "",
        taken_at=snapshot.taken_at,
    )


@contextlib.contextmanager
def _noted(name: str, skipped: dict[str, Exception]) -> Iterator[None]:
    """An error of one mode is noted and the others go on."""
    try:
        yield
    except (NetpathError, OSError) as error:
        skipped[name] = error


def _build(mode: lab.Mode, stack: ExitStack) -> _Subject:
    made = stack.enter_context(lab.running(mode.name, echo=False))
    first, second = made.nodes[0], made.nodes[1]
    host = stack.enter_context(Station(second.path, second.address))
    host_route = Route(stack.enter_context(Sender(first.path)), host, (second.address, host.udp), (second.address, host.tcp))
    if mode.name == "docker":
        # Published ports: the way there is masqueraded on one node and translated on the other.
        source, receiver, address, udp, tcp = made.pod("c2"), made.pod("c3"), second.address, 12348, 12347
        target = f"netns:{second.inode}@{address}:{udp}"
    else:
        source = made.pods[0]
        receiver = next(pod for pod in made.pods if pod.node != source.node)
        address, udp, tcp = receiver.address, UDP_PORT, TCP_PORT
        target = f"netns:{receiver.inode}:{udp}"
    station = stack.enter_context(Station(receiver.path, "", udp=UDP_PORT, tcp=TCP_PORT))
    path = Route(stack.enter_context(Sender(source.path)), station, (address, udp), (address, tcp))
    return _Subject(mode, made, source, target, path, host_route)


def _measure(subject: _Subject, generator: random.Random, *, count: int, pings: int, seconds: float) -> None:
    asked = MeasureRequest(
        f"netns:{subject.source.inode}",
        subject.target,
        "udp",
        sizes=(SIZE,),
        count=count,
        rate=2000.0,
        calibrations=CALIBRATIONS,
        namespaces=_inodes(subject.made),
    )
    subject.measurements.append(session.run(asked))
    each, slice_s = max(1, pings // PING_PAIRS), seconds / STREAM_PAIRS
    for number in range(PING_PAIRS):
        subject.rtts.append(_pair(subject, generator, lambda route: statistics.median(load.pings(route, each, SIZE))))
        if number < STREAM_PAIRS:
            subject.streams.append(_pair(subject, generator, lambda route: load.stream(route, "tcp", slice_s)))
        if number < DATAGRAM_PAIRS:
            subject.datagrams.append(_pair(subject, generator, lambda route: load.stream(route, "udp", slice_s, size=DATAGRAM)))


def _inodes(made: lab.Lab) -> frozenset[int]:
    """The namespaces that a lab consists of: nothing else is on a way in it."""
    places = [each.path for each in (*made.nodes, *made.pods)] + [str(netns.path_of(name)) for name in made.namespaces]
    return frozenset(os.stat(place).st_ino for place in places)  # noqa: PTH116


def _pair(subject: _Subject, generator: random.Random, measure: Callable[[Route], T]) -> tuple[T, T]:
    """The same on the path and on the host sockets, one right after the other, in an order drawn anew."""
    if generator.random() < 0.5:
        ours = measure(subject.path)
        return ours, measure(subject.host)
    theirs = measure(subject.host)
    return measure(subject.path), theirs


def _pooled(subject: _Subject, way: str, flow: str) -> list[float]:
    """All one-way times of a kind, ascending."""
    found: list[float] = []
    for measurement in subject.measurements:
        for series, times in zip(measurement.series, measurement.times, strict=True):
            if (series.way, series.flow) == (way, flow):
                found += times
    return sorted(found)


def _stages(subject: _Subject, flow: str) -> tuple[StageShare, ...]:
    """The path's stages, their means over the rounds."""
    spent: dict[str, list[float]] = defaultdict(list)
    taken = [
        series.stages
        for measurement in subject.measurements
        for series in measurement.series
        if (series.way, series.flow) == (plan.PATH, flow)
    ]
    for stages in taken:
        for each in stages:
            spent[each.stage].append(each.ns)
    means = {stage: sum(values) / len(taken) for stage, values in spent.items()}
    whole = sum(means.values())
    ordered = sorted(means.items(), key=lambda item: -item[1])
    return tuple(StageShare(stage, value, value / whole if whole else 0.0) for stage, value in ordered)


def _sum(stages: Sequence[StageShare], *names: str) -> float | None:
    found = [each.ns for each in stages if each.stage in names]
    return sum(found) if found else None


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of two ascending samples that were interleaved."""
    intervals = robust.compared(ours, theirs)
    base = quantile(theirs, 0.5)
    return Ratio(quantile(ours, 0.5) / base if base else float("nan"), intervals[1] if intervals else None)


def paired(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """The median of the pairs' ratios: what drifts from pair to pair is in both of a pair."""
    ratios = sorted(one / other for one, other in pairs if other)
    return Ratio(quantile(ratios, 0.5) if ratios else float("nan"), robust.median_interval(ratios))


def cpu(slices: Sequence[Slice]) -> float | None:
    """CPU ns of the machine for each unit of `Slice.cpu_ns`, over all slices: a single one lasts for few of the kernel's ticks."""
    units = sum(each.units for each in slices)
    return sum(each.busy_ns for each in slices) / units if len(slices) >= LEAST_SLICES and units else None


def _result(subject: _Subject) -> ModeResult:
    ours, new = _pooled(subject, plan.PATH, plan.ESTABLISHED), _pooled(subject, plan.PATH, plan.NEW)
    theirs = _pooled(subject, plan.UNDERLAY, plan.ESTABLISHED)
    established, fresh = _stages(subject, plan.ESTABLISHED), _stages(subject, plan.NEW)
    first = next(
        (
            series
            for each in subject.measurements
            for series in each.series
            if (series.way, series.flow) == (plan.PATH, plan.ESTABLISHED)
        ),
        None,
    )
    bytes_cpu, host_bytes_cpu = (cpu([pair[side] for pair in subject.streams]) for side in (0, 1))
    packet_cpu, host_packet_cpu = (cpu([pair[side] for pair in subject.datagrams]) for side in (0, 1))
    return ModeResult(
        mode=subject.mode.name,
        summary=subject.mode.summary,
        real_parts=subject.mode.real_parts,
        one_way_p50=quantile(ours, 0.5) if ours else None,
        one_way_p99=quantile(ours, 0.99) if ours else None,
        one_way_new_p50=quantile(new, 0.5) if new else None,
        one_way_ratio=_ratio(ours, theirs) if ours and theirs else None,
        rtt_p50=statistics.median(one for one, _ in subject.rtts),
        rtt_ratio=paired(subject.rtts),
        rtt_to_hostgw=None,
        tcp_bits_per_second=statistics.median(one.bits_per_second for one, _ in subject.streams),
        tcp_ratio=paired([(one.bits_per_second, other.bits_per_second) for one, other in subject.streams]),
        tcp_to_hostgw=None,
        cpu_ratio=bytes_cpu / host_bytes_cpu if bytes_cpu and host_bytes_cpu else None,
        packet_cpu_ns=packet_cpu,
        packet_cpu_ratio=packet_cpu / host_packet_cpu if packet_cpu and host_packet_cpu else None,
        encap_bytes=first.encap_bytes if first else None,
        encap_ns=_sum(established, "encap", "decap"),
        nat_established_ns=_sum(established, "nat"),
        nat_new_ns=_sum(fresh, "nat"),
        translations=first.translations if first else None,
        crossings=first.crossings if first else None,
        routes_per_node=_routes(subject.measurements[0].snapshot, subject.made.nodes[0].inode),
        stages=established,
        complete=all(each.trace.completeness.verdict == "COMPLETE" for each in subject.measurements),
    )


def _routes(snapshot: Snapshot, inode: int) -> int:
    """Routes of the main table of a node."""
    return sum(
        route.table == MAIN_TABLE and ":" not in route.destination
        for namespace in snapshot.namespaces
        if namespace.inode == inode
        for route in namespace.routes
    )


def with_host_gateway(results: Sequence[ModeResult]) -> tuple[ModeResult, ...]:
    """The results with their ratios over host-gw's, where that is among them: each over its own host sockets first."""
    base = next((each for each in results if each.mode == HOST_GATEWAY), None)
    if base is None:
        return tuple(results)
    return tuple(
        replace(
            each,
            rtt_to_hostgw=each.rtt_ratio.value / base.rtt_ratio.value,
            tcp_to_hostgw=each.tcp_ratio.value / base.tcp_ratio.value if base.tcp_ratio.value else None,
        )
        for each in results
    )


HOLDS, FAILS, UNDECIDED, UNKNOWN = "holds here", "does not hold here", "undecided here", "not measured"
ALIKE = 0.1
WIDEST = 0.2
"""An interval of a loss that is wider, in parts of the whole, decides nothing."""


def claims(results: Sequence[ModeResult], skipped: Mapping[str, str] | None = None) -> tuple[Claim, ...]:
    """The articles' claims about these datapaths, each with its verdict. `skipped` says why modes are not among the results. Pure."""
    found = {each.mode: each for each in results}
    left_out = skipped or {}
    return (
        _loss(found, left_out, "flannel-vxlan", "VXLAN loses 20-30 % of throughput", 0.20, 0.30),
        _loss(found, left_out, HOST_GATEWAY, "host-gw loses about 10 % of throughput", 0.05, 0.15),
        _alike(found, left_out),
        _worst(found, left_out),
        _rewrites(found, left_out),
    )


def _bounds(ratio: Ratio) -> Interval:
    return ratio.ci95 or (ratio.value, ratio.value)


def _absent(mode: str, skipped: Mapping[str, str]) -> str:
    return f"{mode} was left out: {skipped[mode]}" if mode in skipped else f"{mode} was not among the modes"


def _loss(found: Mapping[str, ModeResult], skipped: Mapping[str, str], mode: str, claim: str, least: float, most: float) -> Claim:
    """Fails where the interval of the measured loss and the claimed one do not meet; holds where they do and the former is narrow."""
    result = found.get(mode)
    if result is None:
        return Claim(mode, claim, "", UNKNOWN, _absent(mode, skipped))
    loss = 1 - result.tcp_ratio.value
    low, high = sorted(1 - bound for bound in _bounds(result.tcp_ratio))
    verdict = FAILS if low > most or high < least else HOLDS if high - low <= WIDEST else UNDECIDED
    measured = f"TCP throughput {-loss:+.0%} [{-high:+.0%}, {-low:+.0%}], round trip {result.rtt_ratio.value - 1:+.0%}"
    basis = f"against host sockets on the same fabric; {CAVEAT}"
    if verdict == FAILS:
        by = low - most if low > most else least - high
        measured += f"; {'more' if low > most else 'less'} than claimed by {by:.0%} at the least"
    if result.tcp_to_hostgw is not None and mode != HOST_GATEWAY:
        measured += f"; against host-gw {result.tcp_to_hostgw - 1:+.0%}"
    return Claim(mode, claim, measured, verdict, basis)


def _alike(found: Mapping[str, ModeResult], skipped: Mapping[str, str]) -> Claim:
    """Holds where both figures are alike, fails where one of them can't be by its interval."""
    claim = "IPIP costs as much as VXLAN"
    pairs = (("calico-ipip", "calico-vxlan"), ("flannel-ipip", "flannel-vxlan"))
    pair = next((pair for pair in pairs if set(pair) <= found.keys()), None)
    if pair is None:
        missing = next((mode for mode in pairs[0] if mode not in found and mode in skipped), None)
        why = _absent(missing, skipped) if missing else "needs labs of both, and a kernel with ipip for the one"
        return Claim("calico-ipip", claim, "", UNKNOWN, why)
    ours, theirs = found[pair[0]], found[pair[1]]
    sides = ((ours.rtt_ratio, theirs.rtt_ratio), (ours.tcp_ratio, theirs.tcp_ratio))
    rtt, tcp = (mine.value / other.value for mine, other in sides)
    spans = [(_bounds(mine)[0] / _bounds(other)[1], _bounds(mine)[1] / _bounds(other)[0]) for mine, other in sides]
    unlike = any(low > 1 + ALIKE or high < 1 - ALIKE for low, high in spans)
    alike = max(abs(rtt - 1), abs(tcp - 1)) <= ALIKE
    measured = f"{pair[0]} over {pair[1]}: round trip {rtt - 1:+.0%}, TCP throughput {tcp - 1:+.0%}"
    verdict = FAILS if unlike else HOLDS if alike else UNDECIDED
    return Claim(pair[0], claim, measured, verdict, f"alike: within {ALIKE:.0%}, each over its own host sockets; {CAVEAT}")


def _worst(found: Mapping[str, ModeResult], skipped: Mapping[str, str]) -> Claim:
    """Holds where the intervals lie beyond those of every other mode, fails where those of another lie beyond them."""
    mode, claim = "flannel-udp", "Flannel's UDP mode is the slowest of all"
    mine = found.get(mode)
    others = [each for each in found.values() if each.mode != mode]
    if mine is None or not others:
        return Claim(mode, claim, "", UNKNOWN, f"needs {mode} and another mode" if mine else _absent(mode, skipped))
    slowest = max(others, key=lambda each: each.rtt_ratio.value)
    poorest = min(others, key=lambda each: each.tcp_ratio.value)
    (early, late), (least, most) = _bounds(mine.rtt_ratio), _bounds(mine.tcp_ratio)
    beaten = [each for each in others if _bounds(each.rtt_ratio)[0] > late or _bounds(each.tcp_ratio)[1] < least]
    beyond = all(_bounds(each.rtt_ratio)[1] < early and _bounds(each.tcp_ratio)[0] > most for each in others)
    measured = (
        f"round trip {mine.rtt_ratio.value:.2f}x host sockets, the slowest other is {slowest.mode} with {slowest.rtt_ratio.value:.2f}x; "
        f"TCP throughput {mine.tcp_ratio.value:.3f}x, the lowest other is {poorest.mode} with {poorest.tcp_ratio.value:.3f}x"
    )
    verdict = FAILS if beaten else HOLDS if beyond else UNDECIDED
    basis = f"lab relay, not flanneld: a C program of the lab's carries the packets; {CAVEAT}"
    return Claim(mode, claim, measured, verdict, basis)


def _rewrites(found: Mapping[str, ModeResult], skipped: Mapping[str, str]) -> Claim:
    claim = "Docker's NAT rewrites addresses three times on the way"
    result = found.get("docker")
    if result is None or result.translations is None:
        return Claim("docker", claim, "", UNKNOWN, _absent("docker", skipped) if result is None else "no rewrites could be counted")
    return Claim(
        "docker",
        claim,
        f"{result.translations} rewrites on the way to a published port of another node",
        HOLDS if result.translations == 3 else FAILS,
        "counted, not timed: masqueraded by the sender's node, translated by the receiver's; the answer undoes both",
    )
