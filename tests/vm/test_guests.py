"""The suite's live half, run by other kernels: one boot per kernel, and every guest test is reported as a local one is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.conftest import skip_allowed
from tests.vm import compatibility
from tests.vm.guest import Outcome
from tests.vm.harness import documents, facts, run
from tests.vm.kernels import GuestUnavailable, fetch
from tests.vm.selection import SELECTIONS, Selection

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.timeout(1500)]

AT_ONCE = 2
SUMMARIES: list[str] = []
"""One line for each guest, for the end of the run."""


def as_local(config: pytest.Config, series: str, document: Any) -> pytest.TestReport:
    """A guest's report, named for its kernel, and failed where CI allows no such skip."""
    report = config.hook.pytest_report_from_serializable(config=config, data=document)
    assert isinstance(report, pytest.TestReport)
    report.nodeid = f"guest[{series}]::{report.nodeid}"
    file, line, name = report.location
    report.location = (file, line, f"guest[{series}] {name}")
    if isinstance(report.longrepr, list):
        # JSON knows no tuples, and pytest looks for one.
        report.longrepr = tuple(report.longrepr)
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not skip_allowed(reason):
            report.outcome = "failed"
            report.longrepr = f"skipped in a guest in CI, for a reason that tests/conftest.py does not allow: {reason}"
    return report


@dataclass(frozen=True)
class Ended:
    """What came of a guest's run."""

    release: str
    outcome: Outcome
    found: list[tuple[str, Any]]
    told: dict[str, Any] | None
    seconds: float


def ended(selection: Selection) -> Ended:
    """Run a kernel's selection. Raises GuestUnavailable."""
    began = time.monotonic()
    kernel = fetch(selection.series)
    with TemporaryDirectory() as scratch:
        share = Path(scratch)
        outcome = run(kernel, selection.arguments, share, seconds=selection.seconds)
        return Ended(kernel.release, outcome, list(documents(share)), facts(share), time.monotonic() - began)


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Ended]]]:
    """The runs that were asked for, by series, two at a time: a guest's tests keep one processor busy."""
    asked = [item.callspec.params.get("selection") for item in request.session.items if hasattr(item, "callspec")]
    with ThreadPoolExecutor(AT_ONCE) as workers:
        yield {each.series: workers.submit(ended, each) for each in SELECTIONS if each in asked}


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: selection.series)
def test_the_selection_runs_in_a_guest(
    request: pytest.FixtureRequest, running: dict[str, Future[Ended]], selection: Selection
) -> None:
    """Passes when the guest came to its end; the tests that ran in it are reported on their own, and fail on their own."""
    try:
        done = running[selection.series].result()
    except GuestUnavailable as why:
        pytest.skip(f"no guest: {selection.series}: {why}")
    outcome, told = done.outcome, done.told
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    open_test: str | None = None
    for kind, document in done.found:
        if kind == "start":
            open_test = document
        elif kind == "test":
            report = as_local(request.config, selection.series, document)
            request.node.ihook.pytest_runtest_logreport(report=report)
            if report.when == "call" or report.outcome != "passed":
                counts[report.outcome] += 1
            if report.when == "teardown":
                open_test = None
    counted = ", ".join(f"{number} {word}" for word, number in counts.items())
    SUMMARIES.append(f"guest {done.release}: {counted} in {done.seconds:.0f} s")
    broken = [document for kind, document in done.found if kind == "broken"]
    assert not broken, "the guest could not collect its tests:\n" + "\n".join(broken)
    where = f" in {open_test}" if open_test is not None else ""
    assert outcome.exit_code is not None, (
        f"the guest did not finish (a panic, or more than {selection.seconds:.0f} s){where}; its console ended:\n{outcome.tail()}"
    )
    assert outcome.exit_code in (0, 1), f"pytest in the guest ended with {outcome.exit_code}; its console ended:\n{outcome.tail()}"
    assert sum(counts.values()), f"the guest reported no test; its console ended:\n{outcome.tail()}"
    recorded = compatibility.load().get(selection.series)
    assert told is not None, f"the guest said nothing of its kernel; its console ended:\n{outcome.tail()}"
    assert recorded is not None, f"tests/vm/results has nothing of {selection.series}: python -m tests.vm record {selection.series}"
    outdated = compatibility.changed(recorded["hooks"], told["hooks"]) + compatibility.grown(recorded["programs"], told["programs"])
    assert not outdated, f"{'; '.join(outdated)} (if that is meant: python -m tests.vm record {selection.series})"
