"""What the live tests of translations share: a trace, and what holds of every delivered one."""

from __future__ import annotations

from typing import Any

from netpath.cli.trace import exit_code
from netpath.model.path import Path
from netpath.trace.request import TraceRequest
from netpath.trace.session import TraceRun, run

Rewrite = tuple[str, bool]


def trace(source: str, destination: str, protocol: str = "udp", **options: Any) -> TraceRun:
    settings: dict[str, Any] = {"count": 3, "round_trip": True, "timeout": 2.0, **options}
    return run(TraceRequest(source=source, destination=destination, protocol=protocol, **settings))


def rewrites(path: Path) -> list[Rewrite]:
    return [(item.kind, item.reverse) for item in path.translations]


def as_predicted(done: TraceRun) -> tuple[list[Path], list[Path]]:
    """Forward and return paths, after checking what holds of every delivered trace."""
    assert (done.trace.outcome, done.trace.completeness.verdict) == ("delivered", "COMPLETE"), done.trace
    for path in done.trace.paths:
        odd = [(hop.status, hop.netns.name, hop.device.name, hop.direction) for hop in path.hops if hop.status != "observed"]
        assert not odd, (path.direction, odd)
        for item in path.translations:
            assert item.before != item.after
            if item.kind == "proxy":
                continue
            assert item.rule is not None and item.rule.basis == "evaluated", item
            assert item.reverse == (path.direction == "return")
            if done.flow.protocol == "udp":
                assert item.conntrack is True, item
    assert exit_code(done.trace, None, None) == 0
    forward = [path for path in done.trace.paths if path.direction == "forward"]
    back = [path for path in done.trace.paths if path.direction == "return"]
    assert back
    return forward, back
