"""Do the stages add up? Their corrected sum, from the sender's send call to the return of the receive call, over what the same program
measures of that itself with nothing attached, both of its ends on one clock. Half of its round trip stands beside it: the same where
the way back is like the way there, as it is not behind a translated port.

Every round sends a block in each arrangement, in random order. Right before and right after the one with all hooks comes a plain
one: the stages are compared with the mean of these two, so that the machine's moods fall on both, and the control is the one over
the other, whichever came first.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netpath import lab
from netpath.trace import calibrate
from netpath.trace.account import Unseen
from tests.bench.harness import SEED, machine, median_interval
from tests.bench.onpath import PORT, Block, Course, Run, armed, build

ROUNDS = 300
COUNT = 30
MODES = ("flannel-vxlan", "flannel-hostgw", "calico-bgp", "docker")


@contextlib.contextmanager
def course(mode: str, made: lab.Lab, program: Path) -> Iterator[Course]:
    """Pod to pod across the nodes; for Docker from the other node to a port that node1 translates to a container's."""
    if mode != "docker":
        client, server = made.pod("pod1a"), made.pod("pod2a")
        with Course(program, client, server, server.address) as ready:
            yield ready
        return
    node, container = made.node("node1"), made.pod("c1")
    target = f"{container.address}:{PORT}"
    for rule in (
        f"-t nat -I PREROUTING -p udp --dport {PORT} -j DNAT --to-destination {target}",
        f"-I FORWARD -p udp -d {container.address} --dport {PORT} -j ACCEPT",
    ):
        subprocess.run(["nsenter", f"--net={node.path}", "iptables", "-w", *rule.split()], check=True)
    with Course(program, made.node("node2"), container, node.address) as ready:
        yield ready


def stages(block: Block, unseen: Unseen) -> dict[str, float]:
    """Mean ns of each stage, both ends in `socket`, as the product reports them."""
    spent: dict[str, float] = defaultdict(float)
    for stage in block.path(unseen).stages:
        assert stage.ns is not None
        spent[stage.stage] += stage.ns.mean
    spent["socket"] += block.wake_up(unseen)
    return dict(spent)


def measure(mode: str) -> dict[str, Any]:
    order = random.Random(SEED)
    with lab.running(mode) as made, course(mode, made, build()) as ready, armed(ready) as on:
        on.block(COUNT)
        around: list[tuple[Run, Run]] = []
        rounds: list[dict[str, Block]] = []
        for _ in range(ROUNDS):
            blocks: dict[str, Block] = {}
            for name in order.sample(list(calibrate.ARRANGEMENTS), len(calibrate.ARRANGEMENTS)):
                before = on.plain(COUNT) if name == "all" else None
                blocks[name] = on.block(COUNT, left=calibrate.ARRANGEMENTS[name])
                if before is not None:
                    around.append((before, on.plain(COUNT)))
            rounds.append(blocks)
        unseen = calibrate.estimate([{name: block.samples() for name, block in each.items()} for each in rounds])
        sums, spent = [], defaultdict(list)
        for each in rounds:
            found = stages(each["all"], unseen)
            sums.append(sum(found.values()))
            for stage, value in found.items():
                spent[stage].append(value)
    times = [(trimmed(one.one_way()), trimmed(other.one_way())) for one, other in around]
    plain = [statistics.fmean(pair) for pair in times]
    halves = [trimmed([taken / 2 for run in pair for taken in run.round_trips]) for pair in around]
    ratios = [mine / theirs for mine, theirs in zip(sums, plain, strict=True)]
    aa = [one / other for one, other in (order.sample(pair, 2) for pair in times)]
    return {
        "mode": mode,
        "closure": statistics.median(ratios),
        "ci95": median_interval(ratios),
        "aa": statistics.median(aa),
        "aa_ci95": median_interval(aa),
        "one_way_ns": statistics.median(plain),
        "half_round_trip_ns": statistics.median(halves),
        "sum_of_stages_ns": statistics.median(sums),
        "stages_ns": {stage: statistics.median(values) for stage, values in spent.items()},
        "unseen_ns": dict(unseen.ns),
        "rounds": ROUNDS,
    }


def trimmed(values: list[float]) -> float:
    """The mean without the slowest tenth, in which other work had the core."""
    return statistics.fmean(sorted(values)[: max(1, len(values) - len(values) // 10)])


def main() -> int:
    results = []
    for mode in MODES:
        result = measure(mode)
        results.append(result)
        low, high = result["ci95"]
        stages_ns: dict[str, float] = result["stages_ns"]
        parts = ", ".join(f"{stage} {value:,.0f}" for stage, value in sorted(stages_ns.items(), key=lambda item: -item[1]))
        print(
            f"closure, {mode}: {result['closure']:.3f} [{low:.3f}, {high:.3f}] ({result['sum_of_stages_ns']:,.0f} over"
            f" {result['one_way_ns']:,.0f} ns, half a round trip {result['half_round_trip_ns']:,.0f}; A/A {result['aa']:.3f}; {ROUNDS} rounds): {parts}",
            flush=True,
        )
    target = Path(__file__).with_name("results-closure.json")
    target.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")
    return 0
