"""What being armed costs a round trip over VXLAN: with hooks at devices alone, with the marks of stages as well, and with these in turns,
as a measurement has them. bpftrace counting at the same two tracepoints of devices, where it is installed, stands beside it.

Right before and right after each block comes one with nothing attached, milliseconds away, and the block is compared with the mean of
these two: the machine's moods fall on all three. The control is a block with nothing attached in the middle. `armed` compares the
providers.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import signal
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netpath import lab
from netpath.measure import plan
from netpath.trace import session
from netpath.trace.stats import quantile
from tests.bench.harness import SEED, machine, median_interval
from tests.bench.onpath import EVERYTHING, Armed, Course, armed, build

ROUNDS = 60
COUNT = 300
COUNTING = """
tracepoint:net:net_dev_start_xmit { @sent = count(); }
tracepoint:net:netif_receive_skb { @received = count(); }
interval:s:1 { printf("ready\\n"); }
"""


@dataclass(frozen=True)
class Case:
    """What is attached during a block, and whether its packets are the run's."""

    marked: bool
    left: tuple[str, ...] = ()
    turns: bool = False
    counted: bool = False


LEFT: dict[str, tuple[str, ...]] = {"devices": ("stamp", "local"), "devices and local hooks": ("stamp",), "all stages": ()}
CONTROL = "not running, again"
TURNS = "all stages, in turns"
CASES = {
    CONTROL: Case(True, EVERYTHING),
    **{
        f"{packets} packets, {hooks}": Case(packets == "traced", left)
        for packets in ("traced", "other")
        for hooks, left in LEFT.items()
    },
    f"traced packets, {TURNS}": Case(True, turns=True),
    f"other packets, {TURNS}": Case(False, turns=True),
}
BPFTRACE = "bpftrace counting at devices"


@dataclass(frozen=True)
class Trips:
    """ns of a block's round trips."""

    median: float
    p99: float


def trips(on: Armed, case: Case, group: frozenset[str] | None = None) -> Trips:
    if case.turns:
        on.tracer.mark(group)
    with counting() if case.counted else contextlib.nullcontext(), on.tracer.without(*case.left):
        taken = on.course.ping_pong(COUNT, marked=case.marked).round_trips
    if case.turns:
        on.tracer.mark()
    on.tracer.discard()
    return Trips(statistics.median(taken), quantile(sorted(taken), 0.99))


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """bpftrace at its work, and proof that it saw packets."""
    process = subprocess.Popen(["bpftrace", "-e", COUNTING], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said: list[str] = []
    while "ready\n" not in said:
        said.append(process.stdout.readline())
        assert said[-1], f"bpftrace ended: {' '.join(said)}"
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    assert len(re.findall(r"^@(?:sent|received): [1-9]", rest, re.M)) == 2, rest


def unable() -> str | None:
    """Why bpftrace can't count here; None: it can."""
    if not shutil.which("bpftrace"):
        return "it is not installed"
    done = subprocess.run(["bpftrace", "-e", COUNTING + "interval:s:1 { exit(); }"], capture_output=True, text=True, check=False)
    return " ".join(done.stderr.split()) or f"exit code {done.returncode}" if done.returncode else None


def main() -> int:
    order = random.Random(SEED)
    plain: list[float] = []
    cases = dict(CASES)
    refused = unable()
    if refused:
        print(f"no comparison with bpftrace: {refused}")
    else:
        cases[BPFTRACE] = Case(True, EVERYTHING, counted=True)
    median: dict[str, list[float]] = {name: [] for name in cases}
    p99: dict[str, list[float]] = {name: [] for name in cases}
    events: dict[str, float] = {}
    with lab.running("flannel-vxlan") as made:
        server = made.pod("pod2a")
        with Course(build(), made.pod("pod1a"), server, server.address) as course, armed(course) as on:
            for name, left in LEFT.items():
                events[name] = len(on.block(COUNT, left=left).records) / COUNT
            groups = [frozenset(session.entries(on.index, group)) for group in plan.turns(on.registered.marks(), ROUNDS)]
            met = []
            for group in groups:
                on.tracer.mark(group)
                met.append(len(on.block(COUNT).records) / COUNT)
            on.tracer.mark()
            events[TURNS] = statistics.fmean(met)
            before = trips(on, cases[CONTROL])
            for turn in range(ROUNDS):
                for name in order.sample(list(cases), len(cases)):
                    mine = trips(on, cases[name], groups[turn % len(groups)])
                    after = trips(on, cases[CONTROL])
                    plain.append(after.median)
                    median[name].append(mine.median / statistics.fmean((before.median, after.median)))
                    p99[name].append(mine.p99 / statistics.fmean((before.p99, after.p99)))
                    before = after
            hooks = on.tracer.hooks
    print(
        f"hooks: {', '.join(hooks)}; records of a round trip: " + ", ".join(f"{name} {count:.0f}" for name, count in events.items())
    )
    results: list[dict[str, Any]] = []
    alone = statistics.median(plain)
    for name in cases:
        low, high = median_interval(median[name])
        ratio, far = statistics.median(median[name]), statistics.median(p99[name])
        results.append({"name": name, "ratio": ratio, "ci95": (low, high), "p99_ratio": far})
        each = ""
        if cases[name].turns:
            # The groups are not alike: what all their probes pay together is the mean.
            parts = [statistics.median(median[name][number :: len(groups)]) for number in range(len(groups))]
            ratio = results[-1]["ratio"] = statistics.fmean(parts)
            results[-1]["groups"] = parts
            each = f"; groups {', '.join(f'{part:.3f}' for part in parts)}"
        if name.startswith("traced"):
            each += f"; {(ratio - 1) * alone / events[name.partition(', ')[2]]:.0f} ns a record"
        print(f"round trip, {name}: {ratio:.3f} [{low:.3f}, {high:.3f}], p99 {far:.3f} of not running{each}")
    bound = quantile(sorted(p99[CONTROL]), 0.95)
    print(f"not running: {alone:,.0f} ns; the control's p99 ratio stays under {bound:.3f} in 95 of 100 rounds; {ROUNDS} rounds")
    target = Path(__file__).with_name("results-observer.json")
    whole = {"machine": machine(), "not_running_ns": alone, "rounds": ROUNDS, "trips": COUNT, "hooks": hooks, "records": events}
    target.write_text(json.dumps({**whole, "control_p99_ratio_p95": bound, "results": results}, indent=2) + "\n")
    return 0
