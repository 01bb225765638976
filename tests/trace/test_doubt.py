"""What could not be read of a node makes a finding doubtful, and nothing else."""

from __future__ import annotations

import pytest

from netpath.cli.trace import exit_code
from netpath.model.path import Completeness, DeviceRef, Hop, NetnsRef, Path, Prediction, ProbeCost, Trace
from netpath.trace.session import doubted

UNREAD = "node1: conntrack: Operation not permitted"


def trace(outcome: str, status: str = "observed") -> Trace:
    hop = Hop(1, status, "n", NetnsRef(1, "n"), None, DeviceRef("eth0", 2, "veth"), "tx", 92, 78, 1500, ())
    way, foreseen = (Path("forward", 1.0, each, (hop,)) for each in (outcome, "delivered"))
    prediction = Prediction("delivered", (foreseen,), None)
    return Trace(outcome, (way,), prediction, Completeness("COMPLETE"), None, ProbeCost(None, None), notes=(UNREAD, "other"))


@pytest.mark.parametrize(("outcome", "status"), [("dropped", "observed"), ("lost", "observed"), ("delivered", "unexpected")])
def test_a_finding_is_inconclusive(outcome: str, status: str) -> None:
    found = doubted(trace(outcome, status), [UNREAD])
    assert found.completeness.verdict == "PARTIAL" and found.completeness.reasons == (f"not read: {UNREAD}",)
    assert found.notes == ("other",)
    assert exit_code(found, None, None) == 4


def test_what_went_as_predicted_is_not() -> None:
    assert doubted(trace("delivered"), [UNREAD]) == trace("delivered")
    assert doubted(trace("dropped"), []) == trace("dropped")
