"""The independent ping-pong over a lab's path with the product's own probes armed: blocks of traced round trips."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as File

from netpath import discover, lab
from netpath.ebpf.tracer import Tracer
from netpath.model import nonce as layout
from netpath.model.event import Event, Stamp
from netpath.model.index import SnapshotIndex
from netpath.model.packet import Flow
from netpath.model.path import Path, Prediction
from netpath.predict import predict
from netpath.trace import calibrate, session, stages
from netpath.trace.account import SEEN_ALONE, Unseen
from netpath.trace.assemble import Scene, forward_paths
from netpath.trace.correlate import correlate

PORT = 9753
CPU = 1
PAYLOAD = 64
RING = 1 << 24
WARM_UP = 20
LAST = 10_000_000
EVERYTHING = ("tx", "rx", "drop", "socket", "tun_read", "local", "stamp")


def build() -> File:
    target = File(tempfile.mkdtemp()) / "pingpong"
    source = File(__file__).with_name("pingpong.c")
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(target), str(source)], check=True)
    return target


class Course:
    """A lab's path between two of its namespaces, and the program that sends over it: a context manager."""

    def __init__(self, program: File, client: lab.LabNode, server: lab.LabNode, address: str) -> None:
        self.client, self.server, self.address = client, server, address
        self.nonce = layout.new_nonce()
        self._next = 1
        words = [str(program), client.path, server.path, address, str(PORT), "0", str(CPU)]
        payload = layout.pack(self.nonce, 0, PAYLOAD).hex()
        self._process = subprocess.Popen([*words, payload, "blocks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Course:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()

    def ping_pong(self, count: int, *, marked: bool, fresh: bool = False) -> Run:
        """A block of `count` round trips, with the armed nonce or without; `fresh`: each from a port of its own."""
        assert self._process.stdin is not None and self._process.stdout is not None
        first = self._next
        self._next += count
        self._process.stdin.write(f"{first if marked else -1} {count}{' new' if fresh else ''}\n")
        self._process.stdin.flush()
        rows: list[list[int]] = []
        while (line := self._process.stdout.readline()) not in ("\n", ""):
            rows.append([int(word) for word in line.split()])
        assert len(rows) == count, "the ping-pong ended early"
        return Run(
            [row[0] for row in rows],
            {n: row[1] for n, row in enumerate(rows, first)},
            {n: row[2] for n, row in enumerate(rows, first)},
        )


@dataclass
class Run:
    """What the yardstick says of a block: ns of each round trip, and by number the times of its send and receive calls."""

    round_trips: list[int]
    sent: dict[int, int]
    received: dict[int, int]

    def one_way(self) -> list[float]:
        """ns from each call of send to the return of the other end's receive call: both read one clock."""
        return [float(self.received[number] - taken) for number, taken in self.sent.items()]


@dataclass
class Armed:
    """A course with the product's probes on it, as `netpath measure` would arm them."""

    course: Course
    tracer: Tracer
    index: SnapshotIndex
    prediction: Prediction
    registered: stages.Registered

    def plain(self, count: int, *, fresh: bool = False) -> Run:
        """A block with nothing attached anywhere."""
        with self.tracer.without(*EVERYTHING):
            return self.course.ping_pong(count, marked=True, fresh=fresh)

    def block(self, count: int, *, left: Sequence[str] = (), fresh: bool = False) -> Block:
        """A traced block, with some kinds of event left away."""
        self.tracer.discard()
        with self.tracer.without(*left):
            run = self.course.ping_pong(count, marked=True, fresh=fresh)
        records = self.tracer.take()
        assert not self.tracer.lost, "the buffer was too small for a block"
        return Block(self, run, records)


@dataclass
class Block:
    """Traced round trips: the yardstick's own figures, and what the probes saw."""

    armed: Armed
    run: Run
    records: list[bytes]

    def seen(self) -> tuple[list[Event], list[Stamp]]:
        events, stamps = self.armed.tracer.decoded(self.records)
        return [event for event in events if event.sequence], [stamp for stamp in stamps if stamp.sequence]

    def path(self, unseen: Unseen | None) -> Path:
        """The way there as the product reports it, from the C program's own send call on."""
        armed = self.armed
        events, stamps = self.seen()
        journeys = correlate(events, armed.index, self.undisturbed(), stamps=stamps, sent_ns=self.run.sent)
        scene = Scene(armed.index, registered=armed.registered, unseen=unseen or SEEN_ALONE)
        return forward_paths(journeys, armed.prediction, scene)[0]

    def undisturbed(self) -> list[int]:
        """The numbers without the slowest tenth, in which other work had the core."""
        ordered = sorted(self.run.sent, key=lambda number: self.run.received[number] - self.run.sent[number])
        return sorted(ordered[: max(1, len(ordered) - len(ordered) // 10)])

    def samples(self) -> tuple[calibrate.Sample, ...]:
        return calibrate.samples(*self.seen())

    def wake_up(self, unseen: Unseen) -> float:
        """Mean ns from each socket's readiness to the return of the receive call, less what the last event cost."""
        ready: dict[int, Event] = {}
        for event in sorted(self.seen()[0], key=lambda event: event.time_ns):
            if event.hook == "socket":
                ready.setdefault(event.sequence, event)
        return statistics.fmean(
            self.run.received[number] - event.time_ns - event.cost_ns - unseen.ns["socket"] / 2
            for number in self.undisturbed()
            for event in [ready.get(number)]
            if event is not None
        )


@contextlib.contextmanager
def armed(course: Course, *, marks: bool = True) -> Iterator[Armed]:
    snapshot = discover.take()
    index = SnapshotIndex(snapshot)
    flow = Flow(course.client.inode, course.address, "udp", sport=40000, dport=PORT, payload=PAYLOAD)
    prediction = predict(snapshot, flow, index=index)
    registered = stages.plan(prediction, index) if marks else stages.Registered()
    with Tracer(ring_bytes=RING) as tracer:
        tracer.load()
        session.arm(
            tracer,
            course.nonce,
            [(prediction, flow)],
            snapshot,
            index,
            count=LAST,
            tcp_base=None,
            payload=PAYLOAD,
            registered=registered,
        )
        tracer.self_check()
        # As a measurement does: it warms up, and from there on has one record in four say what it cost.
        course.ping_pong(WARM_UP, marked=True)
        tracer.drain()
        tracer.spare()
        yield Armed(course, tracer, index, prediction, registered)
