"""What comes back from a guest, without one: cut short, skipped, failed."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import pytest

from tests.vm.harness import documents, facts, verdicts
from tests.vm.kernels import Kernel, module, module_files, unpack_kernel
from tests.vm.test_guests import as_local


def report(outcome: str, *, when: str = "call", name: str = "a.py::t", longrepr: Any = None) -> dict[str, Any]:
    return {
        "$report_type": "TestReport", "nodeid": name, "location": ["a.py", 3, "t"], "keywords": {}, "outcome": outcome,
        "longrepr": longrepr, "when": when, "user_properties": [], "sections": [], "duration": 0.5, "start": 0.0, "stop": 0.5,
    }  # fmt: skip


def test_a_report_cut_short_by_a_panic_ends_the_list(tmp_path: Path) -> None:
    assert list(documents(tmp_path)) == [] and facts(tmp_path) is None
    (tmp_path / "reports").write_text('{"kind": "start", "report": "a"}\n{"kind": "start", "report": "b"}\n{"kind": "te')
    (tmp_path / "facts").write_text('{"kernel"')
    assert list(documents(tmp_path)) == [("start", "a"), ("start", "b")] and facts(tmp_path) is None


def test_verdicts_take_the_worst_of_a_tests_phases() -> None:
    skip = ["/x.py", 3, "Skipped: this kernel lacks IPVS"]
    found = [
        ("start", "a"),
        ("test", report("passed", when="setup")),
        ("test", report("passed")),
        ("test", report("failed", when="teardown")),
        ("test", report("passed", name="b")),
        ("test", report("skipped", when="setup", name="c", longrepr=skip)),
    ]
    assert verdicts(found) == {"a.py::t": "failed", "b": "passed", "c": "skipped: Skipped: this kernel lacks IPVS"}


def test_a_guests_report_carries_its_kernel(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    made = as_local(pytestconfig, "6.1", report("failed", longrepr="boom"))
    assert made.nodeid == "guest[6.1]::a.py::t" and made.failed and "guest[6.1] t" in made.location[2]
    assert "boom" in made.longreprtext


def test_in_ci_a_guest_skips_for_allowed_reasons_only(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    for reason, skipped in (("Skipped: this kernel lacks IPVS", True), ("Skipped: no time", False)):
        made = as_local(pytestconfig, "6.1", report("skipped", when="setup", longrepr=["/x.py", 3, reason]))
        assert made.skipped == skipped and made.failed != skipped


def test_modules_come_with_what_they_need_uncompressed(tmp_path: Path) -> None:
    kernel = Kernel("6.12", "6.12.0", tmp_path)
    kernel.modules.mkdir(parents=True)
    (kernel.modules / "modules.dep").write_text("k/9p.ko.xz: k/9pnet.ko.xz k/netfs.ko\nk/9pnet.ko.xz: k/netfs.ko\nk/netfs.ko:\n")
    assert [path.name for path in module_files(kernel, ("9p", "built_in"))] == ["netfs.ko", "9pnet.ko.xz", "9p.ko.xz"]
    packed = tmp_path / "x.ko.xz"
    packed.write_bytes(lzma.compress(b"\x7fELFx"))
    assert module(packed) == ("x.ko", b"\x7fELFx")


def test_a_kernel_is_unpacked_or_left_as_it_is() -> None:
    assert unpack_kernel(b"stub" + lzma.compress(b"\x7fELF kernel") + b"tail") == b"\x7fELF kernel"
    assert unpack_kernel(b"stub\x28\xb5\x2f\xfd zstd") is None
