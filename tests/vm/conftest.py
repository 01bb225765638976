"""Says at the end of a run what the guests did."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from tests.vm.test_guests import SUMMARIES

    for line in SUMMARIES:
        terminalreporter.write_line(line)
