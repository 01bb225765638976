"""Labs of the tests: random names, removed whatever happened."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator

import pytest

from netpath import lab
from netpath.errors import UsageError


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root and network namespaces of its own")


@pytest.fixture
def lab_name() -> Iterator[str]:
    name = f"npt{secrets.token_hex(3)}"
    yield name
    with contextlib.suppress(UsageError):
        lab.down(name)
