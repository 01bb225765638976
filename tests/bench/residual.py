"""Does the correction hold? The same path with few hooks and with many: corrected, both must take as long.

Every round sends a block in each arrangement, in random order. Odd rounds calibrate, even ones are judged by it. And `BLOCKS` times
over, some rounds in a row calibrate alone, as few as a measurement takes for it, and all others together say what is true.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from netpath import lab
from netpath.measure import plan
from netpath.trace import calibrate
from netpath.trace.account import Unseen
from tests.bench.harness import SEED, machine, median_interval
from tests.bench.onpath import Course, armed, build

BLOCKS = 100
CALIBRATING = plan.LEAST_CALIBRATIONS
COUNT = 30
FEW, MANY = "receptions", "all"


def corrected(samples: tuple[calibrate.Sample, ...], unseen: Unseen) -> tuple[float, float]:
    """(median ns of the way less all that its events cost, median ns that was taken out)"""
    nets = [sample.corrected(unseen) for sample in samples]
    return statistics.median(nets), statistics.median(sample.spent + sample.unseen(unseen) for sample in samples)


@dataclass(frozen=True)
class Coverage:
    """What calibrations of `CALIBRATING` rounds in a row are worth, no round in two of them."""

    held: int
    """How many of `BLOCKS` had an uncertainty that held what many hooks leave over few by their correction, in all other rounds."""
    needed: float
    """The largest part of the uncertainty that this took up in 95 of 100."""
    width: float
    """The median uncertainty in ns."""


def coverage(rounds: Sequence[Mapping[str, tuple[calibrate.Sample, ...]]]) -> Coverage:
    taken: list[float] = []
    widths: list[float] = []
    for start in range(0, len(rounds), CALIBRATING):
        unseen = calibrate.estimate(rounds[start : start + CALIBRATING])
        others = [*rounds[:start], *rounds[start + CALIBRATING :]]
        left = statistics.median(corrected(each[MANY], unseen)[0] - corrected(each[FEW], unseen)[0] for each in others)
        widths.append(uncertainty(others[0], unseen))
        taken.append(abs(left) / widths[-1])
    taken.sort()
    return Coverage(sum(part <= 1 for part in taken), taken[round(0.95 * len(taken)) - 1], statistics.median(widths))


def uncertainty(each: Mapping[str, tuple[calibrate.Sample, ...]], unseen: Unseen) -> float:
    """ns: what the product says of the events that many hooks have more than few."""
    few, many = each[FEW][0].counts, each[MANY][0].counts
    return unseen.doubt({kind: number - few.get(kind, 0) for kind, number in many.items()})


def main() -> int:
    order = random.Random(SEED)
    with lab.running("flannel-vxlan") as made:
        client, server = made.pod("pod1a"), made.pod("pod2a")
        with Course(build(), client, server, server.address) as course, armed(course) as on:
            on.block(COUNT)
            rounds: list[dict[str, tuple[calibrate.Sample, ...]]] = []
            for _ in range(BLOCKS * CALIBRATING):
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
    covered = coverage(rounds)
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
        "rounds": len(judged),
        "calibrations": BLOCKS,
        "rounds_of_a_calibration": CALIBRATING,
        "held": covered.held,
        "of_uncertainty_in_95_of_100": covered.needed,
        "uncertainty_of_a_calibration_ns": covered.width,
        "uncertainty_of_a_calibration_over_one_way": covered.width / one_way,
    }
    low, high = middle
    print(
        f"residual: many ({sum(counts.values())} events) less few, corrected: {result['residual_ns']:,.0f} ns [{low:,.0f}, {high:,.0f}]"
        f" = {result['residual_over_cost']:+.3f} of the {cost:,.0f} ns corrected; A/A {result['control_aa_ns']:,.0f} ns;"
        f" one way {one_way:,.0f} (raw {raw:,.0f}), uncertainty {width:,.0f} ns;"
        f" {len(judged)} rounds; calibrated by {CALIBRATING} rounds: uncertainty {covered.width:,.0f} ns"
        f" ({covered.width / one_way:.1%} of one way), which held in {covered.held} of {BLOCKS}"
        f" ({covered.needed:.2f} of it in 95 of 100)"
    )
    target = Path(__file__).with_name("results-residual.json")
    target.write_text(json.dumps({"machine": machine(), "results": [result]}, indent=2) + "\n")
    return 0
