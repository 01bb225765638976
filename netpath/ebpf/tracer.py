"""Arms the probes for one run and hands out what they see. Everything is owned by file descriptors of this process."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
import struct
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from netpath.ebpf import btf as btf_module
from netpath.ebpf import cache, providers, selfcheck, sys
from netpath.ebpf.headers import QUOTING, parse
from netpath.ebpf.kit import Kit
from netpath.ebpf.providers.base import QUEUE, QUEUE_LOSS, STAGE_LOSS, TRACEPOINTS, Devices, Hook, Inside
from netpath.ebpf.providers.netfilter_links import HOOKS as NETFILTER_HOOKS
from netpath.errors import MissingError
from netpath.model import nonce as layout
from netpath.model.event import QUEUED, Boundary, Event, Stamp
from netpath.model.packet import Ethernet, Headers, Icmp, Ipv4, Ipv6, Vlan

RING_BYTES = 1 << 20
TCP_SYN_BYTES = 32
"""A probe's SYN with its options (netpath/probe/build.py): what its packet ends with."""
_QUEUED = 255
"""NP_QUEUED in probes/event.h."""
TUNNEL_KINDS = {"vxlan": 1, "ip": 2, "sleeve": 3}
ETHERNET_TYPES = (1, 772)
LOADERS = min(4, os.cpu_count() or 1)
TAG_BYTES = 4
TAIL_SIZES = (18, 400)
"""Payload bytes with which a packet's end can be relied on: Ethernet pads IPv4 datagrams below the first, and Linux quotes 576 bytes of
a packet in an ICMP error (net/ipv4/icmp.c), which with tunnels around it leaves the second."""
CHECK_BYTES = 40
"""Payload of the self-check's packet when the run's own have no common size."""
SILENT = 3
"""np_settings.silent of `Tracer.spare`: two bits of a time in ns, as good as drawn by lot."""
LATELY = 9
"""Records of a program and place that others are taken to be like."""
HOOK_NAMES = {1: "tx", 2: "rx", 3: "drop", 4: "socket", 5: "local_in", 6: "local_out", 7: "tun_read"}
ROLES = {1: "probe", 2: "answer", 3: "error"}
NO_ARRIVALS = (
    "delivery: no hook of this kernel tells that such a packet arrives (sk_data_ready, netfilter links, fentry, kprobes); "
    "arrivals are inferred from the last hop"
)


class Tracer:
    """The probes of one run, as a context manager: `load` ahead of time, then `arm` before the first packet is sent.

    `ring_bytes` is the event buffer's size: a power of two, a multiple of the page. `hooks` are the providers that may be used, by
    name (`netpath.ebpf.providers`); of a family of which none is named any may. Raises UsageError for a name that there is not.
    """

    def __init__(self, *, ring_bytes: int = RING_BYTES, hooks: Sequence[str] = ()) -> None:
        self._ring_bytes = ring_bytes
        self._choice = providers.chosen(hooks)
        self._forced = frozenset(hooks)
        self._stack = ExitStack()
        self._kit: Kit | None = None
        self._devices: Devices | None = None
        self._inside: Inside | None = None
        self._loaded: dict[str, int] = {}
        self._symbols: Symbols | None = None
        self._hooks: list[str] = []
        self._missing: list[str] = []
        self._missing_stages: list[str] = []
        self._tunnel_ports: dict[int, str] = {}
        self._nonce = 0
        self._check_number, self._check_size = 0, CHECK_BYTES
        self._stages: Mapping[str, Sequence[Boundary]] = {}
        self._marking: Collection[str] | None = None
        """The files of the namespaces whose marks are attached; None: of all of `_stages`."""
        self._listened: tuple[str, ...] = ()
        self._sockets_too = False
        self._links: dict[str, list[int]] = {}
        self._said: dict[tuple[int, ...], deque[int]] = defaultdict(lambda: deque(maxlen=LATELY))
        """What the last records of a program and place said they cost, in ns, and their median, of a program as well."""
        self._typical: dict[tuple[int, ...], int] = {}
        self._stamps: list[Stamp] = []
        self._values: dict[str, int] = {}
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
        before are still in the buffer. Kinds that are not armed stay away. Not for the kinds that `run` needs to end: nobody would
        see a delivery.
        """
        armed = [kind for kind in kinds if any(self._links.get(part) for part in self._parts(kind))]
        self._detach(*armed)
        try:
            yield
        finally:
            for kind in armed:
                if kind == "stamp":
                    self._link_stages()
                elif kind == "local":
                    self._link_local()
                else:
                    self._link_tracepoint(next(hook for hook in TRACEPOINTS if hook.name == kind))

    def _detach(self, *kinds: str) -> None:
        for kind in kinds:
            for part in self._parts(kind):
                for link in self._links.pop(part):
                    os.close(link)

    def _parts(self, kind: str) -> list[str]:
        """The keys of `_links` that a kind has: of marks that are attached in single namespaces one for each."""
        return [part for part in self._links if part == kind or part.startswith(f"{kind} ")]

    @property
    def marks_by_namespace(self) -> bool:
        """`mark` can choose."""
        return self._inside is not None and self._inside.by_namespace

    def mark(self, paths: Collection[str] | None = None) -> None:
        """From here on only the marks of stages in these namespaces are attached, by the files that `arm` was given; None: all.

        Where they are not attached namespace by namespace (`marks_by_namespace`) all stay.
        """
        if not self.marks_by_namespace:
            return
        self._marking = paths
        for path in self._stages:
            if paths is not None and path not in paths:
                self._detach(f"stamp {path}")
        self._link_stages()

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks that are armed."""
        return tuple(self._hooks)

    @property
    def providers(self) -> tuple[str, ...]:
        """The names of the providers in use: of what is seen at devices, and of what is seen inside the kernel, if there is one."""
        return tuple(each.name for each in (self._devices, self._inside) if each is not None)

    @property
    def programs(self) -> dict[str, int]:
        """Descriptors of the loaded programs by hook, those that the marks of stages have left out."""
        inside = self._inside.programs() if self._inside is not None else {}
        return {**self._loaded, **inside}

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
        if self._kit is None:
            return 0
        cpus = sys.possible_cpus()
        raw = sys.lookup(self._kit.maps["counters"], struct.pack("<I", which), 8 * cpus)
        return sum(struct.unpack(f"<{cpus}Q", raw))

    def load(self) -> None:
        """Make the maps and load the programs; nothing is attached yet.

        Raises MissingError when the kernel does not let us, has no BTF or not the provider that was asked for, or when the programs
        must be compiled and bcc is not there. Most of the time goes to the kernel's verifier, which needs no Python: call it from
        another thread.
        """
        started = time.perf_counter()
        types = btf_module.read()
        self._reasons = types.enum("skb_drop_reason")
        self.timings_ms["btf"] = (time.perf_counter() - started) * 1000
        self._kit = Kit(types, self._stack, self._ring_bytes)
        started = time.perf_counter()
        devices, inside = self._choice
        # The verifier is most of the work, and each program's is its own: the system call runs without Python's lock.
        with ThreadPoolExecutor(1) as beside:
            loading = beside.submit(self._load_inside, [each(self._kit) for each in inside])
            self._load_devices([each(self._kit) for each in devices])
        self._inside = loading.result()
        self.timings_ms["compile"] = self._kit.compile_ms
        self.timings_ms["load"] = (time.perf_counter() - started) * 1000 - self._kit.compile_ms

    def _load_devices(self, candidates: Sequence[Devices]) -> None:
        failure: sys.LoadError | None = None
        for candidate in candidates:
            try:
                self._loaded = self._load_tracepoints(candidate)
            except sys.LoadError as error:
                failure = failure or error
                continue
            self._devices = candidate
            return
        assert failure is not None
        raise MissingError(_load_failure(failure)) from failure

    @staticmethod
    def _load_tracepoints(provider: Devices) -> dict[str, int]:
        """Descriptors of the tracepoints' programs by hook. Raises LoadError when one is refused that a trace needs."""
        with ThreadPoolExecutor(LOADERS) as workers:
            loading = [(hook, workers.submit(provider.load, hook)) for hook in (*TRACEPOINTS, QUEUE)]
        loaded: dict[str, int] = {}
        for hook, result in loading:
            try:
                loaded[hook.name] = result.result()
            except sys.LoadError:
                if hook.needed:
                    raise
        return loaded

    def _load_inside(self, candidates: Sequence[Inside]) -> Inside | None:
        """The first that this kernel has; None for none. Raises MissingError when it was asked for."""
        for candidate in candidates:
            try:
                candidate.load()
            except sys.LoadError as error:
                if candidate.name in self._forced and candidate is candidates[-1]:
                    what = f"--hooks {candidate.name}: {candidate.title} does not work on this kernel"
                    raise MissingError(f"{what} ({error.strerror}); it needs {candidate.requirement}") from error
                continue
            return candidate
        return None

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
        sockets: bool = True,
        relays: bool = True,
    ) -> None:
        """Attach. From here on every packet that carries `nonce` and a sequence number up to `count` is reported.

        `tcp_base` is the base of the SYNs' numbers (None: no TCP). `tunnel_ports` are UDP ports behind which another packet hides
        (``vxlan``: RFC 7348, ``ip``: a bare IP packet, ``sleeve``: Weave's frames). `listen_in` are the files of the namespaces whose deliveries are watched by
        a netfilter hook; one that is gone by now is passed over. `stages` are the marks to be put among what is registered at
        netfilter hooks, by the file of their namespace (see `take_stamps`). Raises MissingError.

        `sockets`: what arrives is for a socket, as datagrams are and SYNs and echoes are not. `relays`: some process may read packets
        from a TUN device; without one the hook for it, which every datagram that anybody reads would pay for, is left away.

        `payload` is the size of every probe's payload, if they are all of one: other packets are then told by their end alone, at
        half the cost to them. It is not used where padding or a shortened quotation in an ICMP error could hide the end.
        """
        assert self._kit is not None
        usable = payload is not None and tcp_base is None and TAIL_SIZES[0] <= payload <= TAIL_SIZES[1]
        self._check_size = payload if usable and payload is not None else CHECK_BYTES
        self._nonce, self._tunnel_ports = nonce, dict(tunnel_ports)
        self._check_number = count + 1
        for port, tunnel in tunnel_ports.items():
            sys.update(self._kit.maps["tunnels"], struct.pack("<H", port), bytes([TUNNEL_KINDS[tunnel]]))
        self._values = {
            "nonce": nonce,
            "tcp_base": tcp_base or 0,
            "tcp_span": layout.TCP_STRIDE * (count + 1) if tcp_base is not None else 0,
            "tcp_stride": layout.TCP_STRIDE,
            "last": self._check_number,
            "tail": self._check_size if usable else 0,
            "stage_tail": 0 if not stages else TCP_SYN_BYTES if tcp_base is not None else payload or 0,
        }
        self._kit.configure(self._values)
        self._attach_tracepoints(() if relays else ("tun_read",))
        self._listened = tuple(listen_in)
        self._sockets_too = "socket" not in self._hooks
        self._hooks += [hook for hook in self._link_local() if hook not in self._hooks]
        self._stages = {path: boundaries for path, boundaries in (stages or {}).items() if boundaries}
        if self._stages:
            if QUEUE.name not in self._loaded:
                self._missing_stages.append(f"stages: tracepoint {QUEUE.tracepoint}: not in this kernel; {QUEUE_LOSS}")
            self._missing_stages += self._link_stages()
        if "local_in" not in self._hooks and not (sockets and "socket" in self._hooks):
            self._missing.append(NO_ARRIVALS)

    def expect_payload(self, size: int) -> None:
        """From here on all probes have a payload of `size` bytes: for a run of several sizes, armed for none. Not of TCP."""
        tail = size if TAIL_SIZES[0] <= size <= TAIL_SIZES[1] else 0
        assert self._kit is not None
        self._values |= {"tail": tail, "stage_tail": size}
        self._kit.configure(self._values)

    def _attach_tracepoints(self, left: Sequence[str]) -> None:
        for hook in TRACEPOINTS:
            if hook.name in left:
                continue
            try:
                if hook.name not in self._loaded:
                    raise FileNotFoundError(errno.ENOENT, "not in this kernel")
                self._link_tracepoint(hook)
            except OSError as error:
                if hook.needed:
                    self._missing.append(f"{hook.name}: tracepoint {hook.tracepoint}: {error.strerror}; {hook.needed}")
                continue
            self._hooks.append(hook.name)

    def _link_tracepoint(self, hook: Hook) -> None:
        assert self._devices is not None
        self._links.setdefault(hook.name, []).append(self._devices.attach(hook, self._loaded[hook.name]))

    def _link_local(self) -> frozenset[str]:
        """Watch deliveries and sends; which of socket, local_in and local_out are seen so."""
        if self._inside is None or not self._listened:
            return frozenset()
        links, seen = self._inside.attach_local(self._listened, socket=self._sockets_too)
        self._links.setdefault("local", []).extend(links)
        return seen

    def _link_stages(self) -> list[str]:
        """Put the marks in place that are not. What the kernel can't do is not missing from the path, only from its stages."""
        if QUEUE.name in self._loaded and not self._links.get("stamp"):
            assert self._devices is not None
            self._links["stamp"] = [self._devices.attach(QUEUE, self._loaded[QUEUE.name])]
        if self._inside is None:
            return [f"stages: none of {', '.join(each.title for each in self._choice[1])} on this kernel; {STAGE_LOSS}"]
        chosen = {path: boundaries for path, boundaries in self._stages.items() if self._marking is None or path in self._marking}
        missing = {path: boundaries for path, boundaries in chosen.items() if not self._links.get(f"stamp {path}")}
        links, failed = self._inside.attach_stages(missing)
        self._links |= {f"stamp {path}": made for path, made in links.items()}
        return failed

    def take_stamps(self) -> list[Stamp]:
        """The marks of stages that `drain` came across, since the last call."""
        taken, self._stamps = self._stamps, []
        return self._inside.marks(taken) if self._inside is not None else taken

    def spare(self) -> None:
        """From here on one record in four says what it cost, and the others are taken to have cost what those said lately that the
        same program made at the same place: the second look at the clock is a fifth of what a record costs a packet.

        Before this every place should have been seen. `arm` ends it.
        """
        assert self._kit is not None
        self._values["silent"] = SILENT
        self._kit.configure(self._values)

    def drain(self, *, brief: bool = False) -> list[Event]:
        """All events since the last call, in the order the buffer has them. The self-check's own are left out.

        `brief`: of what devices saw without headers and lengths, which take most of the time to read.
        """
        return [event for event in self._events(brief=brief) if event.sequence != self._check_number]

    def take(self) -> list[bytes]:
        """The records since the last call as they are in the buffer, for `decoded` to read when there is time."""
        return list(self._kit.ring.records()) if self._kit is not None else []

    def decoded(self, records: Sequence[bytes]) -> tuple[list[Event], list[Stamp]]:
        """What `take` took; the self-check's own are left out."""
        assert self._kit is not None
        stamp = self._kit.stamp.struct.size
        events = [self._decode(raw) for raw in records if len(raw) != stamp]
        stamps = [self._decode_stamp(raw) for raw in records if len(raw) == stamp]
        stamps = self._inside.marks(stamps) if self._inside is not None else stamps
        return [event for event in events if event.sequence != self._check_number], stamps

    def discard(self) -> int:
        """Empty the buffer without decoding it; how many events there were."""
        return sum(1 for _ in self._kit.ring.records()) if self._kit is not None else 0

    def _events(self, *, brief: bool = False) -> Iterator[Event]:
        if self._kit is None:
            return
        for raw in self._kit.ring.records():
            if len(raw) == self._kit.stamp.struct.size:
                self._stamps.append(self._decode_stamp(raw))
            else:
                yield self._decode(raw, brief=brief)

    def _decode_stamp(self, raw: bytes) -> Stamp:
        assert self._kit is not None
        record = self._kit.stamp.unpack(raw)
        return Stamp(
            time_ns=record["time"],
            netns=record["netns"],
            family=6 if record["family"] == socket.AF_INET6 else 4,
            hook=QUEUED if record["hook"] == _QUEUED else NETFILTER_HOOKS[record["hook"]],
            priority=record["priority"],
            sequence=record["sequence"],
            skb=record["skb"],
            cost_ns=self._cost(record, (record["hook"], record["netns"], record["priority"])),
        )

    def _cost(self, record: Mapping[str, Any], place: tuple[int, ...]) -> int:
        """ns that a record says it cost, or what the like of it said lately; 0: nothing is known.

        The median of an odd number of them: a single interruption is nobody else's.
        """
        if not record["left"]:
            return self._typical.get(place) or self._typical.get(place[:1], 0)
        cost = int(max(0, record["left"] - record["time"]))
        said = self._said[place]
        said.append(cost)
        self._typical[place] = self._typical[place[:1]] = sorted(said)[len(said) // 2]
        return cost

    def _decode(self, raw: bytes, *, brief: bool = False) -> Event:
        assert self._kit is not None
        record = self._kit.event.unpack(raw.ljust(self._kit.event.struct.size, b"\0"))
        hook = HOOK_NAMES[record["hook"]]
        cost = self._cost(record, (-record["hook"], record["netns"], record["ifindex"]))
        if brief and hook in ("tx", "rx"):
            return _event(record, hook, cost)
        captured = record["data"][: record["captured"]]
        headers, ip_length = parse(captured, record["l3"], record["protocol"], self._tunnel_ports)
        if record["l3"] == 0 and captured and not headers:
            # The drop and socket hooks know where IP starts, but not which protocol the packet was said to be.
            guessed = 0x86DD if captured[0] >> 4 == 6 else 0x0800
            headers, ip_length = parse(captured, 0, guessed, self._tunnel_ports)
        headers = _with_tag(headers, record["vlan_protocol"], record["vlan_tci"])
        reason = symbol = None
        if hook == "drop":
            # Before 5.17 there are no reasons, only the function that freed it.
            known = self._reasons.get(record["reason"], str(record["reason"])) if self._reasons else "NOT_SPECIFIED"
            reason = known.removeprefix("SKB_DROP_REASON_")
            if reason == "NOT_SPECIFIED":
                self._symbols = self._symbols or Symbols()
                symbol = self._symbols.name(record["location"])
        if hook == "local_out":
            ip_length = record["length"]
            headers = _with_length(headers, ip_length)
        length = record["length"] + record["ahead"]
        if hook in ("local_in", "local_out", "socket", "drop") or record["device_type"] not in ETHERNET_TYPES:
            length = max(
                length if hook in ("tx", "rx") else 0, ip_length + (14 if isinstance(headers[:1] and headers[0], Ethernet) else 0)
            )
        elif record["vlan_protocol"]:
            length += TAG_BYTES
        return _event(record, hook, cost, headers, length, ip_length, reason, symbol)

    def self_check(self) -> None:
        """See a packet that is known in every field, before any reading is believed.

        The packet crosses a pair of devices in a network namespace that is made for it. Raises MissingError on any difference.
        """
        with ThreadPoolExecutor(1) as worker:
            expected = worker.submit(selfcheck.send, self._nonce, self._check_number, self._check_size).result()
        seen = [event for event in self._events() if event.sequence == self._check_number]
        hops = [event for event in seen if event.hook in ("tx", "rx")]
        for event in hops:
            problem = expected.differs(event)
            if problem:
                raise MissingError(f"the probes read this kernel wrongly ({problem}); nothing they see can be trusted here")
        if [event.hook for event in hops] != [name for name in ("tx", "rx") if name in self._hooks]:
            found = ", ".join(event.hook for event in hops) or "nothing"
            raise MissingError(f"the probes saw {found} of a packet that crossed two devices; they do not work on this kernel")


def _event(
    record: Mapping[str, Any],
    hook: str,
    cost: int,
    headers: Headers = (),
    length: int = 0,
    ip_length: int = 0,
    reason: str | None = None,
    symbol: str | None = None,
) -> Event:
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
        cost_ns=cost,
        reason=reason,
        symbol=symbol,
    )


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


def _with_length(headers: Headers, length: int) -> Headers:
    """With an IP header that has its length: a function before LOCAL_OUT sees it before it is filled in (__ip_local_out)."""
    return tuple(
        dataclasses.replace(header, length=length) if number == 0 and isinstance(header, Ipv4 | Ipv6) else header
        for number, header in enumerate(headers)
    )


def _load_failure(error: sys.LoadError) -> str:
    last = next((line for line in reversed(error.log.splitlines()) if line.strip() and not line.startswith("processed")), "")
    detail = f": {last}" if last else ""
    kept = cache.keep_text(f"verifier-{error.program or 'program'}.log", error.log) if error.log else None
    more = f"; the verifier's whole log is in {kept}" if kept is not None else ""
    return f"the kernel refused to load an eBPF program ({error.strerror}{detail}); CAP_BPF and CAP_PERFMON are needed (run as root){more}"


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
