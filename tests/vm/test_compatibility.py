"""The page on kernels says what the tests found, and a program that grows by leaps is noticed."""

from __future__ import annotations

import os

import pytest

from tests.vm import compatibility, facts
from tests.vm.compatibility import Row
from tests.vm.selection import SELECTIONS


def test_the_page_is_that_of_the_recorded_results() -> None:
    assert compatibility.PAGE.read_text() == compatibility.render(compatibility.load()), "python -m tests.vm record"


def test_every_kernel_and_every_line_is_on_it() -> None:
    results = compatibility.load()
    assert {selection.series for selection in SELECTIONS} < set(results)
    text = compatibility.PAGE.read_text()
    (header,) = {line for line in text.splitlines() if line.startswith("| feature |")}
    assert header == "| feature | " + " | ".join(f"{name} ({each['where']})" for name, each in results.items()) + " |"
    for row in (*compatibility.FEATURES, *compatibility.DATAPATHS):
        assert f"| {row.name} |" in text
    assert "FAILS" not in text


def test_every_line_is_proved_somewhere() -> None:
    results = compatibility.load().values()
    for row in (*compatibility.FEATURES, *compatibility.DATAPATHS):
        assert "yes" in {compatibility.cell(row, each["tests"]) for each in results}, row.name


def test_cells_say_what_the_tests_said() -> None:
    row = Row("x", ("a.py::t",))
    assert compatibility.cell(row, {"b.py::t": "passed"}) == "–"
    assert compatibility.cell(row, {"a.py::t[1]": "passed", "a.py::t[2]": "skipped: Skipped: none"}) == "yes"
    assert compatibility.cell(row, {"a.py::t[1]": "passed", "a.py::t[2]": "failed"}) == "FAILS"
    assert compatibility.cell(row, {"a.py::t": "skipped: Skipped: this kernel lacks IPVS"}) == "no: this kernel lacks IPVS"


def test_a_jump_in_size_is_noticed() -> None:
    before = {"rx": {"instructions": 1000, "verified": 20000}, "gone": {"instructions": 1, "verified": None}}
    assert compatibility.grown(before, {"rx": {"instructions": 1200, "verified": None}}) == []
    (line,) = compatibility.grown(before, {"rx": {"instructions": 1001, "verified": 90000}})
    assert line == "rx: 20000 verified were recorded, now 90000"


@pytest.mark.root
@pytest.mark.ebpf
def test_the_programs_are_not_much_larger_than_recorded() -> None:
    recorded = compatibility.load().get(compatibility.column(os.uname().release))
    if recorded is None:
        # A kernel that nobody has recorded: its verifier's walk is its own, the programs are about the same.
        recorded = {"programs": {}}
        for each in compatibility.load().values():
            for name, size in each["programs"].items():
                recorded["programs"].setdefault(name, {"instructions": size["instructions"], "verified": None})
    now = facts.sizes()
    assert now and recorded["programs"].keys() & now.keys()
    assert not compatibility.grown(recorded["programs"], now)
