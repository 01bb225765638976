"""When a run of probes is over, told by the events of a tracer that is not there."""

from __future__ import annotations

import time
from typing import Any

import pytest

from netpath.model.event import Event
from netpath.probe.messages import Shot
from netpath.trace.observe import Observer
from tests.trace.scene import NODE1, POD1, POD2, event, inner

ASKED = inner("10.244.1.2", "192.168.50.11", 40001, 12346)
CARRIED = inner("10.244.1.1", "10.244.2.2", 50001, 7777)


class Script:
    """A tracer that has one event more at each look, and the sender of its probe."""

    netns = POD1

    def __init__(self, *events: Event) -> None:
        self.rest = list(events)

    def drain(self, *, brief: bool = False) -> list[Event]:
        return [self.rest.pop(0)] if self.rest else []

    def take_stamps(self) -> list[Any]:
        return []

    def poll(self) -> None:
        pass

    def send(self, *sequences: int) -> tuple[Shot, ...]:
        return tuple(Shot(number, time.monotonic_ns(), 0) for number in sequences)


def left(*events: Event, round_trip: bool) -> int:
    """How many events had not come when the run was over."""
    script = Script(*events)
    observer = Observer(script, round_trip=round_trip)  # type: ignore[arg-type]
    observer.send(script, 1)  # type: ignore[arg-type]
    observer.until([1], 0.5)
    return len(script.rest)


PROXY = event(10, "socket", NODE1, 2, ASKED)
SERVER = event(20, "socket", POD2, 2, CARRIED)
ANSWER = event(30, "socket", NODE1, 2, inner("10.244.2.2", "10.244.1.1", 7777, 50001), role="answer")
HOME = event(40, "socket", POD1, 2, inner("192.168.50.11", "10.244.1.2", 12346, 40001), role="answer")
LATER = event(50, "tx", NODE1, 2, ASKED)


def test_one_way_is_over_with_the_first_receipt() -> None:
    assert left(PROXY, LATER, LATER, round_trip=False) == 2


def test_a_proxys_receipts_are_not_the_answers_end() -> None:
    assert left(PROXY, SERVER, ANSWER, HOME, LATER, round_trip=True) == 1


def test_one_delivery_reported_by_two_hooks_is_one_receipt() -> None:
    """Even at home, where a probe to oneself and its answer both are received."""
    at_home = [event(10, hook, POD1, 1, ASKED) for hook in ("local_in", "socket")]
    assert (
        left(*at_home, event(30, "socket", POD1, 1, inner("192.168.50.11", "10.244.1.2", 12346, 40001)), LATER, round_trip=True)
        == 1
    )


@pytest.mark.parametrize(("reason", "rest"), [("NETFILTER_DROP", 1), ("OTHERHOST", 0)])
def test_a_drop_is_an_end_unless_it_is_a_copys(reason: str, rest: int) -> None:
    assert left(event(10, "drop", NODE1, 2, ASKED, reason=reason), LATER, round_trip=True) == rest
