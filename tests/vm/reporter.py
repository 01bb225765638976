"""A pytest plugin for the guest: every report is written to the share at once, so that a panic loses none of those before it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

SHARE = "NETPATH_GUEST_SHARE"


class Reporter:
    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config, self._path = config, path

    def _write(self, kind: str, document: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"kind": kind, "report": document}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write("start", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write("test", self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write("broken", f"{report.nodeid}: {report.longreprtext}")


def pytest_configure(config: pytest.Config) -> None:
    share = os.environ.get(SHARE)
    if share:
        config.pluginmanager.register(Reporter(config, Path(share) / "reports"))
