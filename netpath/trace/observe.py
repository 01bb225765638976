"""Sending probes and collecting what is seen of them until each has ended."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from netpath.ebpf.tracer import Tracer
from netpath.model.event import Event, Stamp
from netpath.probe.injector import Injector
from netpath.trace.correlate import DELIVERY_HOOKS, NOT_THE_END, FlowKey, encapsulated, innermost

SETTLE_SECONDS = 0.005
"""A run ends when every probe has ended and nothing more was seen for this long."""
POLL_SECONDS = 0.001


class Observer:
    """What an armed tracer sees of probes that one or more injectors send; with `round_trip` their answers are waited for too.

    `brief`: see `Tracer.drain`.
    """

    def __init__(self, tracer: Tracer, *, round_trip: bool, brief: bool = False) -> None:
        self._tracer, self._brief = tracer, brief
        self._round_trip = round_trip
        self.events: list[Event] = []
        self.stamps: list[Stamp] = []
        self.sent_ns: dict[int, int] = {}
        """When each was handed to the kernel (CLOCK_MONOTONIC), by sequence number."""
        self.send_errors: dict[int, int] = {}
        """The errno of sends that the kernel refused, by sequence number."""
        self._ended: set[int] = set()
        self._received: dict[int, set[tuple[str, FlowKey | None]]] = defaultdict(set)
        self._home: dict[int, int] = {}
        """The sender's namespace by sequence number."""
        self._back: set[int] = set()
        """What was received in its sender's namespace."""
        self._last_new = time.monotonic()
        self._injectors: set[Injector] = set()

    def send(self, injector: Injector, *sequences: int, **how: Any) -> None:
        """Send probes, as `Injector.send`. Raises NetpathError when the sender is gone."""
        self._injectors.add(injector)
        for sent in injector.send(*sequences, **how):
            self.sent_ns[sent.sequence] = sent.time_ns
            self._home[sent.sequence] = injector.netns
            if sent.error:
                self.send_errors[sent.sequence] = sent.error
                self._ended.add(sent.sequence)

    def collect(self) -> None:
        """Take what has been seen by now, and what came back to the injectors."""
        for injector in self._injectors:
            injector.poll()
        new = self._tracer.drain(brief=self._brief)
        self.stamps += self._tracer.take_stamps()
        if not new:
            return
        self.events += new
        self._last_new = time.monotonic()
        for event in new:
            if event.hook == "drop":
                # A flooded copy ends where nobody waits for it; the probe itself is still on its way.
                if event.reason not in NOT_THE_END:
                    self._ended.add(event.sequence)
            elif event.hook in DELIVERY_HOOKS and not encapsulated(event.headers):
                # Two hooks may report the one delivery; an answer's is of another role, or between other ports.
                self._received[event.sequence].add((event.role, innermost(event.headers)))
                if event.netns == self._home.get(event.sequence):
                    self._back.add(event.sequence)

    def _over(self, number: int) -> bool:
        if number in self._ended:
            return True
        received = len(self._received[number])
        # A process in between (a proxy, a relay) receives too: there and back is two receipts, and one of them at home.
        return received >= 2 and number in self._back if self._round_trip else received >= 1

    def until(self, sequences: Iterable[int], seconds: float) -> None:
        """Collect until each has been delivered (and answered, for a round trip) or dropped, for `seconds` at most."""
        deadline = time.monotonic() + seconds
        open_ = set(sequences)
        while open_ and time.monotonic() < deadline:
            self.collect()
            open_ = {number for number in open_ if not self._over(number)}
            time.sleep(POLL_SECONDS)

    def settle(self) -> None:
        """Collect until nothing more comes."""
        while time.monotonic() - self._last_new < SETTLE_SECONDS:
            self.collect()
            time.sleep(POLL_SECONDS)
        self.collect()
