"""A buffer of one page and a reader that does nothing: what is lost is counted, to the last event."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from netpath.cli.trace import exit_code
from netpath.ebpf.tracer import Tracer
from netpath.errors import UsageError
from netpath.model.event import Event, Stamp
from netpath.trace import session
from netpath.trace.request import TraceRequest
from tests.topology import ECHO_PORT, Overlay, overlay

pytestmark = [pytest.mark.root, pytest.mark.ebpf]


@pytest.fixture(scope="module")
def made() -> Iterator[Overlay]:
    with overlay() as found:
        yield found


class Stalled(Tracer):
    """Hands nothing out until the probes are sent, and counts."""

    made: list[Stalled] = []  # noqa: RUF012
    stalled = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        Stalled.made.append(self)
        self.received = self.generated_in_all = self.lost_in_all = 0

    def _decode(self, raw: bytes, *, brief: bool = False) -> Event:
        self.received += 1
        return super()._decode(raw, brief=brief)

    def _decode_stamp(self, raw: bytes) -> Stamp:
        self.received += 1
        return super()._decode_stamp(raw)

    def drain(self, *, brief: bool = False) -> list[Event]:
        return [] if self.stalled else super().drain(brief=brief)

    def close(self) -> None:
        self.generated_in_all, self.lost_in_all = self.generated, self.lost
        super().close()


def _trace(made: Overlay, **options: Any) -> session.TraceRun:
    source, target = made.pods[0][0].name, made.pods[1][0].name
    request = TraceRequest(f"netns:{source}", f"netns:{target}:{ECHO_PORT}", "udp", timeout=0.3, **options)

    def progress(text: str) -> None:
        if text == session.DRAINING:
            Stalled.made[-1].stalled = False

    return session.run(request, progress=progress)


@pytest.mark.parametrize("count", [5, 100])
def test_a_stalled_reader_loses_what_is_counted(made: Overlay, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "Tracer", Stalled)
    result = _trace(made, count=count, interval=0.001, ring_bytes=4096).trace
    tracer = Stalled.made[-1]
    assert result.completeness.verdict == "PARTIAL"
    assert result.completeness.lost_events == tracer.lost_in_all > 0
    assert tracer.lost_in_all == tracer.generated_in_all - tracer.received
    assert tracer.received > 0
    assert any("lost" in reason for reason in result.completeness.reasons)
    assert exit_code(result, None, None) == exit_code(result, "dropped", None) == 4


def test_the_usual_buffer_loses_nothing_meanwhile(made: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "Tracer", Stalled)
    result = _trace(made, count=100, interval=0.001).trace
    tracer = Stalled.made[-1]
    assert result.completeness.verdict == "COMPLETE" and result.outcome == "delivered"
    assert tracer.generated_in_all == tracer.received and tracer.lost_in_all == 0


@pytest.mark.parametrize("size", [0, 1, 2048, 5000, -4096])
def test_a_buffer_that_the_kernel_would_refuse(made: Overlay, size: int) -> None:
    with pytest.raises(UsageError, match="power of two"):
        _trace(made, ring_bytes=size)
