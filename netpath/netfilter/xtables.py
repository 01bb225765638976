"""Rulesets as ``iptables-save`` prints them: tables, chains, and rules that are understood when they are first asked.

A rule is kept as text until a packet reaches it: of ten thousand rules of a kube-proxy most are passed over for their destination
alone. Grammar: iptables-extensions(8); the words are iptables' own, which are the same for its legacy and its nft backend.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from netpath.model.path import RuleRef
from netpath.netfilter.matches import Match, Misunderstood, build
from netpath.netfilter.words import service

_RULE = re.compile(r"^(?:\[\d+:\d+\] )?(-A (\S+)(?: .*)?)$")
_ONE_DESTINATION = re.compile(r"-A \S+(?: (?:! )?-s \S+)? -d ([0-9a-fA-F.:]+)(?:/32|/128)(?= |$)")


@dataclass(frozen=True, slots=True)
class Target:
    """What a rule does with a packet that matches: a verdict, an action or a chain, with its arguments as printed."""

    name: str
    arguments: Mapping[str, str]
    goto: bool = False


@dataclass(eq=False)
class Rule:
    """One rule. `destination` is the one address that it can match, where its text says so."""

    text: str
    table: str
    chain: str
    family: int

    @cached_property
    def destination(self) -> str | None:
        found = _ONE_DESTINATION.match(self.text)
        return found[1] if found else None

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The rule's words after ``-A CHAIN``. A quotation that does not end is taken as it stands."""
        try:
            return tuple(shlex.split(self.text))[2:]
        except ValueError:
            return tuple(self.text.split())[2:]

    @cached_property
    def parts(self) -> tuple[tuple[Match, ...], Target | None, tuple[str, ...]]:
        """(matches, target, what of it is not understood)."""
        words = self.words
        at = next((number for number, word in enumerate(words) if word in ("-j", "-g", "--jump", "--goto")), len(words))
        target = None
        if at + 1 < len(words):
            target = Target(words[at + 1], _arguments(words[at + 2 :]), words[at] in ("-g", "--goto"))
        try:
            return build(words[:at], self.family), target, ()
        except Misunderstood as error:
            return error.understood, target, (f"{error} in rule {self.text!r}",)

    @cached_property
    def reference(self) -> RuleRef:
        comment = None
        words = self.words
        if "--comment" in words[:-1]:
            comment = words[words.index("--comment") + 1]
        return RuleRef(self.text, self.table, self.chain, comment, service=service(comment))


def _arguments(words: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name = word[2:]
            found[name] = ""
        elif name is not None:
            found[name] = f"{found[name]} {word}".strip()
    return found


@dataclass
class Chain:
    """A chain; `policy` is None for a user-defined one."""

    name: str
    policy: str | None
    rules: list[Rule] = field(default_factory=list)


@dataclass
class Table:
    """A table of one family and backend."""

    name: str
    family: int
    backend: str
    chains: dict[str, Chain] = field(default_factory=dict)


def parse(text: str, family: int, backend: str) -> tuple[tuple[Table, ...], tuple[str, ...]]:
    """(tables, lines that are not understood) of what ``iptables-save`` or ``ip6tables-save`` printed."""
    tables: list[Table] = []
    problems: list[str] = []
    table: Table | None = None
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("*"):
            table = Table(line[1:], family, backend)
            tables.append(table)
        elif line == "COMMIT":
            table = None
        elif table is None:
            problems.append(f"iptables-save: a line outside any table: {line[:120]!r}")
        elif line.startswith(":"):
            words = line[1:].split()
            if not words:
                problems.append(f"iptables-save: table {table.name}: a chain without a name")
                continue
            policy = words[1] if len(words) > 1 and words[1] != "-" else None
            table.chains.setdefault(words[0], Chain(words[0], policy)).policy = policy
        elif (found := _RULE.match(line)) is not None:
            chain = table.chains.setdefault(found[2], Chain(found[2], None))
            chain.rules.append(Rule(found[1], table.name, found[2], family))
        else:
            problems.append(f"iptables-save: table {table.name}: not understood: {line[:120]!r}")
    return tuple(tables), tuple(problems)
