"""A cost put in on purpose is found where it was put.

500 rules that match nothing in FORWARD must show in `filter`, and 2,000 in nat PREROUTING in `nat`, for the first packet of a flow
only. What they really cost is measured by the ping-pong with nothing attached. Rules are switched by one jump, so that every round
has blocks with and without them, in random order.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

from netpath import lab
from netpath.trace import calibrate
from tests.bench.closure import stages, trimmed
from tests.bench.harness import SEED, machine, median_interval
from tests.bench.onpath import Block, Course, armed, build

ROUNDS = 25
COUNT = 30


def rules(node: lab.LabNode, table: str, chain: str, count: int) -> None:
    """A chain of `count` rules that no probe matches; nothing leads to it yet."""
    lines = [f"*{table}", f":{chain} - [0:0]"]
    lines += [f"-A {chain} -s 203.0.{number // 250}.{number % 250} -j RETURN" for number in range(count)]
    text = "\n".join([*lines, "COMMIT", ""])
    subprocess.run(["nsenter", f"--net={node.path}", "iptables-restore", "-n", "-w"], input=text, text=True, check=True)


def switch(node: lab.LabNode, table: str, hook: str, chain: str, *, on: bool) -> None:
    words = ["iptables", "-w", "-t", table, *(("-I", hook, "1") if on else ("-D", hook)), "-j", chain]
    subprocess.run(["nsenter", f"--net={node.path}", *words], check=True)


def measure(table: str, hook: str, count: int, stage: str, *, fresh: bool, share: float) -> dict[str, Any]:
    """`share`: of the difference of round trips, what is one way's (1: the answer does not pay)."""
    order = random.Random(SEED)
    plain: dict[str, list[float]] = defaultdict(list)
    seen: dict[str, list[Block]] = defaultdict(list)
    rounds: list[dict[str, Block]] = []
    with lab.running("flannel-hostgw") as made:
        client, server, node = made.pod("pod1a"), made.pod("pod2a"), made.node("node1")
        rules(node, table, "NP-BENCH", count)
        # A chain must be there before the marks are planned, so that its hook is known to be in use.
        switch(node, table, hook, "NP-BENCH", on=True)
        with Course(build(), client, server, server.address) as ready, armed(ready) as on:
            switch(node, table, hook, "NP-BENCH", on=False)
            on.block(COUNT)
            for _ in range(ROUNDS):
                names = ["with", "without", "again"]
                order.shuffle(names)
                for name in names:
                    if name == "with":
                        switch(node, table, hook, "NP-BENCH", on=True)
                    plain[name].append(trimmed([value * share for value in on.plain(COUNT, fresh=fresh).round_trips]))
                    seen[name].append(on.block(COUNT, fresh=fresh))
                    if name == "with":
                        switch(node, table, hook, "NP-BENCH", on=False)
                rounds.append({name: on.block(COUNT, left=left) for name, left in calibrate.ARRANGEMENTS.items()})
            unseen = calibrate.estimate([{name: block.samples() for name, block in each.items()} for each in rounds])
            spent = {name: [stages(block, unseen) for block in blocks] for name, blocks in seen.items()}
    real = [a - b for a, b in zip(plain["with"], plain["without"], strict=True)]
    names = sorted({key for values in spent.values() for each in values for key in each})

    def moved(one: str, two: str) -> dict[str, list[float]]:
        return {key: [a.get(key, 0.0) - b.get(key, 0.0) for a, b in zip(spent[one], spent[two], strict=True)] for key in names}

    change, control = moved("with", "without"), moved("again", "without")
    found = statistics.median(change[stage])
    expected = statistics.median(real)
    return {
        "name": f"{count} rules in {table} {hook}, {'new flows' if fresh else 'an established flow'}",
        "stage": stage,
        "expected_ns": expected,
        "expected_ci95_ns": median_interval(real),
        "found_ns": found,
        "found_ci95_ns": median_interval(change[stage]),
        "found_over_expected": found / expected if expected else None,
        "others_ns": {key: statistics.median(values) for key, values in change.items() if key != stage},
        "aa_ns": {key: statistics.median(values) for key, values in control.items()},
        "aa_ci95_ns": {key: median_interval(values) for key, values in control.items()},
        "rounds": ROUNDS,
    }


def main() -> int:
    results = []
    for table, hook, count, stage, fresh, share in (
        ("filter", "FORWARD", 500, "filter", False, 0.5),
        ("nat", "PREROUTING", 2000, "nat", True, 1.0),
        ("nat", "PREROUTING", 2000, "nat", False, 0.5),
    ):
        result = measure(table, hook, count, stage, fresh=fresh, share=share)
        results.append(result)
        others = max(result["others_ns"].items(), key=lambda item: abs(item[1]))
        low, high = result["found_ci95_ns"]
        print(
            f"known cost, {result['name']}: {stage} {result['found_ns']:+,.0f} ns [{low:,.0f}, {high:,.0f}], really"
            f" {result['expected_ns']:+,.0f} ns; of the others {others[0]} moved most, {others[1]:+,.0f} ns"
            f" (A/A {result['aa_ns'][others[0]]:+,.0f}); {ROUNDS} rounds",
            flush=True,
        )
    target = Path(__file__).with_name("results-known.json")
    target.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")
    return 0
