"""Does netpath find the same ratio between two datapaths as an independent ping-pong does?

VXLAN over host-gw, and host-gw with DNAT and masquerading over host-gw without. Both paths of a pair are there at the same time. Every
round has blocks of the C program with nothing attached, twice (the control), and traced ones, on both in turns. netpath's
figure is the sum of its stages from the sender's call to the receiver's return, the ping-pong's its own time between these.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from netpath import lab
from netpath.trace import calibrate
from netpath.trace.stats import quantile
from tests.bench.closure import stages, trimmed
from tests.bench.harness import SEED, machine
from tests.bench.onpath import EVERYTHING, PORT, Armed, Block, Course, armed, build

ROUNDS = 100
COUNT, PLAIN, TURNS = 50, 20, 6
"""Round trips of a traced block, of one with nothing attached, and how many of those follow one another on each side."""
RESAMPLES = 1000
SERVICE = "10.99.0.9"
LOW, HIGH = 0.97, 1.03


@contextlib.contextmanager
def ready(mode: str, program: Path, *, translated: bool = False) -> Iterator[Armed]:
    """A lab's path from pod to pod, armed; `translated`: by an address that node1 translates, and from node1's own."""
    with lab.running(mode) as made:
        client, server, address = made.pod("pod1a"), made.pod("pod2a"), made.pod("pod2a").address
        if translated:
            for rule in (
                f"PREROUTING 1 -d {SERVICE} -p udp --dport {PORT} -j DNAT --to-destination {address}:{PORT}",
                f"POSTROUTING 1 -d {address} -p udp --dport {PORT} -j MASQUERADE",
            ):
                words = ["iptables", "-w", "-t", "nat", "-I", *rule.split()]
                subprocess.run(["nsenter", f"--net={made.node('node1').path}", *words], check=True)
            address = SERVICE
        with Course(program, client, server, address) as course, armed(course) as on:
            on.block(COUNT)
            yield on


def alternating(sides: dict[str, Armed], order: random.Random) -> dict[str, float]:
    """With nothing attached for either: short blocks on both in turns, so that whatever the machine does it does to both."""
    taken: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        for side in sides.values():
            stack.enter_context(side.tracer.without(*EVERYTHING))
        for _ in range(TURNS):
            for name in order.sample(list(sides), len(sides)):
                taken[name] += sides[name].course.ping_pong(PLAIN, marked=True).one_way()
    return {name: trimmed(values) for name, values in taken.items()}


def traced(sides: dict[str, Armed], order: random.Random) -> dict[str, dict[str, Block]]:
    """A block in each arrangement on both, while the other one's probes, which every packet of the machine meets, are away.

    The blocks with all hooks, from which netpath's figures are, come right after one another.
    """
    blocks: dict[str, dict[str, Block]] = {}
    for place, name in enumerate(order.sample(list(sides), len(sides))):
        with ExitStack() as stack:
            for other, side in sides.items():
                if other != name:
                    stack.enter_context(side.tracer.without(*EVERYTHING))
            fewer = [each for each in calibrate.ARRANGEMENTS if each != "all"]
            order.shuffle(fewer)
            chosen = ["all", *fewer] if place else [*fewer, "all"]
            blocks[name] = {each: sides[name].block(COUNT, left=calibrate.ARRANGEMENTS[each]) for each in chosen}
    return blocks


def measure(name: str, subject: tuple[str, bool], reference: tuple[str, bool], program: Path) -> dict[str, Any]:
    order = random.Random(SEED)
    plain: dict[str, list[float]] = defaultdict(list)
    control: dict[str, list[float]] = defaultdict(list)
    rounds: list[dict[str, dict[str, Block]]] = []
    with ExitStack() as stack:
        sides = {
            side: stack.enter_context(ready(mode, program, translated=translated))
            for side, (mode, translated) in (("subject", subject), ("reference", reference))
        }
        for _ in range(ROUNDS):
            for what in order.sample(["plain", "control", "traced"], 3):
                if what == "traced":
                    rounds.append(traced(sides, order))
                else:
                    for side, value in alternating(sides, order).items():
                        (plain if what == "plain" else control)[side].append(value)
        sums: dict[str, list[float]] = {}
        for side in sides:
            unseen = calibrate.estimate([{each: block.samples() for each, block in one[side].items()} for one in rounds])
            sums[side] = [sum(stages(one[side]["all"], unseen).values()) for one in rounds]
    series = {
        each: [one / other for one, other in zip(found["subject"], found["reference"], strict=True)]
        for each, found in (("netpath", sums), ("ping_pong", plain), ("again", control))
    }
    return {"name": name, **compared(series), "sum_of_stages_ns": medians(sums), "one_way_ns": medians(plain), "rounds": ROUNDS}


def medians(sides: dict[str, list[float]]) -> dict[str, float]:
    return {side: statistics.median(values) for side, values in sides.items()}


def compared(series: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of the rounds' ratios, and ratios of these; the intervals are the bootstrap's, of whole rounds."""

    def ratios(rounds: Sequence[int]) -> dict[str, float]:
        found = {name: statistics.median(values[at] for at in rounds) for name, values in series.items()}
        return {
            "netpath": found["netpath"],
            "ping_pong": found["ping_pong"],
            "netpath_over_ping_pong": found["netpath"] / found["ping_pong"],
            "aa": found["again"] / found["ping_pong"],
        }

    generator, everything = random.Random(SEED), range(ROUNDS)
    whole = ratios(everything)
    drawn = [ratios(generator.choices(everything, k=ROUNDS)) for _ in range(RESAMPLES)]
    spans = {name: sorted(each[name] for each in drawn) for name in whole}
    intervals = {f"{name}_ci95": (quantile(values, 0.025), quantile(values, 0.975)) for name, values in spans.items()}
    return {**whole, **intervals, "within_limit": LOW <= whole["netpath_over_ping_pong"] <= HIGH}


def main() -> int:
    program = build()
    results = []
    for name, subject, reference in (
        ("VXLAN over host-gw", ("flannel-vxlan", False), ("flannel-hostgw", False)),
        ("DNAT and masquerading over neither, host-gw", ("flannel-hostgw", True), ("flannel-hostgw", False)),
    ):
        result = measure(name, subject, reference, program)
        results.append(result)
        low, high = result["netpath_over_ping_pong_ci95"]
        sys.stdout.write(
            f"ratio, {name}: netpath {result['netpath']:.3f}, ping-pong {result['ping_pong']:.3f}: {result['netpath_over_ping_pong']:.3f}"
            f" [{low:.3f}, {high:.3f}]; A/A {result['aa']:.3f} [{result['aa_ci95'][0]:.3f}, {result['aa_ci95'][1]:.3f}]; {ROUNDS} rounds\n"
        )
        sys.stdout.flush()
    target = Path(__file__).with_name("results-ratio.json")
    target.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")
    return 0
