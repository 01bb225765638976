"""The kernel as oracle: random topologies built for real, a real packet sent, every device watched.

The predicted device sequence and verdict must be what happened; where the kernel chooses among next hops, one of the predicted
ways. ``ip route get`` must agree in every namespace. Seeds are fixed: a failure names the seed, and
``echo SEED | python -m tests.predict.oracle`` builds it again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.predict import topologies

TOPOLOGIES = int(os.environ.get("NETPATH_ORACLE_TOPOLOGIES", "300"))
WORKERS = 2
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def _work(seeds: list[int], lock: threading.Lock) -> list[dict[str, Any]]:
    """One worker process that takes seeds until there are none left."""
    reports: list[dict[str, Any]] = []
    with subprocess.Popen(
        [sys.executable, "-m", "tests.predict.oracle"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        while True:
            with lock:
                if not seeds:
                    break
                seed = seeds.pop()
            worker.stdin.write(f"{seed}\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                reports.append({"seed": seed, "problems": ["the worker died"], "features": [], "faults": []})
                break
            reports.append(json.loads(line))
        worker.stdin.close()
    return reports


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    seeds = list(range(TOPOLOGIES, 0, -1))
    lock = threading.Lock()
    with ThreadPoolExecutor(WORKERS) as pool:
        parts = [pool.submit(_work, seeds, lock) for _ in range(WORKERS)]
        return [report for part in parts for report in part.result()]


@pytest.mark.timeout(900)
def test_the_kernel_does_what_was_predicted(reports: list[dict[str, Any]]) -> None:
    wrong = [report for report in reports if report["problems"]]
    assert len(reports) == TOPOLOGIES
    assert not wrong, "\n".join(f"seed {r['seed']} {r['features']} {r['faults']}: {r['problems']}" for r in wrong[:10])


def test_the_topologies_are_worth_asking(reports: list[dict[str, Any]]) -> None:
    """At least two features each, every feature this kernel has, and a third of them undeliverable."""
    assert all(len(report["features"]) >= 2 for report in reports)
    assert 3 * sum(not report["delivered"] for report in reports) >= len(reports)
    shown = Counter(feature for report in reports for feature in report["features"])
    wanted = set(topologies.FEATURES) - (set() if _kernel_has_vlans() else {"VLAN bridge"})
    if TOPOLOGIES >= 100:
        assert all(shown[feature] >= 5 for feature in wanted), shown
    assert sum(report["routes_compared"] for report in reports) >= 10 * len(reports)


def _kernel_has_vlans() -> bool:
    from tests.predict.oracle import has_vlans

    return has_vlans()


def test_a_wrong_prediction_is_noticed() -> None:
    """The judge is not blind: a path with a hop less, or another verdict, is refused."""
    from dataclasses import replace

    from netpath.model.path import DeviceRef, Hop, NetnsRef, Path
    from tests.predict.oracle import Observation, _compare

    def hop(ifindex: int, direction: str) -> Hop:
        device = DeviceRef(f"d{ifindex}", ifindex, "veth")
        return Hop(1, "predicted", None, NetnsRef(7, "n"), None, device, direction, 1, 1, None, ())

    way = Path("forward", 1.0, "delivered", (hop(2, "rx"), hop(3, "tx")))
    observed = Observation({7: [(2, "rx"), (3, "tx")]}, delivered=True, refused=False, send_error=None)
    assert _compare(way, observed, {"A": 7}, set()) is None
    assert _compare(replace(way, outcome="dropped"), observed, {"A": 7}, set())
    assert _compare(replace(way, hops=way.hops[:1]), observed, {"A": 7}, set())
    assert _compare(replace(way, hops=(hop(3, "tx"), hop(2, "rx"))), observed, {"A": 7}, set())
