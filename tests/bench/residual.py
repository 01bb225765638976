"""Does the correction hold? The same path with few hooks and with many: corrected, both must take as long.

Every round sends a block in each arrangement, in random order. Odd rounds calibrate, even ones are judged by it.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from netpath import lab
from netpath.trace import calibrate
from tests.bench.harness import SEED, machine, median_interval
from tests.bench.onpath import Course, armed, build

ROUNDS = 160
SPLITS = 100
COUNT = 30
FEW, MANY = "receptions", "all"


def corrected(samples: tuple[calibrate.Sample, ...], unseen: calibrate.Unseen) -> tuple[float, float]:
    """(median ns of the way less all that its events cost, median ns that was taken out)"""
    cost = [sum(unseen.ns[kind] * number for kind, number in sample.counts.items()) for sample in samples]
    nets = [sample.net - less for sample, less in zip(samples, cost, strict=True)]
    return statistics.median(nets), statistics.median(sample.spent + less for sample, less in zip(samples, cost, strict=True))


def coverage(rounds: Sequence[Mapping[str, tuple[calibrate.Sample, ...]]]) -> tuple[int, float]:
    """Of `SPLITS` halvings at random: in how many the uncertainty from one half holds what many hooks leave over few in the other.

    And the largest part of the uncertainty's width that its difference took up in 95 of 100 of them: at most 1 is what is wanted.
    """
    order = random.Random(SEED)
    taken: list[float] = []
    for _ in range(SPLITS):
        mixed = order.sample(rounds, len(rounds))
        unseen = calibrate.estimate(mixed[: len(mixed) // 2])
        judged = mixed[len(mixed) // 2 :]
        left = statistics.median(corrected(each[MANY], unseen)[0] - corrected(each[FEW], unseen)[0] for each in judged)
        taken.append(abs(left) / uncertainty(judged[0], unseen))
    taken.sort()
    return sum(part <= 1 for part in taken), taken[round(0.95 * SPLITS) - 1]


def uncertainty(each: Mapping[str, tuple[calibrate.Sample, ...]], unseen: calibrate.Unseen) -> float:
    """ns: what the product says of the events that many hooks have more than few."""
    few, many = each[FEW][0].counts, each[MANY][0].counts
    return sum(unseen.uncertainty[kind] * (number - few.get(kind, 0)) for kind, number in many.items())


def main() -> int:
    order = random.Random(SEED)
    with lab.running("flannel-vxlan") as made:
        client, server = made.pod("pod1a"), made.pod("pod2a")
        with Course(build(), client, server, server.address) as course, armed(course) as on:
            on.block(COUNT)
            rounds: list[dict[str, tuple[calibrate.Sample, ...]]] = []
            for _ in range(ROUNDS):
                names = [*calibrate.ARRANGEMENTS, "again"]
                order.shuffle(names)
                blocks = {name: on.block(COUNT, left=calibrate.ARRANGEMENTS.get(name, ())) for name in names}
                rounds.append({name: block.samples() for name, block in blocks.items()})
    unseen = calibrate.estimate(rounds[1::2])
    judged = rounds[0::2]
    residuals: list[float] = []
    costs: list[float] = []
    controls: list[float] = []
    for each in judged:
        few, few_cost = corrected(each[FEW], unseen)
        many, many_cost = corrected(each[MANY], unseen)
        again, _ = corrected(each["again"], unseen)
        residuals.append(many - few)
        controls.append(again - many)
        costs.append(many_cost - few_cost)
    cost = statistics.median(costs)
    counts = judged[0][MANY][0].counts
    width = uncertainty(judged[0], unseen)
    inside_of, needed = coverage(rounds)
    middle = median_interval(residuals)
    inside = middle[0] <= width and -width <= middle[1]
    raw = statistics.median(statistics.median(sample.net + sample.spent for sample in each[MANY]) for each in judged)
    one_way = statistics.median(corrected(each[MANY], unseen)[0] for each in judged)
    result = {
        "path": "flannel-vxlan, LOCAL_OUT to the socket",
        "events": {"few": dict(judged[0][FEW][0].counts), "many": dict(counts)},
        "unseen_ns": dict(unseen.ns),
        "unseen_uncertainty_ns": dict(unseen.uncertainty),
        "raw_many_ns": raw,
        "corrected_many_ns": one_way,
        "corrected_cost_ns": cost,
        "ns_per_event": cost / (sum(counts.values()) - sum(judged[0][FEW][0].counts.values())),
        "residual_ns": statistics.median(residuals),
        "residual_ci95_ns": middle,
        "residual_over_cost": statistics.median(residuals) / cost,
        "control_aa_ns": statistics.median(controls),
        "control_aa_ci95_ns": median_interval(controls),
        "uncertainty_ns": width,
        "uncertainty_over_one_way": width / one_way,
        "consistent_with_uncertainty": inside,
        "held_in_splits": inside_of,
        "splits": SPLITS,
        "of_uncertainty_in_95_of_100": needed,
        "rounds": len(judged),
    }
    low, high = middle
    print(
        f"residual: many ({sum(counts.values())} events) less few, corrected: {result['residual_ns']:,.0f} ns [{low:,.0f}, {high:,.0f}]"
        f" = {result['residual_over_cost']:+.3f} of the {cost:,.0f} ns corrected; A/A {result['control_aa_ns']:,.0f} ns;"
        f" one way {one_way:,.0f} (raw {raw:,.0f}), uncertainty {width:,.0f} ns,"
        f" which held in {inside_of} of {SPLITS} splits ({needed:.2f} of it in 95 of 100); {len(judged)} rounds"
    )
    target = Path(__file__).with_name("results-residual.json")
    target.write_text(json.dumps({"machine": machine(), "results": [result]}, indent=2) + "\n")
    return 0
