"""What the whole suite shares: who may run what, and that nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    if os.environ.get("CI"):
        raise pytest.UsageError("the suite must run as root in CI: most of it would be skipped")
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces and eBPF"))


def _left_behind() -> dict[str, frozenset[object]]:
    """What a test run could leave on the machine, by kind. Names of other runs' namespaces don't count: theirs have other prefixes."""
    from netpath.ebpf import sys

    netns = Path("/run/netns")
    return {
        "network namespaces": frozenset(path.name for path in netns.iterdir() if path.name.startswith("npt"))
        if netns.is_dir()
        else frozenset(),
        "eBPF programs": sys.ids(sys.PROG_GET_NEXT_ID),
        "eBPF links": sys.ids(sys.LINK_GET_NEXT_ID),
    }


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    if os.geteuid() != 0 or not os.environ.get("NETPATH_WHOLE_SUITE"):
        # Set by `make test`: another run beside this one would be taken for what this one left.
        yield
        return
    before = _left_behind()
    yield
    after = _left_behind()
    left = {kind: sorted(map(str, after[kind] - before[kind])) for kind in before if after[kind] - before[kind]}
    assert not left, f"the tests left behind: {left}"
