"""One measurement from beginning to end: as a trace, with many probes of several kinds, interleaved with the same on the underlay."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from netpath.ebpf.tracer import Tracer
from netpath.errors import NetpathError
from netpath.measure import baseline as baselines
from netpath.measure import headroom, plan, robust
from netpath.measure.plan import Batch, MeasureRequest, Schedule, Series
from netpath.measure.result import Baseline, Comparison, Measurement, Outliers, SeriesResult, StageShare, TableUse
from netpath.measure.station import Station
from netpath.model import nonce as layout
from netpath.model.index import SnapshotIndex
from netpath.model.packet import Flow
from netpath.model.path import Completeness, Path, Prediction, Trace
from netpath.model.snapshot import Snapshot
from netpath.predict import predict, predict_reply
from netpath.probe.injector import Injector, UnreachableError
from netpath.trace import calibrate, stages
from netpath.trace import session as tracing
from netpath.trace.account import SEEN_ALONE, Account, Unseen
from netpath.trace.assemble import Scene, forward_paths, probe_cost, return_paths
from netpath.trace.correlate import FlowKey, Journey, Leg, correlate
from netpath.trace.observe import Observer
from netpath.trace.request import TraceRequest
from netpath.trace.stages import Registered
from netpath.trace.stats import quantile, summarise
from netpath.trace.userspace import imitations

if TYPE_CHECKING:
    from netpath.endpoints import Endpoint

Progress = Callable[[str], None]
Tick = Callable[[int, int], None]
LEAST_ROUNDS = 20
"""Rounds before a measurement may end early: an interval of fewer values is not worth much."""
LOADING = "sending streams"
CALIBRATION_BURST, CALIBRATION_LEAD = 5, 2
"""Probes sent in each arrangement of the hooks to find what the events cost: counted, and before them."""
CALIBRATION_SECONDS = 0.2
"""How long the probes of an arrangement are waited for; one that does not arrive says nothing about cost."""
EVALUATING = "evaluating what was seen"


@dataclass(frozen=True, slots=True)
class Way:
    """Where probes of a series go, and who sends them."""

    flow: Flow
    prediction: Prediction
    injector: Injector
    registered: Registered


def run(request: MeasureRequest, *, progress: Progress = lambda text: None, tick: Tick = lambda done, total: None) -> Measurement:
    """Measure as asked. `tick` is called with probes sent and planned.

    Raises UsageError, MissingError, InconclusiveError (no room for new flows) and NetpathError (no way to the destination).
    """
    done, underlay = _probed(request, progress, tick)
    if request.load_seconds is None:
        return done
    from netpath.measure import load as loads

    progress(LOADING)
    try:
        made, note = loads.beside(done, underlay, request.load_seconds)
    except NetpathError as error:
        made, note = (), f"no load: {error}"
    notes = (*done.trace.notes, note) if note else done.trace.notes
    return replace(done, load=made, trace=replace(done.trace, notes=notes))


def _probed(request: MeasureRequest, progress: Progress, tick: Tick) -> tuple[Measurement, baselines.Underlay | None]:
    asked = TraceRequest(
        request.source,
        request.destination,
        request.protocol,
        request.sport,
        df=request.df,
        ttl=request.ttl,
        round_trip=request.round_trip,
        ring_bytes=request.ring_bytes,
    )
    protocol = tracing.chosen_protocol(asked)
    tracing.check_buffer(request.ring_bytes)
    sizes = plan.sizes(request, protocol)
    plan.flows(request, protocol)
    with ExitStack() as stack:
        from netpath import discover

        # The worker is waited for before the tracer it loads is closed.
        tracer = stack.enter_context(Tracer(ring_bytes=request.ring_bytes, hooks=request.hooks))
        workers = stack.enter_context(ThreadPoolExecutor(1))
        loading = workers.submit(tracer.load)
        injector = stack.enter_context(Injector())
        if protocol != "udp":
            injector.preload()
        progress(tracing.DISCOVERY)
        snapshot = discover.take(only=request.namespaces)
        source, destination, flow = tracing.aim(replace(asked, size=max(sizes[0], layout.MINIMUM_PAYLOAD)), protocol, snapshot)
        snapshot = discover.with_conntrack(snapshot, flow)
        index = SnapshotIndex(snapshot)
        base, nonce = layout.new_tcp_base(), layout.new_nonce()
        way = _way(injector, flow, request.source, snapshot, index, nonce, base)
        flow = way.flow
        ways = {plan.PATH: way}
        baseline, underlay = Baseline(False, "switched off"), None
        if request.baseline:
            found = baselines.find(way.prediction, index, flow.family)
            if isinstance(found, str):
                baseline = Baseline(False, found)
            else:
                underlay = found
                ways[plan.UNDERLAY] = _underlay(found, flow, stack, snapshot, index, nonce, base)
                names = [index.netns_ref(inode).name for inode in (found.source, found.destination)]
                baseline = Baseline(True, None, names[0], names[1], found.source_address, found.address)
        planned = plan.series(request, protocol, baseline=baseline.applies)
        if not loading.done():
            progress(tracing.LOADING)
        loading.result()
        progress(tracing.ARMING)
        schedule = plan.schedule(planned, request, together=not any(_carried(each.prediction) for each in ways.values()))
        total = schedule.probes() + plan.REPEATS * schedule.most()
        total += request.calibrations * len(calibrate.ARRANGEMENTS) * (CALIBRATION_BURST + CALIBRATION_LEAD)
        registered = Registered({key: value for each in ways.values() for key, value in each.registered.at.items()})
        tracing.arm(
            tracer,
            nonce,
            [(each.prediction, each.flow) for each in ways.values()],
            snapshot,
            index,
            count=total,
            tcp_base=base if protocol == "tcp" else None,
            payload=sizes[0] if len(sizes) == 1 else None,
            registered=registered,
        )
        tracer.self_check()
        if tracer.marks_by_namespace:
            schedule = replace(schedule, turns=plan.turns(registered.marks(), len(schedule.bursts) // schedule.sizes()))
        _pin([each.injector for each in ways.values()])
        crossed = _files(tuple(ways.values()), index)
        before = headroom.read(crossed)
        new = sum(each.flow == plan.NEW for each in planned)
        rate, slowed = request.rate, None
        if new:
            share = new / len(planned)
            allowed, slowed = headroom.allowed_rate(before, schedule.probes(plan.NEW), request.rate * share, protocol)
            rate = min(request.rate, allowed / share)
        runner = _Runner(request, tracer, ways, schedule, index, rate, crossed if new else {}, tick)
        progress(tracing.SENDING)
        runner.warm_up()
        stopped = runner.run()
        runner.settle()
        after = {table.netns: table for table in headroom.read(crossed)}
        journeys = runner.journeys
        mine = [journey for each in planned if each.way == plan.PATH for journey in journeys[each.number]]
        prediction = way.prediction
        if tracing.strayed(mine, prediction, index):
            snapshot = tracing.warmed(snapshot, mine)
            index = SnapshotIndex(snapshot)
            ways = {
                name: replace(each, prediction=tracing.at_any_age(predict(snapshot, each.flow, index=index), snapshot, each.flow))
                for name, each in ways.items()
            }
        progress(EVALUATING)
        notes = [slowed] if slowed else []
        if stopped == "conntrack":
            notes.append("stopped early: the conntrack table on the way has no room for more new flows")
        measured = _measurement(
            request,
            runner,
            ways,
            _Found(
                snapshot,
                index,
                baseline,
                stopped,
                rate,
                tuple(notes),
                underlay.destination if underlay is not None else None,
                runner.unseen,
            ),
            conntrack=tuple(
                TableUse(table.netns, table.count, after[table.netns].count, table.limit)
                for table in before
                if table.netns in after
            ),
            ends=(source, destination),
        )
        return measured, underlay


def _way(injector: Injector, flow: Flow, source: str, snapshot: Snapshot, index: SnapshotIndex, nonce: int, base: int) -> Way:
    entered = tracing.enter(injector, flow, source, index, nonce, base)
    if isinstance(entered, UnreachableError):
        raise NetpathError(f"{entered}; netpath trace shows what its kernel says")
    flow = replace(flow, src=entered.source, sport=entered.sport)
    prediction = predict(snapshot, flow, index=index)
    return Way(flow, prediction, injector, stages.plan(prediction, index))


def _underlay(
    found: baselines.Underlay, flow: Flow, stack: ExitStack, snapshot: Snapshot, index: SnapshotIndex, nonce: int, base: int
) -> Way:
    """Starts the receiver on the destination's node and a sender on the source's."""
    dport = None
    if flow.dport is not None:
        path = tracing.entry(index, found.destination)
        if path is None:
            raise NetpathError(
                f"{index.netns_ref(found.destination).name}: no file or process leads into the node's namespace any more"
            )
        station = stack.enter_context(Station(path, found.address))
        dport = station.udp if flow.protocol == "udp" else station.tcp
    injector = stack.enter_context(Injector())
    if flow.protocol != "udp":
        injector.preload()
    host = replace(flow, netns=found.source, dst=found.address, src=found.source_address, sport=None, dport=dport, mark=0)
    return _way(injector, host, "the baseline", snapshot, index, nonce, base)


def _pin(injectors: Sequence[Injector]) -> None:
    """All senders on one core, so that no way is measured on another than its neighbour; this process stays off it if it can."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        return
    for injector in injectors:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(injector.pid, {allowed[-1]})


def _carried(prediction: Prediction) -> bool:
    """A process carries the packets, or may do so."""
    return not prediction.paths or any(stage.stage == "userspace" for path in prediction.paths for stage in path.stages)


def _files(ways: Collection[Way], index: SnapshotIndex) -> dict[str, str]:
    """Name to file of the namespaces on the predicted ways."""
    inodes = {way.flow.netns for way in ways} | {
        hop.netns.inode for way in ways for path in way.prediction.paths for hop in path.hops
    }
    return {index.netns_ref(inode).name: path for inode in sorted(inodes) if (path := tracing.entry(index, inode))}


class _Runner:
    """Sends in bursts, empties the buffer between them, and keeps what became of every probe.

    A probe that comes after a pause pays for a core that has slept and for caches that others have used: in a burst they follow one
    another closely, and those that lead in are not counted (`plan.bursts`).
    """

    def __init__(
        self,
        request: MeasureRequest,
        tracer: Tracer,
        ways: Mapping[str, Way],
        schedule: Schedule,
        index: SnapshotIndex,
        rate: float,
        watched: Mapping[str, str],
        tick: Tick,
    ) -> None:
        self.request, self.tracer, self.planned, self._schedule = request, tracer, schedule.series, schedule
        self._ways, self._index, self._rate, self._watched, self._tick = ways, index, rate, watched, tick
        self._next = 1
        self.bursts = 0
        self.repeated = 0
        """Bursts that were sent again, because an event was lost."""
        self.forgiven = 0
        """Events that were lost in them: nothing of these bursts is in a figure."""
        self._refusals: set[tuple[int, str | None]] = {
            (path.drop.netns.inode, path.drop.reason)
            for way in ways.values()
            for path in way.prediction.paths
            if path.outcome == "rejected" and path.drop is not None and path.drop.netns is not None
        }
        self.silent = 0
        """Probes that were refused as others were, but without an ICMP error that says so."""
        self._calibrations: list[Mapping[str, Sequence[calibrate.Sample]]] = []
        self.unseen = calibrate.estimate(())
        self.calibrated = True
        """False: probes do not arrive, and what their events cost besides can't be found."""
        self.journeys: dict[int, list[Journey]] = defaultdict(list)
        self.delivered: dict[int, list[float]] = defaultdict(list)
        """One-way times by series, as they came."""

    @property
    def lost(self) -> int:
        """Events that are missing from the figures."""
        return self.tracer.lost - self.forgiven

    def warm_up(self) -> None:
        """One probe of every series, one after the other, none counted: ARP, caches, the flow's conntrack entry."""
        for each in self.planned:
            self._expect(each.size)
            observer = Observer(self.tracer, round_trip=self.request.round_trip)
            self._send(observer, each)
            observer.until([self._next - 1], min(tracing.WARM_UP_SECONDS, self.request.timeout))
            observer.settle()
        self.tracer.spare()

    def run(self) -> str:
        """Send everything; why it ended (`Measurement.stopped`)."""
        request = self.request
        total, done = request.count * len(self.planned), 0
        self._tick(done, total)
        for number, burst in enumerate(self._schedule.bursts):
            if self._watched and any(headroom.exhausted(table) for table in headroom.read(self._watched)):
                return "conntrack"
            began = time.monotonic()
            while not self._burst(burst, self._schedule.marked(number)):
                self.repeated += 1
            self.bursts += 1
            counted = sum(batch.counted for batch in burst)
            done += counted
            if self.calibrated and len(self._calibrations) < min(plan.LEAST_CALIBRATIONS, request.calibrations):
                self._calibration()
            time.sleep(max(0.0, began + counted / self._rate - time.monotonic()) if done < total else 0.0)
            self._tick(done, total)
            enough = done >= LEAST_ROUNDS * len(self.planned) and (number + 1) % self._schedule.sizes() == 0
            if request.precision is not None and done < total and enough and self._precise(request.precision):
                return "precision"
        return "count"

    def settle(self) -> None:
        """Find out what the events cost beside what they say, and take that out of all times."""
        while self.calibrated and len(self._calibrations) < self.request.calibrations and not self._known():
            self._calibration()
        self.unseen = calibrate.estimate(self._calibrations if self.calibrated else ())
        for number, journeys in self.journeys.items():
            taken = [one_way(journey.forward, self.unseen) for journey in journeys]
            self.delivered[number] = [value for value in taken if value is not None]

    def _known(self) -> bool:
        """The correction of the calibrated way is known well enough."""
        seen = [sample for each in self._calibrations for sample in each.get("all", ())]
        if len(self._calibrations) < plan.LEAST_CALIBRATIONS or not seen:
            return False
        unseen = calibrate.estimate(self._calibrations)
        times = sorted(sample.corrected(unseen) for sample in seen)
        return unseen.doubt(seen[0].counts) <= plan.KNOWN_ENOUGH * quantile(times, 0.5)

    def _calibration(self) -> None:
        """Probes of the first series in every arrangement of the hooks, in random order."""
        lost = self.tracer.lost
        # One flow, even where all that is asked for is new ones: they would fill the conntrack table for nothing.
        each = replace(self.planned[0], flow=plan.ESTABLISHED)
        self._expect(each.size)
        self._mark(None)
        found: dict[str, Sequence[calibrate.Sample]] = {}
        for name in random.sample(list(calibrate.ARRANGEMENTS), len(calibrate.ARRANGEMENTS)):
            observer = Observer(self.tracer, round_trip=self.request.round_trip, brief=True)
            with self.tracer.without(*calibrate.ARRANGEMENTS[name]):
                whole = CALIBRATION_LEAD + CALIBRATION_BURST
                batches = [
                    self._send(observer, each, whole if self._schedule.together else 1)
                    for _ in range(1 if self._schedule.together else whole)
                ]
                numbers = [number for batch in batches for number in batch]
                sent = set(numbers[CALIBRATION_LEAD:])
                # What an earlier arrangement left on its way is told by its number: no need to wait until all is quiet.
                observer.until(numbers, CALIBRATION_SECONDS)
            events = [event for event in observer.events if event.sequence in sent]
            found[name] = calibrate.samples(events, [stamp for stamp in observer.stamps if stamp.sequence in sent])
        fresh = self.tracer.lost - lost
        self.forgiven += fresh
        # A round of which an event is missing is no round; it is not sent again.
        self._calibrations.append(found if not fresh else {})
        self.calibrated = bool(fresh) or bool(found["all"])

    def _expect(self, size: int) -> None:
        """Marks are told by the end of a packet, so that they must know its size."""
        if self._schedule.sizes() > 1:
            self.tracer.expect_payload(size)

    def _send(self, observer: Observer, each: Series, count: int = 1) -> range:
        numbers = range(self._next, self._next + count)
        self._next += count
        way = self._ways[each.way]
        observer.send(way.injector, *numbers, size=each.size, fresh=each.flow == plan.NEW)
        return numbers

    def _mark(self, netns: frozenset[int] | None) -> None:
        """Have marks in these namespaces only; None: in all."""
        if self._schedule.turns:
            self.tracer.mark(tracing.entries(self._index, netns) if netns is not None else None)

    def _burst(self, burst: Sequence[Batch], marked: frozenset[int] | None) -> bool:
        """Send and keep, with marks in these namespaces; False when an event was lost and the whole burst is to be sent again, which is done so many times only.

        An event can be lost without a full buffer: the lock of the ring is given up when its holder's core does not run
        (kernel/bpf/rqspinlock.c), as on a crowded hypervisor.
        """
        lost = self.tracer.lost
        observer = Observer(self.tracer, round_trip=self.request.round_trip)
        self._expect(burst[0].series.size)
        self._mark(marked)
        sent: dict[int, Series] = {}
        for batch in burst:
            numbers = self._send(observer, batch.series, batch.lead + batch.counted)
            sent |= dict.fromkeys(numbers[batch.lead :], batch.series)
        observer.until(sent, self.request.timeout)
        observer.settle()
        fresh = self.tracer.lost - lost
        if fresh and self.repeated < plan.REPEATS:
            self.forgiven += fresh
            return False
        found = correlate(
            observer.events,
            self._index,
            sorted(sent),
            observer.send_errors,
            stamps=observer.stamps,
            sent_ns=observer.sent_ns,
            marked=marked,
        )
        for journey in self._refused_alike(found):
            number = sent[journey.sequence].number
            self.journeys[number].append(journey)
            taken = one_way(journey.forward)
            if taken is not None:
                self.delivered[number].append(taken)
        return True

    def _refused_alike(self, journeys: Sequence[Journey]) -> list[Journey]:
        """Probes that ended where and why others were refused, or were predicted to be, are refused as well.

        A kernel sends only so many ICMP errors a second to one address (net.ipv4.icmp_ratelimit): most of a burst gets none.
        """
        for journey in journeys:
            end = journey.forward.end
            if journey.forward.outcome == "rejected" and end is not None and end.hook == "drop":
                self._refusals.add((end.netns, end.reason))
        found = []
        for journey in journeys:
            end = journey.forward.end
            silent = journey.forward.outcome == "dropped" and end is not None and (end.netns, end.reason) in self._refusals
            if silent:
                self.silent += 1
            found.append(replace(journey, forward=replace(journey.forward, outcome="rejected")) if silent else journey)
        return found

    def _precise(self, wanted: float) -> bool:
        reached = [robust.precision(sorted(self.delivered[each.number])) for each in self.planned]
        return all(value is not None and value <= wanted for value in reached)


def one_way(leg: Leg, unseen: Unseen = SEEN_ALONE) -> float | None:
    """ns from a delivered probe's first device to its delivery, less what the events on the way cost it."""
    if leg.outcome != "delivered" or leg.end is None or not leg.hops:
        return None
    timing = Account(leg, unseen).between(leg.hops[0], leg.end)
    return timing.raw - timing.cost


@dataclass(frozen=True, slots=True)
class _Found:
    snapshot: Snapshot
    index: SnapshotIndex
    baseline: Baseline
    stopped: str
    rate: float
    notes: tuple[str, ...]
    node: int | None
    """Where the baseline ends."""
    unseen: Unseen = SEEN_ALONE
    """What an event of each kind cost besides (`Account`)."""


def _measurement(
    request: MeasureRequest,
    runner: _Runner,
    ways: Mapping[str, Way],
    found: _Found,
    *,
    conntrack: tuple[TableUse, ...],
    ends: tuple[Endpoint, Endpoint],
) -> Measurement:
    results: list[SeriesResult] = []
    paths: dict[str, list[tuple[int, Path]]] = {plan.PATH: [], plan.UNDERLAY: []}
    for each in runner.planned:
        result, taken = _series(each, runner, ways[each.way], found, round_trip=request.round_trip)
        results.append(result)
        paths[each.way] += [(each.number, path) for path in taken]
    lost = runner.lost
    reasons = _reasons(runner.tracer, lost, found)
    notes = [*found.notes, *_elsewhere(runner, found)]
    if runner.repeated:
        notes.append(f"sent again, because an event was lost: {runner.repeated} of {runner.repeated + runner.bursts} bursts")
    if runner.silent:
        notes.append(f"{runner.silent} probes were refused without an ICMP error: the kernel sends only so many a second")
    completeness = Completeness(
        "PARTIAL" if reasons else "COMPLETE",
        lost,
        runner.tracer.missing_hooks + runner.tracer.missing_stages,
        (*reasons, *(f"hook not available: {name}" for name in runner.tracer.missing_stages)),
    )

    def trace(way: str) -> Trace:
        mine = [journey for each in runner.planned if each.way == way for journey in runner.journeys[each.number]]
        outcomes = {journey.forward.outcome for journey in mine}
        chosen = tuple(path for _, path in paths[way])
        prediction = ways[way].prediction
        return Trace(
            outcome=outcomes.pop() if len(outcomes) == 1 else "mixed",
            paths=chosen,
            prediction=prediction,
            completeness=completeness,
            path_mtu=prediction.path_mtu,
            probe_cost=probe_cost(mine, runner.unseen if runner.calibrated else None),
            round_trip_ns=tracing.round_trips(mine, runner.unseen) if request.round_trip else None,
            sent=len(mine),
            notes=(*notes, *imitations(chosen), *tracing.problems(found.index, chosen)),
        )

    return Measurement(
        trace=trace(plan.PATH),
        path_series=tuple(number for number, _ in paths[plan.PATH]),
        underlay=trace(plan.UNDERLAY) if plan.UNDERLAY in ways else None,
        underlay_series=tuple(number for number, _ in paths[plan.UNDERLAY]),
        series=tuple(results),
        comparisons=_comparisons(runner, results, ways[plan.PATH].prediction, found, paths[plan.PATH]),
        baseline=found.baseline,
        conntrack=conntrack,
        stopped=found.stopped,
        rate=found.rate,
        times=tuple(tuple(sorted(runner.delivered[each.number])) for each in runner.planned),
        load=None,
        snapshot=found.snapshot,
        index=found.index,
        flow=ways[plan.PATH].flow,
        source=ends[0],
        destination=ends[1],
    )


def _reasons(tracer: Tracer, lost: int, found: _Found) -> list[str]:
    reasons = [f"{lost} events were lost: the buffer was full"] if lost else []
    reasons += [f"hook not available: {name}" for name in tracer.missing_hooks]
    return reasons + ([found.notes[-1]] if found.stopped == "conntrack" else [])


def _series(each: Series, runner: _Runner, way: Way, found: _Found, *, round_trip: bool) -> tuple[SeriesResult, tuple[Path, ...]]:
    journeys = runner.journeys[each.number]
    times = sorted(runner.delivered[each.number])
    limit = robust.fence(times)
    kept = [journey for journey in journeys if limit is None or (one_way(journey.forward, runner.unseen) or 0.0) <= limit]
    paths = _paths(each, kept, way, found, round_trip=round_trip)
    first = next((path for path in paths if path.direction == "forward"), None)
    main = first if first is not None and first.outcome == "delivered" else None
    inside = [journey.forward for journey in kept if one_way(journey.forward) is not None]
    above = [value for value in times if limit is not None and value > limit]
    overhead = main.overhead if main is not None and main.overhead is not None else None
    result = SeriesResult(
        way=each.way,
        flow=each.flow,
        size=each.size,
        probes=len(journeys),
        outcomes=dict(sorted(Counter(journey.forward.outcome for journey in journeys).items())),
        one_way_ns=summarise([one_way(leg, runner.unseen) or 0.0 for leg in inside], [_raw(leg) for leg in inside]),
        p50_ci95=robust.median_interval(times),
        p50_all=quantile(times, 0.5) if times else None,
        p99_all=quantile(times, 0.99) if times else None,
        outliers=Outliers(len(above), limit, max(above, default=None)),
        histogram=robust.histogram(times, limit),
        ip_length=first.hops[0].ip_length if first is not None and first.hops else None,
        encap_bytes=overhead["encap"]["bytes"] if overhead else None,
        translations=overhead["nat"]["translations"] if overhead else None,
        crossings=overhead["userspace"]["crossings"] if overhead else None,
        stages=stage_shares(main) if main is not None else (),
        round_trip_ns=tracing.round_trips(kept, runner.unseen) if round_trip else None,
    )
    return result, paths


def _raw(leg: Leg) -> float:
    assert leg.end is not None
    return leg.end.time_ns - leg.hops[0].time_ns


def _paths(each: Series, journeys: Sequence[Journey], way: Way, found: _Found, *, round_trip: bool) -> tuple[Path, ...]:
    flow, snapshot, index = way.flow, found.snapshot, found.index
    if each.flow == plan.NEW:
        # Every probe has a source port of its own: what a socket sent is not compared with one port.
        flow, sent = replace(flow, sport=None), None
    else:
        ports = (flow.sport, flow.dport) if flow.protocol in ("udp", "tcp") else (None, None)
        sent = FlowKey(flow.src, flow.dst, *ports) if flow.src is not None else None
    scene = Scene(index, sent=sent, registered=way.registered, unseen=found.unseen)
    forward = forward_paths(journeys, way.prediction, scene)
    if any(path.translations for path in forward):
        from netpath import discover

        scene = replace(scene, conntrack=tracing.bindings(discover.with_conntrack(snapshot, flow)))
        forward = forward_paths(journeys, way.prediction, scene)
    if not round_trip:
        return forward
    return forward + return_paths(journeys, way.prediction, lambda path: predict_reply(snapshot, flow, path, index=index), scene)


def stage_shares(path: Path) -> tuple[StageShare, ...]:
    """The stages of a delivered path from its first device on, each once, by time.

    The parts of a stretch are those of the probes that met marks there; the stretch is as long as it was for all probes.
    """
    stretches: dict[tuple[int, int], list[tuple[str, float]]] = defaultdict(list)
    for stage in path.stages:
        if stage.ns is not None and stage.from_hop:
            stretches[stage.from_hop, stage.to_hop].append((stage.stage, stage.ns.mean))
    spent: dict[str, float] = defaultdict(float)
    for (from_hop, to_hop), parts in stretches.items():
        end = path.hops[to_hop - 1] if to_hop > from_hop else path.delivery
        whole, told = end.segment_ns.mean if end and end.segment_ns else 0.0, sum(ns for _, ns in parts)
        scale = whole / told if whole > 0 and told > 0 else 1.0
        for name, ns in parts:
            spent[name] += ns * scale
    # Where stages end at the last device, what follows is the way up to the socket.
    total = path.overhead["one_way_ns"].mean if path.overhead and path.overhead["one_way_ns"] else sum(spent.values())
    rest = total - sum(spent.values())
    if rest > 0:
        spent["socket"] += rest
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return tuple(StageShare(name, value, value / total if total else 0.0) for name, value in ordered)


def _arriving(journeys: Sequence[Journey], found: _Found) -> list[float]:
    """One-way times, ascending, of the probes that were delivered on the baseline's node: a service may have chosen another."""
    ends = {
        inode: baselines.node_of(found.index, inode) for inode in {each.forward.end.netns for each in journeys if each.forward.end}
    }
    times = [(one_way(each.forward, found.unseen), each.forward.end) for each in journeys]
    return sorted(taken for taken, end in times if taken is not None and end is not None and ends[end.netns] == found.node)


def _elsewhere(runner: _Runner, found: _Found) -> list[str]:
    """A line for each series of which some probes went to another node than the baseline."""
    lines = []
    for each in runner.planned:
        whole = len(runner.delivered[each.number])
        away = whole - len(_arriving(runner.journeys[each.number], found)) if found.node is not None else 0
        if away and each.way == plan.PATH:
            name = found.index.netns_ref(found.node or 0).name
            lines.append(
                f"{each.flow}, {each.size} bytes: {away} of {whole} probes arrived elsewhere than on {name}, and are not compared"
            )
    return lines


def _added(paths: Sequence[tuple[int, Path]], series: int, found: _Found) -> int | None:
    """Bytes of encapsulation on the way of most of a series' probes that were delivered on the baseline's node."""
    for number, path in paths:
        arrived = number == series and path.direction == "forward" and path.outcome == "delivered" and path.hops
        if arrived and path.overhead and baselines.node_of(found.index, path.hops[-1].netns.inode) == found.node:
            return int(path.overhead["encap"]["bytes"])
    return None


def _comparisons(
    runner: _Runner,
    results: Sequence[SeriesResult],
    prediction: Prediction,
    found: _Found,
    paths: Sequence[tuple[int, Path]],
) -> tuple[Comparison, ...]:
    made = []
    for mine, result in zip(runner.planned, results, strict=True):
        twin = next(
            (each for each in runner.planned if (each.way, each.flow, each.size) == (plan.UNDERLAY, mine.flow, mine.size)), None
        )
        if mine.way != plan.PATH or twin is None:
            continue
        ours, theirs = _arriving(runner.journeys[mine.number], found), sorted(runner.delivered[twin.number])
        if not ours or not theirs:
            continue
        intervals = robust.compared(ours, theirs)
        path_ns, underlay_ns = quantile(ours, 0.5), quantile(theirs, 0.5)
        mtu = prediction.path_mtu
        added = _added(paths, mine.number, found)
        made.append(
            Comparison(
                flow=mine.flow,
                size=mine.size,
                path_ns=path_ns,
                underlay_ns=underlay_ns,
                extra_ns=path_ns - underlay_ns,
                extra_ci95=intervals[0] if intervals else None,
                ratio=path_ns / underlay_ns,
                ratio_ci95=intervals[1] if intervals else None,
                encap_bytes=added,
                bytes_of_probe=added / result.ip_length if added is not None and result.ip_length else None,
                bytes_of_full=added / mtu.ip if added is not None and mtu is not None else None,
            )
        )
    return tuple(made)
