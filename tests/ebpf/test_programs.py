"""Compiling, caching and shipping the programs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from netpath.ebpf import btf, cache, programs, ring
from netpath.ebpf.compile import references
from netpath.errors import MissingError

ROOT = Path(programs.__file__).parents[2]
needs_btf = pytest.mark.skipif(not btf.VMLINUX.exists(), reason="no BTF")
LOAD = b"\x18\x11\0\0\x07\0\0\0" + bytes(8)  # r1 = map with descriptor 7
CONSTANT = b"\x18\x01\0\0\x07\0\0\0" + b"\0\0\0\0\x18\x11\0\0"  # r1 = a number whose second half looks like an instruction
EXIT = b"\x95" + bytes(7)


def test_map_references_are_found_and_numbers_are_not_mistaken_for_them() -> None:
    code = CONSTANT + LOAD + EXIT + LOAD
    assert references(code, {7: "events"}) == [(2, "events"), (5, "events")]
    linked = programs.Programs({"p": code}, {"p": ((2, "events"), (5, "events"))}, compiled=False).linked("p", {"events": 99})
    assert linked == CONSTANT + LOAD.replace(b"\x07", b"\x63") + EXIT + LOAD.replace(b"\x07", b"\x63")


def test_what_the_compiler_can_not_say_is_put_in_by_the_loader() -> None:
    code = (
        b"\xb7\x01\0\0\x53\x4d\x50\x4e"  # r1 = NP_MASK
        b"\xb7\x02\0\0\x49\x4c\x50\x4e"  # r2 = NP_LIMIT
        b"\x7b\x21\x41\x4e\0\0\0\0"  # *(u64 *)(r1 + NP_FETCH_ADD) = r2
        b"\x7b\x21\x58\x4e\0\0\0\0"  # *(u64 *)(r1 + NP_EXCHANGE) = r2
        b"\x7b\x21\x08\0\0\0\0\0"  # *(u64 *)(r1 + 8) = r2
        b"\x85\0\0\0\x43\x50\x4e\0"  # call NP_CAST_CALL
        b"\x85\0\0\0\x05\0\0\0"  # call bpf_ktime_get_ns
    )
    done = programs.Programs({"p": CONSTANT + code}, {"p": ()}, compiled=False, cast=99)
    assert done.linked("p", {}, ring.Buffer(limit=4096, bytes=8192)) == CONSTANT + (
        b"\xb7\x01\0\0\xff\x1f\0\0"
        b"\xb7\x02\0\0\0\x10\0\0"
        b"\xdb\x21\0\0\x01\0\0\0"  # BPF_STX | BPF_ATOMIC | BPF_DW, BPF_ADD | BPF_FETCH
        b"\xdb\x21\0\0\xe1\0\0\0"  # BPF_XCHG
        b"\x7b\x21\x08\0\0\0\0\0"
        b"\x85\x20\0\0\x63\0\0\0"  # src_reg 2: BPF_PSEUDO_KFUNC_CALL
        b"\x85\0\0\0\x05\0\0\0"
    )


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@needs_btf
@pytest.mark.root
@pytest.mark.ebpf
def test_the_second_time_nothing_is_compiled(empty_cache: Path) -> None:
    first = programs.prepare(btf.read(), "typed")
    assert first.compiled
    script = "import sys; from netpath.ebpf import btf, programs; p = programs.prepare(btf.read(), 'typed'); print(p.compiled, 'bcc' in sys.modules)"
    second = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT)
    assert second.stdout.split() == ["False", "False"]
    again = programs.prepare(btf.read(), "typed")
    assert (again.code, again.references) == (first.code, first.references)


@needs_btf
@pytest.mark.root
@pytest.mark.ebpf
def test_other_offsets_are_other_programs(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = programs.prepare(btf.read(), "typed")
    real = programs.defines
    monkeypatch.setattr(programs, "defines", lambda types: {**real(types), "OFF_sk_buff_len": 4})
    second = programs.prepare(btf.read(), "typed")
    assert second.compiled
    assert second.code["np_tx"] != first.code["np_tx"]


@needs_btf
def test_without_bcc_and_without_a_cache_the_package_is_named(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = empty_cache / "hidden"
    hidden.mkdir()
    (hidden / "bcc.py").write_text("raise ImportError('not here')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(hidden), str(ROOT))))
    with pytest.raises(MissingError, match="apt-get install python3-bpfcc"):
        programs.prepare(btf.read(), "typed")
    where = cache.folder()
    assert where is not None
    assert not list(where.glob("programs-*"))


def test_the_wheel_ships_every_probe_file(tmp_path: Path) -> None:
    """Built from a copy, so that nothing is written into the checkout."""
    copy = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "netpath", "probes", "pyproject.toml", "README.md"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path / "wheel"),
        str(copy),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    files = {f"netpath/{path.relative_to(copy)}" for path in (copy / "probes").rglob("*") if path.is_file()}
    assert files <= shipped, sorted(files - shipped)
    # What is installed finds its own copy.
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    script = "from netpath.ebpf.programs import source_folder, source_text; print(source_folder()); source_text('event.h')"
    found = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
    )
    assert found.stdout.strip() == str(tmp_path / "installed/netpath/probes")
