"""What the probes themselves cost a packet, taken out of the times between its sightings. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from netpath.model.event import Event, Stamp
from netpath.trace.correlate import Leg

Sighting = Event | Stamp


@dataclass(frozen=True, slots=True)
class Timing:
    """A time as it was measured, and what of it was the probes' own doing; both in ns."""

    raw: float
    cost: float


def kind(sighting: Sighting) -> str:
    """The kind of program that made a record: the name of its hook, or ``stamp``."""
    return sighting.hook if isinstance(sighting, Event) else "stamp"


class Account:
    """The sightings of one leg with what had been spent on making them.

    An event says itself what it cost from the moment its time was taken until its record was complete. `unseen` is what each kind
    costs besides (the kernel's way into the program and out of it, looking for the mark, what it displaces from the caches), as
    `netpath.trace.calibrate` found it on the same path. Half of that is taken to lie before the event's time, half after it.
    """

    def __init__(self, leg: Leg, unseen: Mapping[str, float]) -> None:
        self.leg = leg
        self.sightings: tuple[Sighting, ...] = tuple(sorted((*leg.marks, *leg.stamps), key=lambda sighting: sighting.time_ns))
        self._spent: dict[int, float] = {}
        spent = 0.0
        for sighting in self.sightings:
            more = unseen.get(kind(sighting), 0.0)
            self._spent[id(sighting)] = spent + more / 2
            spent += sighting.cost_ns + more
        self._all = spent

    def between(self, before: Sighting, after: Sighting) -> Timing:
        """The time from one sighting of the leg to a later one."""
        return Timing(after.time_ns - before.time_ns, self._spent[id(after)] - self._spent[id(before)])

    def since_call(self, sighting: Sighting) -> Timing:
        """The time from the sender's call. Raises ValueError where that is not known."""
        if self.leg.sent_ns is None:
            raise ValueError("nobody noted when this probe was sent")
        return Timing(sighting.time_ns - self.leg.sent_ns, self._spent[id(sighting)])

    def round_trip(self, back: Account) -> Timing:
        """The time from this leg's first hop to the end of the answer's leg. Raises ValueError without either."""
        if not self.leg.hops or back.leg.end is None:
            raise ValueError("a round trip needs a first hop and an end")
        first, end = self.leg.hops[0], back.leg.end
        return Timing(end.time_ns - first.time_ns, self._all - self._spent[id(first)] + back._spent[id(end)])
