"""Paired, interleaved rounds in random order, medians with their interval, and the A/A ratio beside every result."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from netpath.trace.stats import quantile

ROUNDS = 25
SEED = 20


@dataclass(frozen=True)
class Ratio:
    """One claim: `subject` over `reference`, from paired rounds, in the unit of neither."""

    name: str
    subject: str
    reference: str
    rounds: int
    median: float
    ci95: tuple[float, float]
    aa_median: float
    aa_ci95: tuple[float, float]
    """The reference over itself, from the same rounds: what noise alone looks like."""
    subject_median: float
    reference_median: float

    def line(self) -> str:
        low, high = self.ci95
        aa_low, aa_high = self.aa_ci95
        return (
            f"{self.name}: {self.median:.3f} [{low:.3f}, {high:.3f}]  "
            f"({self.subject} {self.subject_median:,.0f} over {self.reference} {self.reference_median:,.0f}; "
            f"A/A {self.aa_median:.3f} [{aa_low:.3f}, {aa_high:.3f}]; {self.rounds} rounds)"
        )


def paired(
    name: str,
    subject: tuple[str, Callable[[], float]],
    reference: tuple[str, Callable[[], float]],
    rounds: int = ROUNDS,
) -> Ratio:
    """Run subject, reference and reference again in every round, in an order drawn anew, and compare round by round."""
    order = random.Random(SEED)
    subjects: list[float] = []
    references: list[float] = []
    controls: list[float] = []
    for _ in range(rounds):
        tasks = [(subject[1], subjects), (reference[1], references), (reference[1], controls)]
        order.shuffle(tasks)
        for measure, results in tasks:
            results.append(measure())
    against = [mine / base for mine, base in zip(subjects, references, strict=True)]
    control = [again / base for again, base in zip(controls, references, strict=True)]
    return Ratio(
        name=name,
        subject=subject[0],
        reference=reference[0],
        rounds=rounds,
        median=statistics.median(against),
        ci95=median_interval(against),
        aa_median=statistics.median(control),
        aa_ci95=median_interval(control),
        subject_median=statistics.median(subjects),
        reference_median=statistics.median(references),
    )


def median_interval(values: Sequence[float], resamples: int = 2000) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the median."""
    generator = random.Random(SEED)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(resamples))
    return quantile(medians, 0.025), quantile(medians, 0.975)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    return {"kernel": platform.release(), "cpu": model, "cpus": os.cpu_count(), "python": platform.python_version()}


def write(path: Path, ratios: Sequence[Ratio]) -> None:
    path.write_text(json.dumps({"machine": machine(), "results": [asdict(ratio) for ratio in ratios]}, indent=2) + "\n")
