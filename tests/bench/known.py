"""A cost put in on purpose is found where it was put.

500 rules that match nothing in FORWARD must show in `filter`, 2,000 in nat PREROUTING in `nat`, and that for the first packet of a
flow only; a queue that lets packets through at 2 Mbit/s in `qdisc`; a relay that is busy for 20 µs with each packet in `userspace`.
What they really cost is measured by the ping-pong with nothing attached, one way, from its send call to the other end's return. Each is switched on and off, so that every round has
blocks with and without it, in random order.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from netpath import lab
from netpath.lab import relays
from netpath.trace import calibrate
from netpath.trace.stats import quantile
from tests.bench.closure import stages, trimmed
from tests.bench.harness import SEED, machine, median_interval
from tests.bench.onpath import CPU, EVERYTHING, Armed, Block, Course, armed, build

ROUNDS = 50
COUNT, PLAIN, TURNS = 30, 30, 4
"""Round trips of a traced block, of one with nothing attached, and how many of those there are in a round with the cost and without."""
BUSY_NS = 20_000
LIMIT = 0.15
Switch = Callable[[bool], None]


@dataclass(frozen=True, slots=True)
class Cost:
    """Something that costs time in one stage."""

    name: str
    mode: str
    stage: str
    switch: Callable[[lab.Lab], AbstractContextManager[Switch]]
    fresh: bool = False
    """Every packet is the first of a flow."""
    moves: bool = True
    """False: there is nothing to be found."""
    around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    """What the lab is built in."""


def rules(table: str, hook: str, count: int) -> Callable[[lab.Lab], AbstractContextManager[Switch]]:
    """A chain of `count` rules that no probe matches, and the jump to it."""
    chain = "NP-BENCH"

    @contextlib.contextmanager
    def made(made: lab.Lab) -> Iterator[Switch]:
        enter = ["nsenter", f"--net={made.node('node1').path}"]
        lines = [f"*{table}", f":{chain} - [0:0]"]
        lines += [f"-A {chain} -s 203.0.{number // 250}.{number % 250} -j RETURN" for number in range(count)]
        subprocess.run([*enter, "iptables-restore", "-n", "-w"], input="\n".join([*lines, "COMMIT", ""]), text=True, check=True)

        def switch(on: bool) -> None:
            words = ["iptables", "-w", "-t", table, *(("-I", hook, "1") if on else ("-D", hook)), "-j", chain]
            subprocess.run([*enter, *words], check=True)

        yield switch

    return made


@contextlib.contextmanager
def queue(made: lab.Lab) -> Iterator[Switch]:
    """A token bucket that holds one packet of 106 bytes: each waits until 424 µs have passed since the one before it.

    Something idle keeps the core from sleeping meanwhile, which would make all that comes after the wait slower as well.
    """
    awake = f"import os\nos.sched_setaffinity(0, {{{CPU}}})\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
    tc = ["nsenter", f"--net={made.node('node1').path}", "tc", "qdisc"]

    def switch(on: bool) -> None:
        bucket = ["tbf", "rate", "2mbit", "burst", "110", "limit", "100000"]
        subprocess.run([*tc, *(["add"] if on else ["del"]), "dev", "eth0", "root", *(bucket if on else [])], check=True)

    process = subprocess.Popen([sys.executable, "-c", awake])
    try:
        yield switch
    finally:
        process.kill()
        process.wait()


class BusyRelay:
    """The lab's relays, which are busy when they are told to be, all on the core of the ping-pong."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp())
        self._flag = self._folder / "busy"
        self._flag.write_bytes(b"\0")

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        program, header = self._folder / "relay", Path(__file__).with_name("busy.h")
        flags = ["-O2", "-std=gnu11", "-include", str(header), f'-DBUSY_FILE="{self._flag}"', f"-DBUSY_NS={BUSY_NS}"]
        subprocess.run(["cc", *flags, "-o", str(program), str(Path(relays.__file__).with_name("relay.c"))], check=True)
        with mock.patch.object(relays, "program", lambda: program):
            yield

    @contextlib.contextmanager
    def switch(self, made: lab.Lab) -> Iterator[Switch]:
        wanted = str(self._folder / "relay").encode()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_bytes().startswith(wanted):
                    os.sched_setaffinity(int(path.parent.name), {CPU})
        with self._flag.open("r+b") as file, mmap.mmap(file.fileno(), 1) as page:

            def switch(on: bool) -> None:
                page[0] = on

            yield switch


def costs() -> tuple[Cost, ...]:
    relay = BusyRelay()
    return (
        Cost("500 rules in filter FORWARD", "flannel-hostgw", "filter", rules("filter", "FORWARD", 500)),
        Cost("2000 rules in nat PREROUTING, new flows", "flannel-hostgw", "nat", rules("nat", "PREROUTING", 2000), fresh=True),
        Cost(
            "2000 rules in nat PREROUTING, an established flow",
            "flannel-hostgw",
            "nat",
            rules("nat", "PREROUTING", 2000),
            moves=False,
        ),
        Cost("a tbf of 2 Mbit/s on the uplink", "flannel-hostgw", "qdisc", queue),
        Cost(f"a relay that is busy for {BUSY_NS} ns", "flannel-udp", "userspace", relay.switch, around=relay.around),
    )


def measure(cost: Cost) -> dict[str, Any]:
    order = random.Random(SEED)
    plain: dict[str, list[float]] = defaultdict(list)
    seen: dict[str, list[Block]] = defaultdict(list)
    rounds: list[dict[str, Block]] = []
    with cost.around(), lab.running(cost.mode) as made, cost.switch(made) as switch:
        client, server = made.pod("pod1a"), made.pod("pod2a")
        # A chain must be there before the marks are planned, so that its hook is known to be in use.
        switch(True)
        with Course(build(), client, server, server.address) as ready, armed(ready) as on:
            switch(False)
            on.block(COUNT)
            for _ in range(ROUNDS):
                names = ["with", "without", "again"]
                order.shuffle(names)
                for name in names:
                    if name == "with":
                        switch(True)
                    seen[name].append(on.block(COUNT, fresh=cost.fresh))
                    if name == "with":
                        switch(False)
                for name, value in really(on, switch, order, fresh=cost.fresh).items():
                    plain[name].append(value)
                rounds.append({name: on.block(COUNT, left=left) for name, left in calibrate.ARRANGEMENTS.items()})
            unseen = calibrate.estimate([{name: block.samples() for name, block in each.items()} for each in rounds])
            spent = {name: [stages(block, unseen) for block in blocks] for name, blocks in seen.items()}
    return found(cost, plain, spent)


def really(on: Armed, switch: Switch, order: random.Random, *, fresh: bool) -> dict[str, float]:
    """The ping-pong's way with the cost and without it, nothing attached: short blocks in turns, as the machine's pace changes."""
    taken: dict[str, list[float]] = defaultdict(list)
    with on.tracer.without(*EVERYTHING):
        for _ in range(TURNS):
            for name in order.sample(["with", "without"], 2):
                if name == "with":
                    switch(True)
                taken[name] += on.course.ping_pong(PLAIN, marked=True, fresh=fresh).one_way()
                if name == "with":
                    switch(False)
    return {name: trimmed(values) for name, values in taken.items()}


def found(cost: Cost, plain: dict[str, list[float]], spent: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """What moved, beside what really did, and which other stages moved by more than they do by themselves."""
    real = [a - b for a, b in zip(plain["with"], plain["without"], strict=True)]
    names = sorted({key for values in spent.values() for each in values for key in each})

    def moved(one: str, two: str) -> dict[str, list[float]]:
        return {key: [a.get(key, 0.0) - b.get(key, 0.0) for a, b in zip(spent[one], spent[two], strict=True)] for key in names}

    change, control = moved("with", "without"), moved("again", "without")
    spread = {key: (quantile(sorted(values), 0.025), quantile(sorted(values), 0.975)) for key, values in control.items()}
    others = {key: statistics.median(values) for key, values in change.items() if key != cost.stage}
    middle, expected = statistics.median(change[cost.stage]), statistics.median(real)
    return {
        "name": cost.name,
        "mode": cost.mode,
        "stage": cost.stage,
        "expected_ns": expected,
        "expected_ci95_ns": median_interval(real),
        "found_ns": middle,
        "found_ci95_ns": median_interval(change[cost.stage]),
        "found_over_expected": middle / expected if cost.moves and expected else None,
        "within_limit": abs(middle / expected - 1) <= LIMIT if cost.moves and expected else None,
        "others_ns": others,
        "others_ci95_ns": {key: median_interval(change[key]) for key in others},
        "aa_ns": {key: statistics.median(values) for key, values in control.items()},
        "aa_spread_ns": spread,
        "others_beyond_aa_spread": [key for key, value in others.items() if not spread[key][0] <= value <= spread[key][1]],
        "rounds": ROUNDS,
    }


def line(result: dict[str, Any]) -> str:
    low, high = result["found_ci95_ns"]
    least, most = result["expected_ci95_ns"]
    beyond = ", ".join(f"{key} {result['others_ns'][key]:+,.0f}" for key in result["others_beyond_aa_spread"])
    ratio = "" if result["found_over_expected"] is None else f" = {result['found_over_expected']:.2f} of it"
    return (
        f"known cost, {result['name']}: {result['stage']} {result['found_ns']:+,.0f} ns [{low:,.0f}, {high:,.0f}], really"
        f" {result['expected_ns']:+,.0f} ns [{least:,.0f}, {most:,.0f}]{ratio}; beyond their A/A spread: {beyond or 'no other stage'};"
        f" {result['rounds']} rounds"
    )


def main() -> int:
    """All of them, or with KNOWN=WORD in the environment those whose name holds it. Each result is kept as soon as it is there."""
    target = Path(__file__).with_name("results-known.json")
    wanted = os.environ.get("KNOWN", "")
    results: list[dict[str, Any]] = json.loads(target.read_text())["results"] if wanted and target.exists() else []
    for cost in costs():
        if wanted not in cost.name:
            continue
        result = measure(cost)
        results = [*(each for each in results if each["name"] != cost.name), result]
        sys.stdout.write(line(result) + "\n")
        sys.stdout.flush()
        target.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")
    return 0
