"""Is `netpath lab compare` stable: two whole runs of all modes, and how far they agree.

Two runs agree on the order of two modes unless the intervals lie apart in both, one way in the first and the other way in the second.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tests.bench.harness import machine

RESULTS = Path(__file__).with_name("results-compare.json")
RATIOS = ("one_way_ratio", "rtt_ratio", "tcp_ratio")
LIMIT = 0.10
LONGEST_S = 300.0
Document = Mapping[str, Any]


def order(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> int | None:
    """-1 or 1 where the first ratio is surely below or above the other; None where that can't be told."""
    if not one or not other or not one["ci95"] or not other["ci95"]:
        return None
    if one["ci95"][1] < other["ci95"][0]:
        return -1
    return 1 if one["ci95"][0] > other["ci95"][1] else None


def agreement(first: Document, second: Document) -> dict[str, Any]:
    """How far two documents of kind Comparison agree: each ratio of each mode, and the order of each two modes."""
    runs = [{each["mode"]: each for each in document["modes"]} for document in (first, second)]
    both = [mode for mode in runs[0] if mode in runs[1]]
    found: dict[str, Any] = {"modes": both, "in_one_run_only": sorted(runs[0].keys() ^ runs[1].keys())}
    for name in RATIOS:
        moved: dict[str, dict[str, float]] = {}
        for mode in both:
            ratios = [run[mode][name] for run in runs]
            if all(ratios):
                before, after = (each["value"] for each in ratios)
                moved[mode] = {"first": before, "second": after, "change": after / before - 1}
        told, swapped = 0, []
        for one, other in combinations(both, 2):
            orders = [order(run[one][name], run[other][name]) for run in runs]
            if None not in orders:
                told += 1
                if orders[0] != orders[1]:
                    swapped.append([one, other])
        worst = max(moved, key=lambda mode: abs(moved[mode]["change"]), default=None)
        found[name] = {
            "by_mode": moved,
            "within_limit": sum(abs(each["change"]) <= LIMIT for each in moved.values()),
            "of": len(moved),
            "beyond_limit": [mode for mode, each in moved.items() if abs(each["change"]) > LIMIT],
            "worst": worst,
            "worst_change": moved[worst]["change"] if worst else None,
            "pairs_told_apart_in_both": told,
            "pairs_in_another_order": swapped,
        }
    verdicts = [{claim["claim"]: claim["verdict"] for claim in document["claims"]} for document in (first, second)]
    found["claims"] = {claim: [said.get(claim) for said in verdicts] for claim in verdicts[0]}
    return found


def compared(words: Sequence[str] = ()) -> tuple[Document, float]:
    """One run as a user starts it, and its seconds. Raises CalledProcessError when it is not done."""
    began = time.monotonic()
    command = [sys.executable, "-m", "netpath", "lab", "compare", *words, "-o", "json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 4):
        raise subprocess.CalledProcessError(done.returncode, command)
    document: Document = json.loads(done.stdout)
    return document, time.monotonic() - began


def summary(content: Document) -> str:
    """Seconds of both runs, and for each ratio how many modes moved by no more than the limit."""
    first, second = content["seconds"]
    lines = [f"compare: {first:.0f} s and {second:.0f} s (at most {LONGEST_S:.0f})"]
    for name in RATIOS:
        found = content[name]
        lines.append(
            f"  {name}: {found['within_limit']} of {found['of']} modes within {LIMIT:.0%}, the worst {found['worst']} "
            f"{found['worst_change'] or 0.0:+.0%}; {found['pairs_told_apart_in_both']} pairs told apart in both, "
            f"{len(found['pairs_in_another_order'])} in another order"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    runs = [compared() for _ in range(2)]
    seconds = [taken for _, taken in runs]
    found = agreement(runs[0][0], runs[1][0])
    content = {
        "machine": machine(),
        "limit": LIMIT,
        "seconds": seconds,
        "in_time": max(seconds) <= LONGEST_S,
        "left_out": runs[0][0]["skipped"],
        **found,
        "runs": [document for document, _ in runs],
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")
    sys.stdout.write(summary(content))
    return 0
