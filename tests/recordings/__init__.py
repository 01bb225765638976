"""Recordings of real container networks (README.md), unpacked once per test run."""

from __future__ import annotations

import json
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CASES = tuple(sorted(path.name.removesuffix(".tar.xz") for path in HERE.glob("*.tar.xz")))


@cache
def _unpacked() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="netpath-recordings-")


@cache
def folder(case: str) -> Path:
    """The case as a folder of its own; read only by agreement."""
    place = Path(_unpacked().name)
    with tarfile.open(archive(case)) as tar:
        tar.extractall(place)
    return place / case


def archive(case: str) -> Path:
    return HERE / f"{case}.tar.xz"


@cache
def flows(case: str) -> tuple[dict[str, Any], ...]:
    """What was sent and seen."""
    return tuple(json.loads((folder(case) / "flows.json").read_text()))
