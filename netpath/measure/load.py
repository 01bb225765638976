"""Round trips and streams of an application's own kind, no probe and no eBPF among them: throughput, and CPU time for it.

Everything goes between a small sender and receiver of our own (`netpath.measure.client`, `netpath.measure.station`), on the path and
on the underlay in turn. CPU time is that of the whole machine as /proc/stat has it: a relay in user space and the kernel's own
threads are in it, and so is whatever else runs meanwhile, which is why slices are short, interleaved, and compared by medians.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netpath.errors import NetpathError
from netpath.measure import robust
from netpath.measure.client import Sender
from netpath.measure.robust import Interval
from netpath.measure.station import Station, Swallowed
from netpath.model.snapshot import DeviceId

if TYPE_CHECKING:
    from netpath.measure.baseline import Underlay
    from netpath.measure.result import Measurement
    from netpath.model.index import SnapshotIndex

SEED = 20
DRAIN_SECONDS = 0.5
"""How long what is under way when a stream ends may take to arrive."""
CPU_SOURCE = "/proc/stat: all of the machine but idle, ticks of 10 ms"


@dataclass(frozen=True, slots=True)
class Route:
    """From a sender to a station, by the addresses that the sender uses (which may be translated on the way)."""

    sender: Sender
    station: Station
    udp: tuple[str, int]
    tcp: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of a stream as its receiver saw it."""

    seconds: float
    received_bytes: int
    packets: int | None
    """Datagrams; of TCP, whose segments nobody counts, None."""
    lost: float | None
    """Part of the datagrams that did not arrive."""
    busy_ns: int

    @property
    def bits_per_second(self) -> float:
        return self.received_bytes * 8 / self.seconds

    @property
    def units(self) -> float:
        """What arrived: datagrams, or of a TCP stream 1000 bytes."""
        return self.packets if self.packets is not None else self.received_bytes / 1000

    @property
    def cpu_ns(self) -> float | None:
        """Of the machine, for each unit; None when nothing arrived."""
        return self.busy_ns / self.units if self.units else None


@dataclass(frozen=True, slots=True)
class Load:
    """What a stream gets on the path and on the underlay: medians over the slices. A key of the underlay is null without one."""

    protocol: str
    size: int | None
    """Bytes of payload of a datagram; null for TCP."""
    slices: int
    seconds: float
    """Of each slice."""
    path_bits_per_second: float
    underlay_bits_per_second: float | None
    ratio: float | None
    """Throughput of the path over the underlay's."""
    ratio_ci95: Interval | None
    path_lost: float | None
    cpu_unit: str
    """packet (UDP) or kilobyte (TCP)."""
    cpu_source: str
    path_cpu_ns: float | None
    underlay_cpu_ns: float | None
    cpu_ratio: float | None


def pings(route: Route, count: int, size: int = 64) -> list[float]:
    """UDP round trips in ns, both ends on one core where there are several. Raises NetpathError when nothing is answered."""
    cpu = _cpus()[-1]
    _pin(route.station, cpu)
    result = route.sender.ask(
        {"what": "pings", "count": count, "size": size, "address": route.udp[0], "port": route.udp[1], "cpu": cpu}
    )
    if not result["times_ns"]:
        raise NetpathError(f"{route.udp[0]}:{route.udp[1]} did not answer UDP from {route.sender.path}")
    return [float(value) for value in result["times_ns"]]


def stream(route: Route, protocol: str, seconds: float, *, size: int = 1400, rate: float | None = None) -> Slice:
    """One stretch of a stream, sender and receiver on different cores where there are several. Raises NetpathError."""
    cpus = _cpus()
    _pin(route.station, cpus[0])
    before = route.station.swallowed()
    address, port = route.tcp if protocol == "tcp" else route.udp
    request = {
        "what": "stream",
        "protocol": protocol,
        "seconds": seconds,
        "size": size,
        "rate": rate,
        "address": address,
        "port": port,
    }
    result = route.sender.ask({**request, "cpu": cpus[-1]})
    after = _settled(route.station)
    if protocol == "tcp":
        return Slice(result["seconds"], after.stream_bytes - before.stream_bytes, None, None, result["busy_ns"])
    packets = after.datagrams - before.datagrams
    lost = 1 - packets / result["sent"] if result["sent"] else None
    return Slice(result["seconds"], after.datagram_bytes - before.datagram_bytes, packets, lost, result["busy_ns"])


def _settled(station: Station) -> Swallowed:
    """What the station has taken in, once that no longer grows."""
    deadline = time.monotonic() + DRAIN_SECONDS
    last = station.swallowed()
    while time.monotonic() < deadline:
        time.sleep(0.01)
        now = station.swallowed()
        if now == last:
            break
        last = now
    return last


def _cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _pin(station: Station, cpu: int) -> None:
    try:
        os.sched_setaffinity(station.pid, {cpu})
    except OSError as error:
        raise NetpathError("the receiver ended unexpectedly") from error


def load(
    path: Route,
    underlay: Route | None,
    protocol: str,
    seconds: float,
    *,
    slices: int = 5,
    size: int = 1400,
    rate: float | None = None,
) -> Load:
    """`slices` stretches of a stream on each way, in an order drawn anew for each pair, `seconds` in all on each way."""
    generator = random.Random(SEED)
    found: dict[bool, list[Slice]] = {True: [], False: []}
    for _ in range(slices):
        ways = [(True, path)] + ([(False, underlay)] if underlay is not None else [])
        generator.shuffle(ways)
        for mine, route in ways:
            found[mine].append(stream(route, protocol, seconds / slices, size=size, rate=rate))
    return summarise(protocol, found[True], found[False], size)


def summarise(protocol: str, path: Sequence[Slice], underlay: Sequence[Slice], size: int) -> Load:
    """Medians over the slices of each way. Pure."""
    ours = sorted(each.bits_per_second for each in path)
    theirs = sorted(each.bits_per_second for each in underlay)
    intervals = robust.compared(ours, theirs) if theirs else None
    ours_cpu, theirs_cpu = _cpu(path), _cpu(underlay)
    base = statistics.median(theirs) if theirs else None
    losses = [each.lost for each in path if each.lost is not None]
    return Load(
        protocol=protocol,
        size=None if protocol == "tcp" else size,
        slices=len(path),
        seconds=statistics.median(each.seconds for each in path),
        path_bits_per_second=statistics.median(ours),
        underlay_bits_per_second=base,
        ratio=statistics.median(ours) / base if base else None,
        ratio_ci95=intervals[1] if intervals is not None and base else None,
        path_lost=statistics.median(losses) if losses else None,
        cpu_unit="kilobyte" if protocol == "tcp" else "packet",
        cpu_source=CPU_SOURCE,
        path_cpu_ns=ours_cpu,
        underlay_cpu_ns=theirs_cpu,
        cpu_ratio=ours_cpu / theirs_cpu if ours_cpu is not None and theirs_cpu else None,
    )


def _cpu(slices: Sequence[Slice]) -> float | None:
    known = [each.cpu_ns for each in slices if each.cpu_ns is not None]
    return statistics.median(known) if known else None


def beside(done: Measurement, underlay: Underlay | None, seconds: float) -> tuple[tuple[Load, ...], str | None]:
    """TCP and UDP streams between the ends of a measurement and on its underlay; with a line on where they did not go.

    They go to a receiver of our own beside the workload's sockets, so that a translation on the way to those (a service, a published
    port) is passed by. Raises NetpathError when the receiving end is not here or nothing gets through.
    """
    index, flow = done.index, done.flow
    path = next((each for each in done.trace.prediction.paths if each.outcome in ("delivered", "rejected") and each.hops), None)
    if path is None or (path.delivery is not None and path.delivery.to == "wire"):
        raise NetpathError("the receiving end is not on this machine")
    inode = (path.delivery.netns if path.delivery is not None else path.hops[-1].netns).inode
    address, note = flow.dst, None
    if not any(device.netns == inode for device in index.holders(flow.dst)):
        address = _own_address(index, inode, flow.family)
        note = f"the load went to {address} itself: {flow.dst} is translated on the way"
    with ExitStack() as stack:

        def route(source: int, target: int, to: str) -> Route:
            station = stack.enter_context(Station(_entry(index, target), to))
            sender = stack.enter_context(Sender(_entry(index, source)))
            return Route(sender, station, (to, station.udp), (to, station.tcp))

        ours = route(flow.netns, inode, address)
        theirs = route(underlay.source, underlay.destination, underlay.address) if underlay is not None else None
        return tuple(load(ours, theirs, protocol, seconds) for protocol in ("tcp", "udp")), note


def _entry(index: SnapshotIndex, inode: int) -> str:
    namespace = index.namespace(inode)
    if namespace is None or not namespace.paths:
        raise NetpathError(f"no file or process leads into {index.netns_ref(inode).name} any more")
    return namespace.paths[0]


def _own_address(index: SnapshotIndex, inode: int, family: int) -> str:
    namespace = index.namespace(inode)
    for each in namespace.addresses if namespace is not None else ():
        link = index.link(DeviceId(inode, each.device))
        if each.family == family and each.scope == "global" and link is not None and link.kind != "loopback":
            return each.address
    raise NetpathError(f"{index.netns_ref(inode).name} has no IPv{family} address to send to")
