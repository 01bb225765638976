"""Evaluates a namespace's real rulesets on a packet, purely: text in, verdicts and translations out."""
