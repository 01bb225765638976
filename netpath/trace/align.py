"""The one place where prediction and observation meet. Pure.

Hops are compared by device and direction, nothing else: what a packet looks like there is reported as it was observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from netpath.model.path import Hop, Path
from netpath.model.snapshot import DeviceId

HopKey = tuple[DeviceId, str]

UNWATCHED_KINDS = frozenset({"vlan", "macvlan", "ipvlan", "vrf", "macsec"})
"""Kinds whose rx no tracepoint reports: the stack takes another round below netif_receive_skb (net/core/dev.c,
__netif_receive_skb_core, label another_round)."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """One line of the merged account: `predicted` and `observed` are positions in their lists, or None."""

    status: str
    predicted: int | None
    observed: int | None


def key_of(hop: Hop) -> HopKey:
    return DeviceId(hop.netns.inode, hop.device.ifindex), hop.direction


def align(predicted: Sequence[Hop], observed: Sequence[HopKey], *, watched: Sequence[str] = ("tx", "rx")) -> tuple[Aligned, ...]:
    """Merge the two, in order, by their longest common matches.

    `watched` are the directions whose hook was armed: a predicted hop in another one is `unprobed`, not `missing`.
    """
    keys = [key_of(hop) for hop in predicted]
    matcher = SequenceMatcher(a=keys, b=list(observed), autojunk=False)
    merged: list[Aligned] = []
    for tag, a_from, a_to, b_from, b_to in matcher.get_opcodes():
        if tag == "equal":
            merged += [Aligned("observed", a, b) for a, b in zip(range(a_from, a_to), range(b_from, b_to), strict=True)]
            continue
        merged += [Aligned(_absence(predicted[a], watched), a, None) for a in range(a_from, a_to)]
        merged += [Aligned("unexpected", None, b) for b in range(b_from, b_to)]
    return tuple(merged)


def _absence(hop: Hop, watched: Sequence[str]) -> str:
    unwatched = hop.direction not in watched or (hop.direction == "rx" and hop.device.kind in UNWATCHED_KINDS)
    return "unprobed" if unwatched else "missing"


def closest(paths: Sequence[Path], observed: Sequence[HopKey], outcome: str) -> Path | None:
    """The predicted path that explains an observation best: fewest differing hops, then the same outcome, then the likeliest."""

    def distance(path: Path) -> tuple[int, bool, float]:
        merged = align(path.hops, observed)
        return sum(line.status != "observed" for line in merged), path.outcome != outcome, -path.share

    return min(paths, key=distance, default=None)
