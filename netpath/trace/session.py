"""One trace from beginning to end: discover, predict, arm, inject, observe, attribute.

What can run at the same time does: the sender process imports scapy and the eBPF programs are compiled (or read from the
cache) while this process reads the node's state.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from netpath import endpoints
from netpath.ebpf.tracer import Tracer
from netpath.errors import NetpathError, UsageError
from netpath.model import nonce as layout
from netpath.model.event import Boundary
from netpath.model.index import SnapshotIndex
from netpath.model.packet import Flow
from netpath.model.path import Completeness, Path, Prediction, ProbeCost, Stats, Trace
from netpath.model.snapshot import DeviceId, Namespace, Snapshot
from netpath.predict import predict, predict_reply
from netpath.probe.injector import Injector, UnreachableError
from netpath.probe.messages import Enter, Entered
from netpath.trace import align as aligning
from netpath.trace import stages, userspace
from netpath.trace.account import SEEN_ALONE, Account, Unseen
from netpath.trace.assemble import Scene, forward_paths, probe_cost, return_paths
from netpath.trace.attribute import Binding
from netpath.trace.correlate import FlowKey, Journey, correlate
from netpath.trace.observe import POLL_SECONDS, Observer
from netpath.trace.request import TraceRequest
from netpath.trace.stats import summarise

WARM_UP_SECONDS = 0.5
"""How long the first, uncounted probe may take; ARP that takes longer is not going to be answered soon."""

_AGEING = ("REACHABLE", "STALE", "DELAY", "PROBE")
"""What an entry may be that the kernel has resolved itself, from one moment to another (include/net/neighbour.h, NUD_VALID)."""

DISCOVERY = "reading the node's state"
LOADING = "compiling and loading the probe programs"
ARMING = "arming the probes"
SENDING = "sending the probes"
DRAINING = "waiting for the last probes to end"
"""What `run` reports as its phases begin, in this order; LOADING only if there is still something to wait for."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TraceRun:
    """A finished trace with everything it was made from."""

    trace: Trace
    snapshot: Snapshot
    index: SnapshotIndex
    flow: Flow
    source: endpoints.Endpoint
    destination: endpoints.Endpoint


class _Timings:
    """Wall time of each phase of the run, in ms."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.ms[name] = self.ms.get(name, 0.0) + (time.perf_counter() - started) * 1000


def run(request: TraceRequest, *, progress: Progress = lambda text: None) -> TraceRun:
    """Trace as asked.

    Raises UsageError (endpoints, ports, sizes), MissingError (privileges, kernel features, bcc) and NetpathError. A packet
    that does not arrive is no error: the trace says where it ended.
    """
    protocol = chosen_protocol(request)
    check_buffer(request.ring_bytes)
    timings = _Timings()
    with ExitStack() as stack:
        with timings.phase("imports"):
            from netpath import discover

        # The worker is waited for before the tracer it loads is closed.
        tracer = stack.enter_context(Tracer(ring_bytes=request.ring_bytes, hooks=request.hooks))
        workers = stack.enter_context(ThreadPoolExecutor(1))
        loading = workers.submit(tracer.load)
        injector = stack.enter_context(Injector())
        if protocol != "udp":
            injector.preload()
        progress(DISCOVERY)
        with timings.phase("discovery"):
            snapshot = discover.take()
        source, destination, flow = aim(request, protocol, snapshot)
        with timings.phase("discovery"):
            # Connections that are tracked already are translated as they were, not as the rules would.
            snapshot = discover.with_conntrack(snapshot, flow)
            index = SnapshotIndex(snapshot)
        base, nonce = layout.new_tcp_base(), layout.new_nonce()
        entered = enter(injector, flow, request.source, index, nonce, base)
        if isinstance(entered, UnreachableError):
            prediction = predict(snapshot, flow, index=index)
            trace = _refused(entered, prediction, Scene(index), timings)
            return TraceRun(trace, snapshot, index, flow, source, destination)
        flow = replace(flow, src=entered.source, sport=entered.sport)
        with timings.phase("prediction"):
            prediction = predict(snapshot, flow, index=index)
            registered = stages.plan(prediction, index) if request.stages else stages.Registered()
        if not loading.done():
            progress(LOADING)
        with timings.phase("programs"):
            loading.result()
        timings.ms |= tracer.timings_ms
        progress(ARMING)
        with timings.phase("attach"):
            tcp_base = base if protocol == "tcp" else None
            arm(
                tracer,
                nonce,
                [(prediction, flow)],
                snapshot,
                index,
                count=request.count,
                tcp_base=tcp_base,
                payload=flow.payload,
                registered=registered,
            )
        with timings.phase("self-check"):
            tracer.self_check()
        with timings.phase("probe"):
            observer = Observer(tracer, round_trip=request.round_trip)
            progress(SENDING)
            _send(observer, injector, request, tcp=protocol == "tcp")
            progress(DRAINING)
            observer.until(range(1, request.count + 1), request.timeout)
            observer.settle()
        journeys = correlate(
            observer.events,
            index,
            range(1, request.count + 1),
            observer.send_errors,
            stamps=observer.stamps,
            sent_ns=observer.sent_ns,
        )
        if not request.cold and strayed(journeys, prediction, index):
            with timings.phase("prediction"):
                snapshot = warmed(snapshot, journeys)
                index = SnapshotIndex(snapshot)
                prediction = at_any_age(predict(snapshot, flow, index=index), snapshot, flow)
        trace = _trace(request, flow, journeys, prediction, tracer, observer, snapshot, index, registered, timings)
    return TraceRun(trace, snapshot, index, flow, source, destination)


def check_buffer(size: int) -> None:
    """Raise UsageError for a size in bytes that no event buffer can have."""
    if size < mmap.PAGESIZE or size & (size - 1):
        raise UsageError(f"--buffer must be a power of two and at least {mmap.PAGESIZE} bytes, not {size}")


def chosen_protocol(request: TraceRequest) -> str:
    """The asked protocol, or what the presence of a port implies. Raises UsageError for a destination that is no endpoint."""
    if request.protocol is not None:
        return request.protocol
    return "tcp" if endpoints.has_port(request.destination) else "icmp"


def aim(request: TraceRequest, protocol: str, snapshot: Snapshot) -> tuple[endpoints.Endpoint, endpoints.Endpoint, Flow]:
    """Both endpoints and the flow between them. Raises UsageError when they don't add up to a packet."""
    source = endpoints.resolve(request.source, snapshot, role="source")
    destination = endpoints.resolve(request.destination, snapshot, role="destination")
    if source.netns is None:
        raise UsageError(f"{request.source} is not on this machine; the source must be")
    if destination.address is None:
        raise UsageError(f"{request.destination} has no address; name one with @ADDRESS")
    if protocol in ("udp", "tcp") and destination.port is None:
        raise UsageError(f"--{protocol} needs a port: write the destination as ADDRESS:PORT")
    if protocol == "icmp" and destination.port is not None:
        raise UsageError(f"ICMP has no ports: leave :{destination.port} out, or choose --tcp or --udp")
    if protocol != "tcp" and request.size < layout.MINIMUM_PAYLOAD:
        raise UsageError(f"--size must be at least {layout.MINIMUM_PAYLOAD} bytes, to hold the probe's mark")
    if request.count < 1:
        raise UsageError("--count must be at least 1")
    flow = Flow(
        netns=source.netns,
        dst=destination.address,
        protocol=protocol,
        src=source.address,
        sport=request.sport,
        dport=destination.port,
        payload=0 if protocol == "tcp" else request.size,
        df=request.df,
        ttl=request.ttl,
    )
    return source, destination, flow


def tunnel_ports(snapshot: Snapshot, index: SnapshotIndex) -> dict[int, str]:
    """UDP ports behind which another packet hides, as the devices and sockets of the snapshot say: ``vxlan``, ``ip`` or ``sleeve``.

    A user-space relay that carries bare IP packets (Flannel's udp backend) shows as a process that holds a TUN device and a UDP
    socket; every UDP socket in a namespace with a TUN device is tried, since a packet that is not IP inside is not taken for one.
    So is, for Weave's sleeve, every one in a namespace with a veth that is made to be captured from.
    """
    ports: dict[int, str] = {}
    for namespace in snapshot.namespaces:
        if any(index.is_tap(DeviceId(namespace.inode, link.ifindex)) for link in namespace.links if link.kind == "veth"):
            ports.update({item.port: "sleeve" for item in namespace.sockets or () if item.protocol == "udp" and not item.connected})
    for namespace in snapshot.namespaces:
        if any(link.kind == "tun" for link in namespace.links):
            ports.update({item.port: "ip" for item in namespace.sockets or () if item.protocol == "udp"})
    for namespace in snapshot.namespaces:
        ports.update({link.vxlan.port: "vxlan" for link in namespace.links if link.vxlan is not None})
    return ports


def enter(injector: Injector, flow: Flow, source: str, index: SnapshotIndex, nonce: int, base: int) -> Entered | UnreachableError:
    """Open the sender's sockets in the flow's namespace; `source` is what the user called it. Errors as `Injector.enter`."""
    path = entry(index, flow.netns)
    if path is None:
        raise NetpathError(f"{source}: no file or process leads into its namespace any more")
    try:
        return injector.enter(
            Enter(
                netns_path=path,
                protocol=flow.protocol,
                dst=flow.dst,
                nonce=nonce,
                src=flow.src,
                sport=flow.sport,
                dport=flow.dport,
                size=flow.payload,
                df=flow.df,
                ttl=flow.ttl,
                mark=flow.mark,
                bound_device=flow.bound_device,
                tcp_base=base,
                identifier=nonce & 0xFFFF,
            )
        )
    except UnreachableError as error:
        return error


def entry(index: SnapshotIndex, inode: int) -> str | None:
    """A file that leads into a namespace; None when nothing does."""
    namespace = index.namespace(inode)
    return namespace.paths[0] if namespace is not None and namespace.paths else None


def entries(index: SnapshotIndex, inodes: Iterable[int]) -> list[str]:
    """The files that lead into these namespaces, of those that have one."""
    return [path for inode in inodes if (path := entry(index, inode))]


def arm(
    tracer: Tracer,
    nonce: int,
    ways: Sequence[tuple[Prediction, Flow]],
    snapshot: Snapshot,
    index: SnapshotIndex,
    *,
    count: int,
    tcp_base: int | None,
    payload: int | None,
    registered: stages.Registered | None = None,
) -> None:
    """Arm for probes that go these predicted ways, with marks among what is `registered`; the rest as `Tracer.arm`."""
    inodes = sorted({inode for prediction, flow in ways for inode in listened(index, prediction, flow)})
    tracer.arm(
        nonce,
        count=count,
        tunnel_ports=tunnel_ports(snapshot, index),
        tcp_base=tcp_base,
        payload=payload,
        listen_in=entries(index, inodes),
        stages=marks(index, registered) if registered is not None else None,
        sockets=all(flow.protocol == "udp" for _, flow in ways),
        relays=may_relay(snapshot),
    )


def may_relay(snapshot: Snapshot) -> bool:
    """Some process may read packets from a TUN device: there is one, or not all devices could be read."""
    unread = bool(snapshot.problems) or any(namespace.problems for namespace in snapshot.namespaces)
    return unread or any(link.kind == "tun" for namespace in snapshot.namespaces for link in namespace.links)


def marks(index: SnapshotIndex, registered: stages.Registered) -> dict[str, tuple[Boundary, ...]]:
    """The marks of stages, by the file of the namespace they go into."""
    spaces = {inode for inode, _, _ in registered.at}
    return {path: registered.boundaries(inode) for inode in sorted(spaces) if (path := entry(index, inode))}


def listened(index: SnapshotIndex, prediction: Prediction, flow: Flow) -> tuple[int, ...]:
    """Namespaces whose own deliveries are watched: those on a predicted path, and those that hold either address."""
    wanted = {flow.netns}
    for path in prediction.paths:
        wanted.update(hop.netns.inode for hop in path.hops)
        if path.delivery is not None:
            wanted.add(path.delivery.netns.inode)
    for address in (flow.dst, flow.src):
        if address is not None:
            wanted.update(device.netns for device in index.holders(address))
    return tuple(sorted(wanted))


def _send(observer: Observer, injector: Injector, request: TraceRequest, *, tcp: bool) -> None:
    """Send the warm-up and all probes, and collect what is seen meanwhile.

    A SYN waits for the one before: the sender's kernel resets what is answered, and one that overtakes that reset meets a half-open
    connection of the same ports, and is refused (RFC 9293, 3.10.7.4). So the next goes when the answer's and the reset's time is over, too.
    """
    due = time.monotonic()
    patience = min(WARM_UP_SECONDS, request.timeout)
    for sequence in range(1 if request.cold else 0, request.count + 1):
        while (now := time.monotonic()) < due:
            observer.collect()
            time.sleep(min(POLL_SECONDS, max(0.0, due - now)))
        observer.send(injector, sequence)
        started = time.monotonic()
        due = max(due, started) if sequence == 0 else due + request.interval
        if sequence == 0 or (tcp and sequence < request.count and patience):
            observer.until({sequence}, patience)
            taken = time.monotonic() - started
            if sequence and taken >= patience:
                patience = 0.0  # nothing comes back; what does is not refused
            due = max(due, time.monotonic() + (2 * taken if tcp and taken < WARM_UP_SECONDS else 0.0))


def strayed(journeys: Sequence[Journey], prediction: Prediction, index: SnapshotIndex) -> bool:
    """Delivered, but by hops that were not predicted."""
    forward = forward_paths(journeys, prediction, Scene(index))
    return any(path.outcome == "delivered" and any(hop.status != "observed" for hop in path.hops) for path in forward)


def warmed(snapshot: Snapshot, journeys: Sequence[Journey]) -> Snapshot:
    """The snapshot with the neighbours that the warm-up probe made the kernel resolve.

    A bridge sends a frame whose destination it has translated straight to the port of a neighbour it is sure of, and through its
    own device otherwise (net/bridge/br_netfilter_hooks.c, br_nf_pre_routing_finish_bridge): the counted probes follow the former.
    """
    from netpath import discover

    crossed = {event.netns for journey in journeys for event in journey.forward.hops}
    fresh = {space.inode: space for space in discover.take(only=crossed).namespaces}
    return replace(
        snapshot,
        namespaces=tuple(
            replace(space, neighbours=fresh[space.inode].neighbours) if space.inode in fresh else space
            for space in snapshot.namespaces
        ),
    )


def at_any_age(prediction: Prediction, snapshot: Snapshot, flow: Flow) -> Prediction:
    """A prediction with the ways that a packet takes while neighbours are fresh, or are not, that are otherwise in the snapshot.

    An entry in use goes from REACHABLE by STALE and DELAY back to REACHABLE every half minute or so (net/core/neighbour.c), and
    may do so between two looks at it: `warmed` says which way a bridge sends translated frames now, not which it did a second ago.
    These ways have a share of 0.
    """
    paths = list(prediction.paths)
    known = {tuple(aligning.key_of(hop) for hop in path.hops) for path in paths}
    for state in ("REACHABLE", "STALE"):
        aged = replace(snapshot, namespaces=tuple(_aged(space, state) for space in snapshot.namespaces))
        for path in predict(aged, flow).paths:
            way = tuple(aligning.key_of(hop) for hop in path.hops)
            if way not in known:
                known.add(way)
                paths.append(replace(path, share=0.0))
    return replace(prediction, paths=tuple(paths))


def _aged(space: Namespace, state: str) -> Namespace:
    """The namespace with all neighbours that it has resolved itself in a state."""
    return replace(
        space, neighbours=tuple(replace(each, state=state) if each.state in _AGEING else each for each in space.neighbours)
    )


def _trace(
    request: TraceRequest,
    flow: Flow,
    journeys: tuple[Journey, ...],
    prediction: Prediction,
    tracer: Tracer,
    observer: Observer,
    snapshot: Snapshot,
    index: SnapshotIndex,
    registered: stages.Registered,
    timings: _Timings,
) -> Trace:
    ports = (flow.sport, flow.dport) if flow.protocol in ("udp", "tcp") else (None, None)
    sent = FlowKey(flow.src, flow.dst, *ports) if flow.src is not None else None
    scene = Scene(index, sent=sent, registered=registered)
    forward = forward_paths(journeys, prediction, scene)
    if any(path.translations for path in forward):
        from netpath import discover

        with timings.phase("conntrack"):
            scene = replace(scene, conntrack=bindings(discover.with_conntrack(snapshot, flow)))
        forward = forward_paths(journeys, prediction, scene)
    back: tuple[Path, ...] = ()
    if request.round_trip:
        back = return_paths(journeys, prediction, lambda path: predict_reply(snapshot, flow, path, index=index), scene)
    outcomes = {path.outcome for path in forward}
    lost = tracer.lost
    missing = tracer.missing_hooks
    reasons = [f"{lost} events were lost: the buffer was full"] if lost else []
    reasons += [f"hook not available: {name}" for name in missing + tracer.missing_stages]
    copies = sum(journey.forward.copies for journey in journeys)
    unread = problems(index, forward + back)
    notes = [*unread]
    notes += userspace.imitations(forward + back)
    notes += [f"{copies} sightings of copies that a flooding bridge made are left out"] if copies else []
    trace = Trace(
        outcome=outcomes.pop() if len(outcomes) == 1 else "mixed",
        paths=forward + back,
        prediction=prediction,
        completeness=Completeness(
            verdict="PARTIAL" if lost or missing else "COMPLETE",
            lost_events=lost,
            missing_hooks=missing + tracer.missing_stages,
            reasons=tuple(reasons),
        ),
        path_mtu=prediction.path_mtu,
        probe_cost=probe_cost(journeys),
        round_trip_ns=round_trips(journeys) if request.round_trip else None,
        sent=request.count,
        notes=tuple(notes),
        timings_ms=timings.ms,
    )
    return doubted(trace, unread)


def doubted(trace: Trace, unread: Sequence[str]) -> Trace:
    """PARTIAL where what could not be read may be why a packet did not go, or did not arrive, as predicted."""
    if not unread or (trace.outcome == "delivered" and not trace.diverged):
        return trace
    reasons = (*trace.completeness.reasons, *(f"not read: {problem}" for problem in unread))
    notes = tuple(note for note in trace.notes if note not in unread)
    return replace(trace, completeness=replace(trace.completeness, verdict="PARTIAL", reasons=reasons), notes=notes)


def problems(index: SnapshotIndex, paths: Iterable[Path]) -> list[str]:
    """What could not be read of the namespaces that the paths cross."""
    crossed = {hop.netns.inode for path in paths for hop in path.hops}
    spaces = [space for inode in sorted(crossed) if (space := index.namespace(inode)) is not None]
    return [f"{space.name}: {problem}" for space in spaces for problem in space.problems]


def round_trips(journeys: Iterable[Journey], unseen: Unseen = SEEN_ALONE) -> Stats | None:
    """From a probe's first hop to its answer's arrival at the sender, of those that came back; `unseen` as in `Account`."""
    timings = [
        Account(journey.forward, unseen).round_trip(Account(journey.back, unseen))
        for journey in journeys
        if journey.back is not None
        and journey.back.end is not None
        and journey.back.outcome == "delivered"
        and journey.forward.hops
    ]
    return summarise([item.raw - item.cost for item in timings], [item.raw for item in timings])


def _refused(error: UnreachableError, prediction: Prediction, scene: Scene, timings: _Timings) -> Trace:
    """The trace of a packet that never was: the source's kernel has no way to the destination."""
    from netpath.trace.correlate import Leg

    leg = Leg(outcome="dropped", hops=(), marks=(), end=None, copies=0, send_error=error.code)
    return Trace(
        outcome="dropped",
        paths=forward_paths([Journey(1, leg, None)], prediction, scene),
        prediction=prediction,
        completeness=Completeness("COMPLETE"),
        path_mtu=prediction.path_mtu,
        probe_cost=ProbeCost(None, None),
        sent=0,
        notes=(str(error),),
        timings_ms=timings.ms,
    )


def bindings(snapshot: Snapshot) -> tuple[Binding, ...]:
    """The conntrack entries that a snapshot holds; an ICMP identifier is no port."""
    found: list[Binding] = []
    for namespace in snapshot.namespaces:
        for entry in namespace.conntrack or ():
            plain = entry.protocol not in ("udp", "tcp")
            there, back = (
                FlowKey(side.source, side.destination, None if plain else side.sport, None if plain else side.dport)
                for side in (entry.original, entry.reply)
            )
            found.append((there, back))
    return tuple(found)
