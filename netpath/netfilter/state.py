"""What is handed from rule to rule: a packet on its way through one hook, and how a chain ended for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from netpath.model.path import RuleRef
from netpath.netfilter.types import PacketState, Rewrite

DEPTH = 64
"""Jumps deeper than this are a loop, which the kernel refuses to load."""


@dataclass(frozen=True, slots=True)
class State:
    """A packet on its way through a hook, with what happened to it there."""

    share: float
    packet: PacketState
    rewrites: tuple[Rewrite, ...] = ()
    uncertain: tuple[str, ...] = ()
    visited: tuple[RuleRef, ...] = ()

    def doubting(self, why: str) -> State:
        return self if why in self.uncertain else replace(self, uncertain=(*self.uncertain, why))

    def times(self, chance: float) -> State:
        """The part of it that took a choice of this probability."""
        return self if chance == 1 else replace(self, share=self.share * chance)

    def at(self, rule: RuleRef) -> State:
        """With one more rule that matched."""
        return replace(self, visited=(*self.visited, rule))


@dataclass(frozen=True, slots=True)
class Result:
    """How a chain ended for one packet: accept, drop, reject, queue, return (it fell through), or continue with the next rule."""

    verdict: str
    state: State
    rule: RuleRef | None = None
    reject_with: str | None = None


def end_of_chain(results: list[Result], policy: str | None, rule: RuleRef) -> list[Result]:
    """A base chain's policy for what fell through or returned; a chain without a policy hands it back to its caller."""
    if policy is None or policy.upper() == "ACCEPT":
        return results
    return [Result("drop", result.state, rule) if result.verdict == "return" else result for result in results]
