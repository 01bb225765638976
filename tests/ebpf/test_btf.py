"""The reader of the kernel's types against bpftool's."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from netpath.ebpf import btf, programs
from netpath.errors import MissingError

HERE = btf.VMLINUX.exists()
BPFTOOL = shutil.which("bpftool") or ("/usr/sbin/bpftool" if Path("/usr/sbin/bpftool").exists() else None)
needs_oracle = pytest.mark.skipif(not HERE or BPFTOOL is None, reason="no BTF or no bpftool")


@pytest.fixture(scope="module")
def oracle() -> list[Mapping[str, Any]]:
    assert BPFTOOL is not None
    done = subprocess.run([BPFTOOL, "-j", "btf", "dump", "file", str(btf.VMLINUX)], check=True, capture_output=True)
    types: list[Mapping[str, Any]] = json.loads(done.stdout)["types"]
    return types


@pytest.fixture(scope="module")
def kernel() -> btf.Btf:
    return btf.load()


def oracle_bits(types: list[Mapping[str, Any]], struct_name: str, member: str) -> int | None:
    by_id = {entry["id"]: entry for entry in types}

    def inside(entry: Mapping[str, Any], base: int) -> int | None:
        while entry["kind"] in ("TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG"):
            entry = by_id[entry["type_id"]]
        for found in entry.get("members", ()):
            if found["name"] == member:
                return base + int(found["bits_offset"])
            if found["name"] == "(anon)" and (deeper := inside(by_id[found["type_id"]], base + found["bits_offset"])) is not None:
                return deeper
        return None

    start = next(entry for entry in types if entry["kind"] == "STRUCT" and entry["name"] == struct_name)
    return inside(start, 0)


def signed(value: int) -> int:
    """bpftool prints a negative 32-bit value as an unsigned one of 64 bits."""
    low = value & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


@needs_oracle
def test_offsets_are_bpftools(oracle: list[Mapping[str, Any]], kernel: btf.Btf) -> None:
    for struct_name, member in programs.OFFSETS:
        assert kernel.bits(struct_name, member) == oracle_bits(oracle, struct_name, member), f"{struct_name}.{member}"
        assert kernel.offset(struct_name, member) * 8 == kernel.bits(struct_name, member)


@needs_oracle
def test_ids_and_enums_are_bpftools(oracle: list[Mapping[str, Any]], kernel: btf.Btf) -> None:
    for kind, word, name in (
        (btf.KIND_TYPEDEF, "TYPEDEF", "btf_trace_netif_receive_skb"),
        (btf.KIND_STRUCT, "STRUCT", "sk_buff"),
        (btf.KIND_FUNC, "FUNC", "ip_rcv"),
        (btf.KIND_ENUM, "ENUM", "skb_drop_reason"),
    ):
        first = next((entry["id"] for entry in oracle if entry["kind"] == word and entry["name"] == name), None)
        assert first is not None
        assert kernel.find(kind, name) == first
    reasons = next(entry for entry in oracle if entry["name"] == "skb_drop_reason" and entry["kind"] == "ENUM")
    assert kernel.enum("skb_drop_reason") == {signed(value["val"]): value["name"] for value in reasons["values"]}


@pytest.mark.skipif(not HERE, reason="no BTF")
def test_what_is_not_there_is_said(kernel: btf.Btf) -> None:
    assert kernel.find(btf.KIND_STRUCT, "np_no_such_struct") is None
    assert kernel.bits("sk_buff", "np_no_such_member") is None
    assert kernel.enum("np_no_such_enum") == {}
    with pytest.raises(MissingError, match=r"sk_buff has no member np_no_such_member"):
        kernel.offset("sk_buff", "np_no_such_member")


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"ELF" + b"\0" * 60])
def test_what_is_not_btf_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(data)
    with pytest.raises(MissingError, match="unreadable"):
        btf.load(path)


def test_a_kernel_without_btf_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="CONFIG_DEBUG_INFO_BTF"):
        btf.read(tmp_path / "vmlinux")


@pytest.mark.skipif(not HERE, reason="no BTF")
def test_the_second_time_the_types_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = btf.read()
    wanted = programs.defines(first), first.enum("skb_drop_reason")

    def unexpected(path: Path) -> btf.Btf:
        raise AssertionError("the types were read again")

    monkeypatch.setattr(btf, "load", unexpected)
    second = btf.read()
    assert (programs.defines(second), second.enum("skb_drop_reason")) == wanted
    with pytest.raises(AssertionError, match="read again"):
        second.bits("sk_buff", "tail")


@pytest.mark.skipif(not HERE, reason="no BTF")
def test_another_kernel_build_is_another_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    programs.defines(btf.read())
    monkeypatch.setattr(btf, "_identity", lambda path: ("another", "build"))
    read: list[Path] = []
    real = btf.load

    def counted(path: Path) -> btf.Btf:
        read.append(path)
        return real(path)

    monkeypatch.setattr(btf, "load", counted)
    programs.defines(btf.read())
    assert read == [btf.VMLINUX]
