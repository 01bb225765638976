"""Evaluates a namespace's real rulesets on a packet, purely: text in, verdicts and translations out."""

from __future__ import annotations

from netpath.model.snapshot import Namespace
from netpath.netfilter.evaluate import RulesetEvaluator
from netpath.netfilter.types import Evaluator


def evaluator(namespace: Namespace) -> Evaluator:
    """The rulesets of a namespace, ready to be asked. Never raises on odd rules: what they touch is uncertain."""
    return RulesetEvaluator(namespace)
