"""docs/netfilter.md lists what the code evaluates, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from netpath.netfilter import evaluate, matches, nft

PAGE = (Path(__file__).parents[2] / "docs" / "netfilter.md").read_text()


@pytest.mark.parametrize(
    ("title", "registry"),
    [
        ("iptables matches", matches.MODULES),
        ("iptables targets: evaluated", evaluate.ACTING),
        ("iptables targets: passed", evaluate.PASSING),
        ("nftables expressions", nft.EXPRESSIONS),
        ("nftables statements: evaluated", nft.VERDICTS | nft.ACTING),
        ("nftables statements: conditions", nft.CONDITIONS),
        ("nftables statements: passed", nft.PASSING),
    ],
)
def test_lists_are_the_codes(title: str, registry: frozenset[str]) -> None:
    found = re.search(rf"<!-- {re.escape(title)} -->\s*(.*?)(?:\n\n|\Z)", PAGE, re.DOTALL)
    assert found is not None
    assert {word.strip() for word in found[1].replace("\n", " ").split(",")} == set(registry)
