"""Each row of the table of datapaths is what a live run shows, and every kind of lab has one."""

from __future__ import annotations

import pytest

from netpath.lab.modes import MODES
from tests.datapaths import page
from tests.datapaths.cases import CASES
from tests.datapaths.cover import cover
from tests.lab import kinds


def test_every_kind_of_lab_is_in_the_table() -> None:
    modes = [mode.name for mode in MODES]
    assert list(page.rows()) == modes and sorted(CASES) == sorted(modes)


@pytest.mark.root
@pytest.mark.ebpf
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", [mode.name for mode in MODES])
def test_a_datapath(mode: str) -> None:
    if mode in kinds.NEEDS:
        kinds.need(kinds.NEEDS[mode])
    assert cover(mode).row() == page.rows()[mode], "not what the table says: python -m tests.datapaths"
