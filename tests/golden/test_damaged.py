"""Predictions from damaged dumps: a path, an uncertain one or none, never an exception."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netpath.model.snapshot import Snapshot
from netpath.predict import predict, predict_reply
from tests import recordings
from tests.dump.test_fuzz import NOISE, real_files, snapshot_of
from tests.golden import expect


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=st.sampled_from(recordings.CASES), data=st.data())
def test_damaged_dumps(case: str, data: st.DataObject, tmp_path: Path) -> None:
    """Files of the nodes and the sender cut off, spliced with rubbish or taken away; then what was sent is asked about."""
    flow = data.draw(st.sampled_from(recordings.flows(case)))
    files = dict(real_files(case))
    names = sorted(
        name for name in files if name.startswith((flow["from_netns"], "fcn")) and files[name].strip() not in (b"", b"[]")
    )
    for _ in range(data.draw(st.integers(1, 4))):
        name = data.draw(st.sampled_from(names))
        content = files.get(name, b"")
        at = data.draw(st.integers(0, len(content)))
        kind = data.draw(st.sampled_from(["cut", "splice", "drop"]))
        if kind == "cut":
            files[name] = content[:at]
        elif kind == "splice":
            files[name] = content[:at] + data.draw(NOISE) + content[at + data.draw(st.integers(0, 40)) :]
        else:
            files.pop(name, None)
    snapshot = snapshot_of(files, tmp_path)
    if snapshot is None or flow["from_netns"] not in {namespace.name for namespace in snapshot.namespaces}:
        return
    _walks(snapshot, flow)


def _walks(snapshot: Snapshot, flow: dict[str, object]) -> None:
    question = expect.question(snapshot, flow)
    prediction = predict(snapshot, question)
    assert prediction.outcome in ("delivered", "rejected", "dropped", "uncertain", "mixed")
    for path in prediction.paths[:3]:
        assert path.outcome != "uncertain" or path.uncertain
        predict_reply(snapshot, question, path)
