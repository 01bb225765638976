"""What the probes themselves cost a packet, taken out of the times between its sightings. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from netpath.model.event import Event, Stamp
from netpath.trace.correlate import Leg

Sighting = Event | Stamp
FASTEST, SLOWEST = 0.5, 4.0
"""How far `Unseen.slowness` may lie from 1: what interrupts a single event is not what slows a whole way down."""


@dataclass(frozen=True, slots=True)
class Timing:
    """A time as it was measured, and what of it was the probes' own doing; both in ns."""

    raw: float
    cost: float


def kind(sighting: Sighting) -> str:
    """The kind of program that made a record: the name of its hook, or ``stamp``."""
    return sighting.hook if isinstance(sighting, Event) else "stamp"


@dataclass(frozen=True, slots=True)
class Unseen:
    """ns that an event of each kind costs besides its own account, while the machine is calm (`netpath.trace.calibrate`)."""

    ns: Mapping[str, float] = field(default_factory=dict)
    uncertainty: Mapping[str, float] = field(default_factory=dict)
    """Half the width of the 95 % interval of each, and what the correction leaves besides."""
    calm: Mapping[str, float] = field(default_factory=dict)
    """What an event of each kind says of itself then."""

    def slowness(self, own: Iterable[tuple[str, float]]) -> float:
        """How much slower than calm the machine was for these events, by (kind, own account in ns) of each: the median of them.

        What cannot be seen of an event's cost grows with what can: both are instructions and caches of one core.
        """
        found = [cost / self.calm[name] for name, cost in own if self.calm.get(name) and cost]
        return min(SLOWEST, max(FASTEST, statistics.median(found))) if found else 1.0

    def doubt(self, counts: Mapping[str, int]) -> float:
        """ns: how far the correction of a way with so many events of each kind may be off, at worst all in one direction."""
        return sum(self.uncertainty.get(name, 0.0) * number for name, number in counts.items() if number)


SEEN_ALONE = Unseen()
"""Nothing is known but what the events say themselves."""


class Account:
    """The sightings of one leg with what had been spent on making them.

    An event says itself what it cost from the moment its time was taken until its record was complete. `unseen` is what each kind
    costs besides (the kernel's way into the program and out of it, looking for the mark, what it displaces from the caches), as
    `netpath.trace.calibrate` found it on the same path; where the leg was slower than that, it cost as much more.
    Half of it is taken to lie before the event's time, half after it.
    """

    def __init__(self, leg: Leg, unseen: Unseen) -> None:
        self.leg = leg
        self.sightings: tuple[Sighting, ...] = tuple(sorted((*leg.marks, *leg.stamps), key=lambda sighting: sighting.time_ns))
        self._spent: dict[int, float] = {}
        spent = 0.0
        self.slowness = unseen.slowness((kind(sighting), sighting.cost_ns) for sighting in self.sightings)
        for sighting in self.sightings:
            more = unseen.ns.get(kind(sighting), 0.0) * self.slowness
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
