"""What the README shows of a comparison is what the page has as it was printed."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_readmes_table_is_the_pages() -> None:
    readme, page = (ROOT / "README.md").read_text(), (ROOT / "docs" / "compare.md").read_text().splitlines()
    section = readme.partition("## All datapaths, compared")[2].partition("\n## ")[0]
    shown = [line for line in section.splitlines() if line.startswith(("|", "ONE WAY"))]
    start = page.index(shown[0])
    table = [line for line in page[start:] if line.startswith(("|", "ONE WAY"))]
    assert len(shown) > 10 and shown[:-1] == table[: len(shown) - 1] and shown[-1] in table
