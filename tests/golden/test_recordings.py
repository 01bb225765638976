"""Every recorded UDP and TCP flow of every recorded node, predicted: hops, addresses, lengths, TTLs, outcome, and the reply's."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path as File
from typing import Any

import pytest

from netpath.discover import dump
from netpath.model.path import Path, Prediction
from netpath.model.snapshot import Snapshot
from netpath.predict import predict, predict_reply
from tests import recordings
from tests.golden import expect
from tests.recordings.rename import renamed

FLOWS = [
    pytest.param(case, number, id=f"{case}-{flow['name']}-{flow['sport']}")
    for case in recordings.CASES
    for number, flow in enumerate(recordings.flows(case))
]


@cache
def snapshot_of_case(case: str) -> Snapshot:
    return dump.read(recordings.archive(case))


@pytest.fixture(scope="module")
def renamings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Snapshot, list[dict[str, Any]]]]:
    """Every recording under other names, with its flows."""
    folder: File = tmp_path_factory.mktemp("renamed")
    found = {}
    for case in recordings.CASES:
        place = renamed(recordings.folder(case), folder / case)
        found[case] = dump.read(place), json.loads((place / "flows.json").read_text())
    return found


def _predict(snapshot: Snapshot, flow: dict[str, Any]) -> Prediction:
    state = expect.before(snapshot, flow)
    return predict(state, expect.question(state, flow))


def _check(snapshot: Snapshot, flow: dict[str, Any]) -> Prediction:
    state = expect.before(snapshot, flow)
    question = expect.question(state, flow)
    prediction = predict(state, question)
    paths = prediction.paths
    _certain(paths)
    assert sum(path.share for path in paths) == pytest.approx(1.0)
    # Where several ways were possible here, all of them end alike.
    assert {path.outcome for path in paths} == {prediction.outcome} == {expect.outcome(flow)}, expect.difference(paths, ())
    if flow["proto"] == "tcp":
        return prediction
    request, reply, known = expect.recorded(flow["request_hops"]), expect.recorded(flow["reply_hops"]), expect.known_ports(flow)
    right = [path for path in paths if expect.agrees(path, request, known)]
    assert len(right) == 1, expect.difference(paths, request, known)
    assert right[0].share > 0
    if reply:
        answers = predict_reply(state, question, right[0]).paths
        _certain(answers)
        back = [path for path in answers if expect.agrees(path, reply, known)]
        assert len(back) == 1, expect.difference(answers, reply, known)
        assert back[0].outcome == "delivered" and back[0].direction == "return", expect.difference(back, reply, known)
    return prediction


def _certain(paths: tuple[Path, ...]) -> None:
    for path in paths:
        assert path.uncertain == () and path.outcome != "uncertain", expect.difference([path], ())
        assert all(hop.status == "predicted" for hop in path.hops), expect.difference([path], ())
        assert expect.unexplained(path) == [], expect.difference([path], ())


@pytest.mark.parametrize(("case", "number"), FLOWS)
def test_as_recorded(case: str, number: int) -> None:
    """From the tar as it is shipped."""
    _check(snapshot_of_case(case), recordings.flows(case)[number])


@pytest.mark.parametrize(("case", "number"), FLOWS)
def test_with_every_device_and_chain_renamed(
    case: str, number: int, renamings: dict[str, tuple[Snapshot, list[dict[str, Any]]]]
) -> None:
    """Names decide nothing: the same paths, device by device."""
    snapshot, flows = renamings[case]
    prediction = _check(snapshot, flows[number])
    plain = _predict(snapshot_of_case(case), recordings.flows(case)[number])
    assert [_shape(path) for path in prediction.paths] == [_shape(path) for path in plain.paths]


def _shape(path: Path) -> tuple[object, ...]:
    """A path without names."""
    return (
        path.direction,
        path.share,
        path.outcome,
        [(hop.netns, hop.device.ifindex, hop.direction, hop.headers) for hop in path.hops],
        [(item.hop, item.kind, item.reverse, item.before, item.after) for item in path.translations],
    )
