"""On any kernel: all devices of the way are seen in their order, and a hook that is missing is named, never passed over."""

from __future__ import annotations

import pytest

from netpath.ebpf.capabilities import survey
from tests.topology import Shape, overlay
from tests.trace.test_live import expected_way, only, trace, way

pytestmark = [pytest.mark.root, pytest.mark.ebpf, pytest.mark.timeout(300)]


def test_devices_are_seen_and_what_is_missing_is_named() -> None:
    offered = {kind.name: kind.available for kind in survey()}
    with overlay() as made:
        result = trace(made, timeout=4.0)
    expected = expected_way(made, Shape())
    path, told = only(result.trace), result.trace.completeness
    assert way(path)[: len(expected)] == expected
    assert {hop.status for hop in path.hops[: len(expected)]} == {"observed"}
    assert [stage.bytes for stage in path.stages if stage.stage in ("encap", "decap")][:2] == [50, -50]
    arrivals = offered["raw tracepoint sk_data_ready"] or offered["netfilter link"] or offered["fentry"] or offered["kprobe"]
    if told.verdict == "COMPLETE":
        assert arrivals and result.trace.outcome == "delivered"
    else:
        assert told.missing_hooks and all(":" in hook for hook in told.missing_hooks)
