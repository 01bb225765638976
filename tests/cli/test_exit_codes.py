"""Which code a result ends with, and which of two reasons wins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from netpath.cli import path as path_verb
from netpath.cli import trace as trace_verb
from netpath.errors import InconclusiveError, MissingError, NetpathError, UsageError
from netpath.model.path import Completeness, DeviceRef, Hop, NetnsRef, Path, Prediction, ProbeCost, Stats, Trace

HOP = Hop(1, "observed", "n", NetnsRef(1, "n"), None, DeviceRef("eth0", 2, "veth"), "tx", 92, 78, 1500, ())


def stats(p99: float) -> Stats:
    return Stats(5, p99 / 2, p99 / 4, p99 / 2, p99, p99, p99, None, p99)


def trace(
    outcome: str, predicted: str = "delivered", *, verdict: str = "COMPLETE", status: str = "observed", p99: float = 9e3
) -> Trace:
    overhead: dict[str, Any] = {"one_way_ns": stats(p99) if outcome == "delivered" else None}
    way = Path("forward", 1.0, outcome, (replace(HOP, status=status),), probes=5, overhead=overhead)
    return Trace(outcome, (way,), Prediction(predicted, (), None), Completeness(verdict), None, ProbeCost(None, None))


def foreseen(result: Trace, *outcomes: str) -> Trace:
    """With a prediction of these ends."""
    ways = tuple(Path("forward", 1 / len(outcomes), outcome, ()) for outcome in outcomes)
    return replace(result, prediction=replace(result.prediction, paths=ways))


@pytest.mark.parametrize(
    ("result", "expected", "limit", "code"),
    [
        (trace("delivered"), None, None, 0),
        (trace("delivered", status="missing"), None, None, 1),
        (trace("delivered", status="unexpected"), None, None, 1),
        (trace("delivered", status="unprobed"), None, None, 0),
        (trace("delivered", predicted="dropped"), None, None, 1),
        (trace("delivered", predicted="uncertain"), None, None, 4),
        (trace("dropped", predicted="dropped"), None, None, 1),
        (trace("rejected", predicted="rejected"), None, None, 1),
        (trace("lost"), None, None, 1),
        (trace("mixed"), None, None, 1),
        # One of several predicted ends is as predicted, another is not.
        (foreseen(trace("delivered", predicted="mixed"), "dropped", "delivered"), None, None, 0),
        (foreseen(trace("delivered", predicted="mixed"), "dropped", "rejected"), None, None, 1),
        (foreseen(trace("delivered", predicted="mixed"), "dropped", "uncertain"), None, None, 0),
        # Inconclusive wins over everything that was found, and over what was expected.
        (trace("dropped", verdict="PARTIAL"), None, None, 4),
        (trace("delivered", verdict="PARTIAL", status="missing"), None, None, 4),
        (trace("dropped", verdict="PARTIAL"), "dropped", None, 4),
        (trace("delivered", verdict="PARTIAL"), None, 1e3, 4),
        # An expectation decides alone.
        (trace("dropped"), "dropped", None, 0),
        (trace("lost"), "dropped", None, 0),
        (trace("rejected"), "rejected", None, 0),
        (trace("rejected"), "dropped", None, 1),
        (trace("delivered"), "dropped", None, 1),
        (trace("delivered", predicted="dropped"), "delivered", None, 0),
        (trace("mixed"), "delivered", None, 1),
        # A limit expects delivery, within it.
        (trace("delivered", p99=9e3), None, 1e4, 0),
        (trace("delivered", p99=2e4), None, 1e4, 1),
        (trace("delivered", p99=2e4), "delivered", 1e4, 1),
        (trace("dropped"), None, 1e4, 1),
    ],
)
def test_a_trace(result: Trace, expected: str | None, limit: float | None, code: int) -> None:
    assert trace_verb.exit_code(result, expected, limit) == code


@pytest.mark.parametrize(
    ("outcome", "expected", "code"),
    [
        ("delivered", None, 0),
        ("dropped", None, 1),
        ("rejected", None, 1),
        ("mixed", None, 1),
        ("uncertain", None, 4),
        ("uncertain", "delivered", 4),
        ("dropped", "dropped", 0),
        ("delivered", "dropped", 1),
    ],
)
def test_a_prediction(outcome: str, expected: str | None, code: int) -> None:
    assert path_verb.exit_code(Prediction(outcome, (), None), expected) == code


def test_errors() -> None:
    codes = {kind: kind("").exit_code for kind in (UsageError, MissingError, InconclusiveError, NetpathError)}
    assert codes == {UsageError: 2, MissingError: 3, InconclusiveError: 4, NetpathError: 1}


@pytest.mark.parametrize(("text", "ns"), [("50us", 50e3), ("50 µs", 50e3), ("2ms", 2e6), ("0.5s", 5e8), ("870ns", 870.0)])
def test_times(text: str, ns: float) -> None:
    assert trace_verb._time(text) == pytest.approx(ns)


@pytest.mark.parametrize("text", ["", "50", "us", "-1us", "50 us us", "1e3ns", "nanns"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="--expect-max-p99"):
        trace_verb._time(text)
