"""When probes are sent: at their interval, and of TCP none before the one before is over. With a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, cast

import pytest

from netpath.probe.injector import Injector
from netpath.trace import session
from netpath.trace.observe import Observer
from netpath.trace.request import TraceRequest


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Slow:
    """An observer whose probes end some time after they were sent."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds
        self.sent: list[tuple[int, float]] = []

    def send(self, injector: object, sequence: int) -> None:
        self.sent.append((sequence, self.clock.now))

    def until(self, sequences: Iterable[int], seconds: float) -> None:
        ends = self.sent[-1][1] + self.seconds
        self.clock.now = min(self.clock.now + seconds, max(self.clock.now, ends))

    def collect(self) -> None:
        pass


def gaps(monkeypatch: pytest.MonkeyPatch, seconds: float, *, tcp: bool, **more: Any) -> list[float]:
    """Seconds between the sends, when each probe takes so long to end."""
    clock = Clock()
    monkeypatch.setattr(session, "time", clock)
    observer = Slow(clock, seconds)
    request = TraceRequest("a", "b", **{"count": 5, "interval": 0.01, **more})
    session._send(cast(Observer, observer), cast(Injector, None), request, tcp=tcp)
    assert [number for number, _ in observer.sent] == list(range(1 if request.cold else 0, 6))
    return [after - before for (_, before), (_, after) in pairwise(observer.sent)]


def test_others_are_sent_at_their_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = gaps(monkeypatch, 0.08, tcp=False)
    # The warm-up is waited for, whatever it is.
    assert first == pytest.approx(0.08)
    assert rest == pytest.approx([0.01] * 4)


def test_a_syn_waits_until_the_reset_of_the_one_before_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    assert min(gaps(monkeypatch, 0.08, tcp=True)) >= 0.24 - 1e-9
    assert min(gaps(monkeypatch, 0.08, tcp=True, cold=True)) >= 0.24 - 1e-9


def test_a_fast_way_is_not_slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gaps(monkeypatch, 0.0001, tcp=True)[1:] == pytest.approx([0.01] * 4, abs=0.002)


def test_where_nothing_comes_back_only_once_is_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *rest = gaps(monkeypatch, 1000.0, tcp=True)
    assert first == pytest.approx(session.WARM_UP_SECONDS) and second == pytest.approx(session.WARM_UP_SECONDS)
    assert sum(rest) < 0.1
