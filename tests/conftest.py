"""What the whole suite shares: who may run what, what may be skipped, and that nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests import leftovers

ALLOWED_SKIPS = (
    "this kernel has no VLAN filtering on bridges",
    "this kernel lacks the link kind",
    "this kernel lacks IPVS",
    "this kernel has no fentry hooks",
    "this kernel has no kprobe hooks",
    "this kernel has no netfilter hooks",
    "no guest:",
    "the number of bpf(2) is x86-64's",
    "no C compiler",
    "no BTF or no bpftool",
)
"""How the reasons begin for which a test may be skipped in CI: what the machine can't offer, whatever is installed on it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    if os.environ.get("CI"):
        raise pytest.UsageError("the suite must run as root in CI: most of it would be skipped")
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces and eBPF"))


def skip_allowed(reason: str) -> bool:
    return reason.removeprefix("Skipped: ").startswith(ALLOWED_SKIPS)


def _not_skipped_quietly(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI a test that was skipped for a reason that is not on the list has failed."""
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not skip_allowed(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, for a reason that tests/conftest.py does not allow: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    _not_skipped_quietly(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    _not_skipped_quietly(report)
    return report


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    if os.geteuid() != 0 or not os.environ.get("NETPATH_WHOLE_SUITE"):
        # Set by `make test`: another run beside this one would be taken for what this one left.
        yield
        return
    before = leftovers.machine()
    yield
    left = {kind: sorted(map(str, things)) for kind, things in leftovers.remaining(before).items()}
    assert not left, f"the tests left behind: {left}"
