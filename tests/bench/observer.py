"""What being armed costs a round trip over VXLAN: with hooks at devices alone, and with the marks of stages as well.

The blocks of a round are milliseconds apart, so that the machine's moods fall on all of them. `armed` compares the providers.
"""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

from netpath import lab
from tests.bench.harness import SEED, machine, median_interval
from tests.bench.onpath import Course, armed, build

ROUNDS = 60
COUNT = 150
CASES = {
    "traced packets, devices": (True, ("stamp", "local")),
    "traced packets, devices and local hooks": (True, ("stamp",)),
    "traced packets, all stages": (True, ()),
    "other packets, devices": (False, ("stamp", "local")),
    "other packets, devices and local hooks": (False, ("stamp",)),
    "other packets, all stages": (False, ()),
}


def main() -> int:
    order = random.Random(SEED)
    taken: dict[str, list[float]] = {name: [] for name in (*CASES, "not running", "not running, again")}
    with lab.running("flannel-vxlan") as made:
        server = made.pod("pod2a")
        with Course(build(), made.pod("pod1a"), server, server.address) as course, armed(course) as on:
            on.block(COUNT)
            for _ in range(ROUNDS):
                names = list(taken)
                order.shuffle(names)
                for name in names:
                    marked, left = CASES.get(name, (False, None))
                    if left is None:
                        trips = on.plain(COUNT).round_trips
                    else:
                        with on.tracer.without(*left):
                            trips = course.ping_pong(COUNT, marked=marked).round_trips
                        on.tracer.discard()
                    taken[name].append(statistics.median(trips))
    plain = taken["not running"]
    results = []
    for name, values in taken.items():
        if name == "not running":
            continue
        ratios = [mine / theirs for mine, theirs in zip(values, plain, strict=True)]
        low, high = median_interval(ratios)
        results.append({"name": name, "ratio": statistics.median(ratios), "ci95": (low, high), "ns": statistics.median(values)})
        print(f"round trip, {name}: {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}] of not running ({ROUNDS} rounds)")
    target = Path(__file__).with_name("results-observer.json")
    plainly = {"machine": machine(), "not_running_ns": statistics.median(plain), "rounds": ROUNDS, "results": results}
    target.write_text(json.dumps(plainly, indent=2) + "\n")
    return 0
