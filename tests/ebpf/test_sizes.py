"""How large the programs are for the verifier, and that what it refuses can be read afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netpath.ebpf import cache, sys, tracer

RETURN_0 = bytes.fromhex("b7000000000000009500000000000000")
R1_UNINITIALISED = bytes.fromhex("bf500000000000009500000000000000")
"""``r0 = r5; exit``: r5 was never written."""


@pytest.mark.root
@pytest.mark.ebpf
def test_a_program_tells_its_size() -> None:
    program = sys.load(sys.PROG_RAW_TRACEPOINT, RETURN_0, "np_test")
    try:
        size = sys.program_size(program)
    finally:
        os.close(program)
    assert size.instructions == 2 and size.verified in (2, None)


@pytest.mark.root
@pytest.mark.ebpf
def test_a_refusal_carries_the_programs_name_and_the_whole_log() -> None:
    with pytest.raises(sys.LoadError) as refused:
        sys.load(sys.PROG_RAW_TRACEPOINT, R1_UNINITIALISED, "np_test")
    assert refused.value.program == "np_test" and "R5 !read_ok" in refused.value.log


def test_the_refusal_says_where_its_log_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = tracer._load_failure(sys.LoadError(13, "Permission denied", "0: R1=ctx\nR5 !read_ok\nprocessed 1 insns", "np_rx"))
    kept = tmp_path / "netpath/verifier-np_rx.log"
    assert "R5 !read_ok" in said and str(kept) in said and kept.read_text().startswith("0: R1=ctx")
    assert "whole log" not in tracer._load_failure(sys.LoadError(1, "Operation not permitted", "", "np_rx"))


def test_a_kept_text_is_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = cache.keep_text("x.log", "one"), cache.keep_text("x.log", "two")
    assert first == second is not None and second.read_text() == "two"
    assert [path.name for path in second.parent.iterdir()] == ["x.log"]
    second.parent.chmod(0o777)
    assert cache.keep_text("x.log", "three") is None
