"""The table of docs/datapaths/README.md, between its two marks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from netpath.lab.modes import MODES

PAGE = Path(__file__).parents[2] / "docs" / "datapaths" / "README.md"
START, END = "<!-- table: written by python -m tests.datapaths -->\n", "<!-- end of table -->\n"
HEAD = ("lab", "recognised as", "flows", "protocols", "bytes added", "translations", "what is real")

Row = tuple[str, ...]


def rows(text: str | None = None) -> dict[str, Row]:
    """The table's rows by mode."""
    table = (PAGE.read_text() if text is None else text).partition(START)[2].partition(END)[0]
    found: dict[str, Row] = {}
    for line in table.splitlines()[2:]:
        cells = tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
        found[cells[0].strip("`")] = cells
    return found


def write(found: Mapping[str, Row]) -> None:
    """Put these rows in, in the order of the labs."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    lines += ["| " + " | ".join(found[mode.name]) + " |" for mode in MODES if mode.name in found]
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text(before + START + "\n".join(lines) + "\n" + END + rest.partition(END)[2])
