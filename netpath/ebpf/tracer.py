"""Arms the probes for one run and hands out what they see. Everything is owned by file descriptors of this process."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from netpath import setns
from netpath.ebpf import btf as btf_module
from netpath.ebpf import cache, records, sys
from netpath.ebpf import programs as programs_module
from netpath.ebpf.headers import QUOTING, parse
from netpath.ebpf.ring import Ring
from netpath.errors import MissingError, NetpathError
from netpath.model import nonce as layout
from netpath.model.event import LOCAL_IN_PRIORITY, LOCAL_OUT_PRIORITY, QUEUED, Boundary, Event, Stamp
from netpath.model.packet import Ethernet, Headers, Icmp, Ipv4, Udp, Vlan

RING_BYTES = 1 << 20
NFPROTO = (socket.AF_INET, socket.AF_INET6)
NF_LOCAL_IN, NF_LOCAL_OUT = 1, 3
NETFILTER_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
"""By their numbers (enum nf_inet_hooks)."""
TCP_SYN_BYTES = 32
"""A probe's SYN with its options (netpath/probe/build.py): what its packet ends with."""
_QUEUED = 255
"""NP_QUEUED in probes/event.h."""
STAGE_LOSS = "time inside the kernel can't be split into conntrack, nat, filter and routing; it is shown as other"
TUNNEL_KINDS = {"vxlan": 1, "ip": 2, "sleeve": 3}
ETHERNET_TYPES = (1, 772)
RUNS_AT_ONCE = 32
"""Priorities tried for a hook at LOCAL_IN and LOCAL_OUT, each of which one run can have in a namespace (net/netfilter/nf_bpf_link.c)."""
LOADERS = min(4, os.cpu_count() or 1)
TAG_BYTES = 4
TAIL_SIZES = (18, 400)
"""Payload bytes with which a packet's end can be relied on: Ethernet pads IPv4 datagrams below the first, and Linux quotes 576 bytes of
a packet in an ICMP error (net/ipv4/icmp.c), which with tunnels around it leaves the second."""
CHECK_BYTES = 40
"""Payload of the self-check's packet when the run's own have no common size."""
SCRATCH_BYTES = 8 + 256 + 64
"""struct np_scratch: a flag, the front of a packet, and room to read beyond it (probes/walk.h)."""


@dataclass(frozen=True, slots=True)
class Hook:
    """One place where a probe is attached. `needed` says what a trace loses without it; empty: it can do without."""

    name: str
    program: str
    tracepoint: str | None
    needed: str


TRACEPOINTS = (
    Hook("tx", "np_tx", "net_dev_start_xmit", "no hop is seen when a device sends"),
    Hook("rx", "np_rx", "netif_receive_skb", "no hop is seen when a device receives"),
    Hook("drop", "np_drop", "kfree_skb", "drops are seen as losses, without a reason"),
    Hook("socket", "np_socket", "sk_data_ready", ""),
    Hook("tun_read", "np_tun_read", "skb_copy_datagram_iovec", ""),
)
QUEUE = Hook("queued", "np_queued", "qdisc_enqueue", "")
"""Attached with the marks of stages, of which it is one: where a queueing discipline takes a packet."""
QUEUE_LOSS = "time in a queueing discipline is shown as other"
NETFILTER = (
    (Hook("local_in", "np_local_in", None, ""), NF_LOCAL_IN, LOCAL_IN_PRIORITY),
    (Hook("local_out", "np_local_out", None, ""), NF_LOCAL_OUT, LOCAL_OUT_PRIORITY),
)
FUNCTIONS = (
    ("socket", "np_socket", "sock_def_readable"),
    ("local_in", "np_deliver", "ip_protocol_deliver_rcu"),
    ("local_in", "np_deliver", "ip6_protocol_deliver_rcu"),
)
"""(hook, program, kernel function): what stands in for a hook that the kernel lacks, by fentry. Needs BTF-typed programs; not every
kernel that has those lets programs onto functions."""
HOOK_NAMES = {1: "tx", 2: "rx", 3: "drop", 4: "socket", 5: "local_in", 6: "local_out", 7: "tun_read"}
ROLES = {1: "probe", 2: "answer", 3: "error"}


@dataclass(frozen=True, slots=True)
class Provider:
    """A way to hang a program on a tracepoint. `direct`: its programs may read kernel memory by plain loads."""

    name: str
    direct: bool


PROVIDERS = (Provider("BTF-typed tracepoints", True), Provider("raw tracepoints", False))
"""Best first; the first whose programs the kernel loads is used. What the second costs more is in docs/probes.md."""


class Tracer:
    """The probes of one run, as a context manager: `load` ahead of time, then `arm` before the first packet is sent.

    `ring_bytes` is the event buffer's size: a power of two, a multiple of the page.
    """

    def __init__(self, *, ring_bytes: int = RING_BYTES) -> None:
        self._ring_bytes = ring_bytes
        self._stack = ExitStack()
        self._maps: dict[str, int] = {}
        self._loaded: dict[str, int] = {}
        self._functions: list[tuple[str, int]] = []
        self._ring: Ring | None = None
        self._symbols: Symbols | None = None
        self._hooks: list[str] = []
        self._missing: list[str] = []
        self._missing_stages: list[str] = []
        self._tunnel_ports: dict[int, str] = {}
        self._nonce = 0
        self._check_number, self._check_size = 0, CHECK_BYTES
        self._code: programs_module.Programs | None = None
        self._stamping: dict[int, int] = {}
        self._stages: Mapping[str, Sequence[Boundary]] = {}
        self._listened: tuple[str, ...] = ()
        self._links: dict[str, list[int]] = {}
        self._stamps: list[Stamp] = []
        self._values: dict[str, int] = {}
        self.provider = ""
        """The provider in use, one of `PROVIDERS`."""
        self.timings_ms: dict[str, float] = {}
        """Where `load` spent its time: btf, compile (or reading the cache), load. It runs beside the caller's own work."""

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Detach everything. Nothing more is seen."""
        self._detach(*self._links)
        self._stack.close()

    @contextlib.contextmanager
    def without(self, *kinds: str) -> Iterator[None]:
        """For the time of the block these are not attached at all: names of `TRACEPOINTS`, stamp (all marks of stages), or local
        (LOCAL_IN and LOCAL_OUT).

        What a path takes with and without them is what they cost there (`netpath.trace.calibrate`). Events that were written
        before are still in the buffer. Not for the kinds that `run` needs to end: nobody would see a delivery.
        """
        self._detach(*kinds)
        try:
            yield
        finally:
            for kind in kinds:
                if kind == "stamp":
                    self._link_stages()
                elif kind == "local":
                    self._link_local()
                else:
                    hook = next(hook for hook in TRACEPOINTS if hook.name == kind)
                    self._links.setdefault(kind, []).append(self._open(hook))

    def _detach(self, *kinds: str) -> None:
        for kind in kinds:
            links, self._links[kind] = self._links.get(kind, []), []
            for link in links:
                os.close(link)

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks that are armed."""
        return tuple(self._hooks)

    @property
    def missing_hooks(self) -> tuple[str, ...]:
        """Hooks that this kernel does not offer and whose absence may change a result, each with what is lost."""
        return tuple(self._missing)

    @property
    def missing_stages(self) -> tuple[str, ...]:
        """Marks of stages that could not be put in place, each with what is lost. Hops don't suffer from it."""
        return tuple(self._missing_stages)

    @property
    def lost(self) -> int:
        """Events that did not fit into the buffer."""
        return self._counter(1)

    @property
    def generated(self) -> int:
        """Events that the probes had to report, those that were lost included."""
        return self._counter(0) + self._counter(1)

    def _counter(self, which: int) -> int:
        if "counters" not in self._maps:
            return 0
        cpus = _possible_cpus()
        raw = sys.lookup(self._maps["counters"], struct.pack("<I", which), 8 * cpus)
        return sum(struct.unpack(f"<{cpus}Q", raw))

    def load(self, provider: str | None = None) -> None:
        """Make the maps and load the programs; nothing is attached yet.

        `provider` forces one of `PROVIDERS` by name. Raises MissingError when the kernel does not let us, or has no BTF, or when the
        programs must be compiled and bcc is not there. Most of the time goes to the kernel's verifier, which needs no Python: call it
        from another thread.
        """
        header = programs_module.source_text("event.h")
        self._event, self._stamp = records.layout(header, "np_event"), records.layout(header, "np_stamp")
        self._settings = records.layout(header, "np_settings")
        started = time.perf_counter()
        self._btf = btf_module.read()
        self._reasons = self._btf.enum("skb_drop_reason")
        self.timings_ms["btf"] = (time.perf_counter() - started) * 1000
        try:
            self._create_maps()
        except OSError as error:
            raise MissingError(
                f"the kernel refused an eBPF map ({error.strerror}); CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are needed (run as root)"
            ) from error
        failure: sys.LoadError | None = None
        for candidate in PROVIDERS:
            if provider not in (None, candidate.name):
                continue
            try:
                self._loaded = self._load_all(candidate)
            except sys.LoadError as error:
                failure = failure or error
                continue
            self.provider = candidate.name
            return
        assert failure is not None
        raise MissingError(_load_failure(failure)) from failure

    def _load_all(self, provider: Provider) -> dict[str, int]:
        """Descriptors of all programs by hook. Raises LoadError when one of the tracepoints' is refused."""
        started = time.perf_counter()
        self._code = code = programs_module.prepare(self._btf, direct=provider.direct)
        self.timings_ms["compile"] = (time.perf_counter() - started) * 1000
        started = time.perf_counter()
        # The verifier is most of the work, and each program's is its own: the system call runs without Python's lock.
        with ThreadPoolExecutor(LOADERS) as workers:
            filters = [(hook.name, workers.submit(self._load_netfilter, code, hook)) for hook, _, _ in NETFILTER]
            loading = [(hook, workers.submit(self._load_tracepoint, code, hook, provider)) for hook in (*TRACEPOINTS, QUEUE)]
        loaded = {name: program for name, result in filters if (program := result.result()) is not None}
        for hook, result in loading:
            try:
                loaded[hook.name] = result.result()
            except sys.LoadError:
                if hook.needed:
                    raise
        if provider.direct:
            self._functions = self._load_functions(code, loaded)
        self.timings_ms["load"] = (time.perf_counter() - started) * 1000
        return loaded

    def _load_functions(self, code: programs_module.Programs, loaded: Mapping[str, int]) -> list[tuple[str, int]]:
        """(hook, descriptor) of the programs that stand in for hooks that did not load. One that is refused is not there."""
        found = []
        for hook, program, function in FUNCTIONS:
            type_id = self._btf.find(btf_module.KIND_FUNC, function) if hook not in loaded else None
            if type_id is not None:
                with contextlib.suppress(sys.LoadError):
                    how = {"attach_type": sys.TRACE_FENTRY, "attach_btf_id": type_id}
                    found.append((hook, self._load(code, sys.PROG_TRACING, program, **how)))
        return found

    def arm(
        self,
        nonce: int,
        *,
        count: int,
        tunnel_ports: Mapping[int, str],
        tcp_base: int | None = None,
        payload: int | None = None,
        listen_in: Sequence[str] = (),
        stages: Mapping[str, Sequence[Boundary]] | None = None,
    ) -> None:
        """Attach. From here on every packet that carries `nonce` and a sequence number up to `count` is reported.

        `tcp_base` is the base of the SYNs' numbers (None: no TCP). `tunnel_ports` are UDP ports behind which another packet hides
        (``vxlan``: RFC 7348, ``ip``: a bare IP packet, ``sleeve``: Weave's frames). `listen_in` are the files of the namespaces whose deliveries are watched by
        a netfilter hook; one that is gone by now is passed over. `stages` are the marks to be put among what is registered at
        netfilter hooks, by the file of their namespace (see `take_stamps`). Raises MissingError.

        `payload` is the size of every probe's payload, if they are all of one: other packets are then told by their end alone, at
        half the cost to them. It is not used where padding or a shortened quotation in an ICMP error could hide the end.
        """
        usable = payload is not None and tcp_base is None and TAIL_SIZES[0] <= payload <= TAIL_SIZES[1]
        self._check_size = payload if usable and payload is not None else CHECK_BYTES
        self._nonce, self._tunnel_ports = nonce, dict(tunnel_ports)
        self._check_number = count + 1
        for port, tunnel in tunnel_ports.items():
            sys.update(self._maps["tunnels"], struct.pack("<H", port), bytes([TUNNEL_KINDS[tunnel]]))
        self._values = {
            "nonce": nonce,
            "tcp_base": tcp_base or 0,
            "tcp_span": layout.TCP_STRIDE * (count + 1) if tcp_base is not None else 0,
            "tcp_stride": layout.TCP_STRIDE,
            "last": self._check_number,
            "tail": self._check_size if usable else 0,
            "stage_tail": 0 if not stages else TCP_SYN_BYTES if tcp_base is not None else payload or 0,
        }
        sys.update(self._maps["settings"], struct.pack("<I", 0), self._settings.pack(self._values))
        self._attach_tracepoints()
        self._attach_netfilter(listen_in)
        self._attach_functions()
        self._attach_stages(stages or {})
        if "socket" not in self._hooks and "local_in" not in self._hooks:
            self._missing.append("delivery: neither sk_data_ready nor netfilter links; arrivals are inferred from the last hop")

    def expect_payload(self, size: int) -> None:
        """From here on all probes have a payload of `size` bytes: for a run of several sizes, armed for none. Not of TCP."""
        tail = size if TAIL_SIZES[0] <= size <= TAIL_SIZES[1] else 0
        settings = self._settings.pack({**self._values, "tail": tail, "stage_tail": size})
        sys.update(self._maps["settings"], struct.pack("<I", 0), settings)

    def _create_maps(self) -> None:
        for name, kind, key, value, entries in (
            ("settings", sys.MAP_ARRAY, 4, self._settings.struct.size, 1),
            ("tunnels", sys.MAP_HASH, 2, 1, 256),
            ("counters", sys.MAP_PERCPU_ARRAY, 4, 8, 4),
            ("scratch", sys.MAP_PERCPU_ARRAY, 4, SCRATCH_BYTES, 16),
            ("events", sys.MAP_RINGBUF, 0, 0, self._ring_bytes),
        ):
            descriptor = sys.create_map(kind, key, value, entries, f"np_{name}")
            self._stack.callback(os.close, descriptor)
            self._maps[name] = descriptor
        self._ring = Ring(self._maps["events"], self._ring_bytes)
        self._stack.callback(self._ring.close)

    def _load(self, code: programs_module.Programs, kind: int, program: str, **how: int) -> int:
        descriptor = sys.load(kind, code.linked(program, self._maps), program, **how)
        self._stack.callback(os.close, descriptor)
        return descriptor

    def _load_tracepoint(self, code: programs_module.Programs, hook: Hook, provider: Provider) -> int:
        if not provider.direct:
            return self._load(code, sys.PROG_RAW_TRACEPOINT, hook.program)
        type_id = self._btf.find(btf_module.KIND_TYPEDEF, f"btf_trace_{hook.tracepoint}")
        if type_id is None:
            raise sys.LoadError(errno.ENOENT, f"this kernel has no tracepoint {hook.tracepoint}", "")
        return self._load(code, sys.PROG_TRACING, hook.program, attach_type=sys.TRACE_RAW_TP, attach_btf_id=type_id)

    def _load_netfilter(self, code: programs_module.Programs, hook: Hook) -> int | None:
        """None on a kernel before 6.4, or without such programs: sk_data_ready or the last hop stand in."""
        try:
            return self._load(code, sys.PROG_NETFILTER, hook.program, attach_type=sys.NETFILTER_ATTACH)
        except OSError:
            return None

    def _attach_tracepoints(self) -> None:
        for hook in TRACEPOINTS:
            try:
                if hook.name not in self._loaded:
                    raise FileNotFoundError(errno.ENOENT, "not in this kernel")
                link = self._open(hook)
            except OSError as error:
                if hook.needed:
                    self._missing.append(f"{hook.name}: tracepoint {hook.tracepoint}: {error.strerror}; {hook.needed}")
                continue
            self._links.setdefault(hook.name, []).append(link)
            self._hooks.append(hook.name)

    def _open(self, hook: Hook) -> int:
        # A BTF-typed program knows its tracepoint; the name is for the others.
        typed = self.provider == PROVIDERS[0].name
        return sys.open_raw_tracepoint(self._loaded[hook.name], None if typed else hook.tracepoint)

    def _attach_functions(self) -> None:
        for hook, program in self._functions:
            with contextlib.suppress(OSError):
                self._stack.callback(os.close, sys.open_raw_tracepoint(program, None))
                if hook not in self._hooks:
                    self._hooks.append(hook)

    def _attach_netfilter(self, paths: Sequence[str]) -> None:
        self._listened = tuple(paths)
        if self._link_local():
            self._hooks += [hook.name for hook, _, _ in NETFILTER if hook.name in self._loaded]

    def _link_local(self) -> bool:
        """Attach the hooks of deliveries and sends in every namespace that is listened in; False: nowhere."""
        loaded = [(self._loaded[hook.name], number, priority) for hook, number, priority in NETFILTER if hook.name in self._loaded]
        made = self._links.setdefault("local", [])
        for path in self._listened if loaded else ():
            with ThreadPoolExecutor(1) as worker:
                made += worker.submit(_link_in, path, loaded).result()
        return bool(made)

    def _attach_stages(self, stages: Mapping[str, Sequence[Boundary]]) -> None:
        """Put the marks in place. What the kernel can't do is not missing from the path, only from its stages."""
        wanted = sorted({boundary.priority for boundaries in stages.values() for boundary in boundaries})
        if not wanted:
            return
        with ThreadPoolExecutor(LOADERS) as workers:
            refused = [error for error in workers.map(self._load_stamp, wanted) if error is not None]
        if refused:
            self._missing_stages.append(f"stages: netfilter links: {refused[0].strerror}; {STAGE_LOSS}")
            return
        self._stages = stages
        if QUEUE.name not in self._loaded:
            self._missing_stages.append(f"stages: tracepoint {QUEUE.tracepoint}: not in this kernel; {QUEUE_LOSS}")
        for path, boundary, error in self._link_stages():
            where = f"{boundary.hook} at {boundary.priority} in {Path(path).name}"
            self._missing_stages.append(f"stages: {where}: {error.strerror}; {STAGE_LOSS}")

    def _link_stages(self) -> list[tuple[str, Boundary, OSError]]:
        """Attach the marks in every namespace; those that could not be."""
        refused: list[tuple[str, Boundary, OSError]] = []
        if self._stages and QUEUE.name in self._loaded:
            self._links.setdefault("stamp", []).append(self._open(QUEUE))
        for path, boundaries in self._stages.items():
            with ThreadPoolExecutor(1) as worker:
                links, failed = worker.submit(self._stamp_in, path, boundaries).result()
            self._links.setdefault("stamp", []).extend(links)
            refused += [(path, boundary, error) for boundary, error in failed]
        return refused

    def _load_stamp(self, priority: int) -> OSError | None:
        """Have the program for a priority loaded; None, or why that can't be."""
        if priority in self._stamping:
            return None
        assert self._code is not None
        try:
            code = self._code.at_priority("np_stamp", self._maps, priority)
            descriptor = sys.load(sys.PROG_NETFILTER, code, "np_stamp", attach_type=sys.NETFILTER_ATTACH)
        except OSError as error:
            return error
        self._stack.callback(os.close, descriptor)
        self._stamping[priority] = descriptor
        return None

    def _stamp_in(self, path: str, boundaries: Sequence[Boundary]) -> tuple[list[int], list[tuple[Boundary, OSError]]]:
        """Attach the marks of one namespace; the calling thread stays in it and must end. A namespace that is gone needs none."""
        links: list[int] = []
        failed: list[tuple[Boundary, OSError]] = []
        try:
            setns.enter_path(path)
        except OSError:
            return links, failed
        for boundary in boundaries:
            step = 1 if boundary.limit >= boundary.priority else -1
            number, family = NETFILTER_HOOKS.index(boundary.hook), socket.AF_INET6 if boundary.family == 6 else socket.AF_INET
            for priority in range(boundary.priority, boundary.limit + step, step):
                try:
                    if (refused := self._load_stamp(priority)) is not None:
                        raise refused
                    links.append(sys.link_netfilter(self._stamping[priority], family, number, priority))
                except OSError as error:
                    if error.errno == errno.EBUSY and priority != boundary.limit:
                        continue  # another run's mark is there: two programs can't share a priority
                    failed.append((boundary, error))
                break
        return links, failed

    def take_stamps(self) -> list[Stamp]:
        """The marks of stages that `drain` came across, since the last call."""
        taken, self._stamps = self._stamps, []
        return taken

    def drain(self) -> list[Event]:
        """All events since the last call, in the order the buffer has them. The self-check's own are left out."""
        return [event for event in self._events() if event.sequence != self._check_number]

    def take(self) -> list[bytes]:
        """The records since the last call as they are in the buffer, for `decoded` to read when there is time."""
        return list(self._ring.records()) if self._ring is not None else []

    def decoded(self, records: Sequence[bytes]) -> tuple[list[Event], list[Stamp]]:
        """What `take` took; the self-check's own are left out."""
        stamp = self._stamp.struct.size
        events = [self._decode(raw) for raw in records if len(raw) != stamp]
        stamps = [self._decode_stamp(raw) for raw in records if len(raw) == stamp]
        return [event for event in events if event.sequence != self._check_number], stamps

    def discard(self) -> int:
        """Empty the buffer without decoding it; how many events there were."""
        return sum(1 for _ in self._ring.records()) if self._ring is not None else 0

    def _events(self) -> Iterator[Event]:
        if self._ring is None:
            return
        for raw in self._ring.records():
            if len(raw) == self._stamp.struct.size:
                self._stamps.append(self._decode_stamp(raw))
            else:
                yield self._decode(raw)

    def _decode_stamp(self, raw: bytes) -> Stamp:
        record = self._stamp.unpack(raw)
        return Stamp(
            time_ns=record["time"],
            netns=record["netns"],
            family=6 if record["family"] == socket.AF_INET6 else 4,
            hook=QUEUED if record["hook"] == _QUEUED else NETFILTER_HOOKS[record["hook"]],
            priority=record["priority"],
            sequence=record["sequence"],
            skb=record["skb"],
            cost_ns=max(0, record["left"] - record["time"]),
        )

    def _decode(self, raw: bytes) -> Event:
        record = self._event.unpack(raw)
        captured = record["data"][: record["captured"]]
        headers, ip_length = parse(captured, record["l3"], record["protocol"], self._tunnel_ports)
        if record["l3"] == 0 and captured and not headers:
            # The drop and socket hooks know where IP starts, but not which protocol the packet was said to be.
            guessed = 0x86DD if captured[0] >> 4 == 6 else 0x0800
            headers, ip_length = parse(captured, 0, guessed, self._tunnel_ports)
        headers = _with_tag(headers, record["vlan_protocol"], record["vlan_tci"])
        hook = HOOK_NAMES[record["hook"]]
        reason = symbol = None
        if hook == "drop":
            reason = self._reasons.get(record["reason"], str(record["reason"])).removeprefix("SKB_DROP_REASON_")
            if reason == "NOT_SPECIFIED":
                self._symbols = self._symbols or Symbols()
                symbol = self._symbols.name(record["location"])
        length = record["length"] + record["ahead"]
        if hook in ("local_in", "local_out", "socket", "drop") or record["device_type"] not in ETHERNET_TYPES:
            length = max(
                length if hook in ("tx", "rx") else 0, ip_length + (14 if isinstance(headers[:1] and headers[0], Ethernet) else 0)
            )
        elif record["vlan_protocol"]:
            length += TAG_BYTES
        return Event(
            time_ns=record["time"],
            hook=hook,
            netns=record["netns"],
            ifindex=record["ifindex"],
            sequence=record["sequence"],
            role=ROLES[record["role"]] if record["role"] else role_of(headers),
            length=length,
            ip_length=ip_length,
            headers=headers,
            skb=record["skb"],
            cpu=record["cpu"],
            cost_ns=max(0, record["left"] - record["time"]),
            reason=reason,
            symbol=symbol,
        )

    def self_check(self) -> None:
        """See a packet that is known in every field, before any reading is believed.

        The packet crosses the loopback device of a network namespace that is made for it. Raises MissingError on any difference.
        """
        with ThreadPoolExecutor(1) as worker:
            expected = worker.submit(_known_packet, self._nonce, self._check_number, self._check_size).result()
        seen = [event for event in self._events() if event.sequence == self._check_number]
        hops = [event for event in seen if event.hook in ("tx", "rx")]
        for event in hops:
            problem = expected.differs(event)
            if problem:
                raise MissingError(f"the probes read this kernel wrongly ({problem}); nothing they see can be trusted here")
        if [event.hook for event in hops] != [name for name in ("tx", "rx") if name in self._hooks]:
            found = ", ".join(event.hook for event in hops) or "nothing"
            raise MissingError(
                f"the probes saw {found} of a packet that crossed a loopback device; they do not work on this kernel"
            )


@dataclass(frozen=True, slots=True)
class KnownPacket:
    """What is known of the self-check's packet."""

    netns: int
    sport: int
    dport: int
    size: int
    before_ns: int
    after_ns: int

    def differs(self, event: Event) -> str | None:
        ip = next((header for header in event.headers if isinstance(header, Ipv4)), None)
        udp = next((header for header in event.headers if isinstance(header, Udp)), None)
        facts: tuple[tuple[str, object, object], ...] = (
            ("namespace", event.netns, self.netns),
            ("ifindex", event.ifindex, 1),
            ("IP length", event.ip_length, self.size + 28),
            ("frame length", event.length, self.size + 42),
            ("source", ip and ip.src, "127.0.0.1"),
            ("ports", udp and (udp.sport, udp.dport), (self.sport, self.dport)),
            ("time", self.before_ns <= event.time_ns <= self.after_ns, True),
        )
        for name, found, wanted in facts:
            if found != wanted:
                return f"{name} at the {event.hook} hook: {found!r} instead of {wanted!r}"
        return None


def _known_packet(nonce: int, sequence: int, size: int) -> KnownPacket:
    """Send one datagram to itself in a namespace of this thread's own."""
    import fcntl

    try:
        setns.unshare()
    except OSError as error:
        raise MissingError(f"cannot make a network namespace for the self-check: {error.strerror} (run as root)") from error
    inode = Path("/proc/thread-self/ns/net").stat().st_ino
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        up = struct.pack("16sH14x", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(receiver.fileno(), 0x8914, up)  # SIOCSIFFLAGS
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(2)
        sender.bind(("127.0.0.1", 0))
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        sender.sendto(layout.pack(nonce, sequence, size), receiver.getsockname())
        try:
            receiver.recv(size)
        except TimeoutError as error:
            raise NetpathError("the self-check's packet did not cross a fresh loopback device within 2 s") from error
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        return KnownPacket(inode, sender.getsockname()[1], receiver.getsockname()[1], size, before, after)


def role_of(headers: Headers) -> str:
    """What a packet with the mark is by its headers: an echo's answer, an ICMP error that quotes a probe, or a probe."""
    for header in headers:
        if isinstance(header, Icmp):
            if header.type in QUOTING[header.proto]:
                return "error"
            return "answer" if header.type == (129 if header.proto == "icmpv6" else 0) else "probe"
    return "probe"


def _with_tag(headers: Headers, protocol: int, tag: int) -> Headers:
    """Put a VLAN tag that the kernel carries beside the packet (`protocol` is not 0) where it would be on the wire."""
    if not protocol:
        return headers
    at = 1 if headers and isinstance(headers[0], Ethernet) else 0
    return (*headers[:at], Vlan(tag & 0xFFF, protocol), *headers[at:])


def _link_in(path: str, loaded: Sequence[tuple[int, int, int]]) -> list[int]:
    """Attach (program, hook, priority) to the netfilter hooks of one namespace; its thread stays in that namespace and must end.

    A namespace that is gone by now has no deliveries to watch.
    """
    links: list[int] = []
    try:
        setns.enter_path(path)
    except OSError:
        return links
    for program, number, priority in loaded:
        outwards = 1 if priority > 0 else -1
        for family in NFPROTO:
            for step in range(RUNS_AT_ONCE):
                try:
                    links.append(sys.link_netfilter(program, family, number, priority + outwards * step))
                except OSError as error:
                    if error.errno == errno.EBUSY:
                        continue  # another run's hook is there: two programs can't share a priority
                break  # attached, or no IPv6 in this kernel or namespace
    return links


def _load_failure(error: sys.LoadError) -> str:
    last = next((line for line in reversed(error.log.splitlines()) if line.strip() and not line.startswith("processed")), "")
    detail = f": {last}" if last else ""
    kept = cache.keep_text(f"verifier-{error.program or 'program'}.log", error.log) if error.log else None
    more = f"; the verifier's whole log is in {kept}" if kept is not None else ""
    return f"the kernel refused to load an eBPF program ({error.strerror}{detail}); CAP_BPF and CAP_PERFMON are needed (run as root){more}"


def _possible_cpus() -> int:
    """How many values a per-CPU map holds for one key."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().replace(",", "-").rpartition("-")[2]
    return int(last) + 1


class Symbols:
    """Kernel function names by address, from /proc/kallsyms. Empty when the kernel hides its addresses."""

    def __init__(self) -> None:
        found: list[tuple[int, str]] = []
        try:
            for line in Path("/proc/kallsyms").read_text().splitlines():
                address, kind, name = line.split()[:3]
                if kind in "tTwW" and int(address, 16):
                    found.append((int(address, 16), name))
        except (OSError, ValueError):
            found = []
        found.sort()
        self._addresses = [address for address, _ in found]
        self._names = [name for _, name in found]

    def name(self, address: int) -> str | None:
        """The function that an instruction's address lies in."""
        import bisect

        position = bisect.bisect_right(self._addresses, address) - 1
        return self._names[position] if position >= 0 else None
