"""What may be believed of a file that decides what is loaded into the kernel."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from netpath.ebpf import cache

ANSWER = {"np_tx": [1, "two", None]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "netpath"


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_was_stored_is_loaded(folder: Path) -> None:
    cache.store("x", cache.key("a"), ANSWER)
    assert cache.load("x", cache.key("a")) == ANSWER
    assert cache.load("x", cache.key("b")) is None
    assert cache.load("y", cache.key("a")) is None
    assert only_file(folder).name.startswith("x-")


def test_a_changed_answer_is_not_believed(folder: Path) -> None:
    cache.store("x", cache.key("a"), ANSWER)
    path = only_file(folder)
    document = json.loads(path.read_bytes())
    document["answer"]["np_tx"][0] = 2
    path.write_text(json.dumps(document))
    assert cache.load("x", cache.key("a")) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"key": 1}', b"[" * 100_000])
def test_a_damaged_file_is_as_if_it_were_not_there(folder: Path, content: bytes) -> None:
    cache.store("x", cache.key("a"), ANSWER)
    only_file(folder).write_bytes(content)
    assert cache.load("x", cache.key("a")) is None
    cache.store("x", cache.key("a"), ANSWER)
    assert cache.load("x", cache.key("a")) == ANSWER


def test_every_cut_is_noticed(folder: Path) -> None:
    cache.store("x", cache.key("a"), ANSWER)
    whole = only_file(folder).read_bytes()
    for length in range(len(whole)):
        only_file(folder).write_bytes(whole[:length])
        assert cache.load("x", cache.key("a")) is None


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("spoil", [lambda path: path.chmod(0o666), lambda path: path.chmod(0o620), _link, _fifo])
def test_a_file_that_others_could_have_written_is_not_read(folder: Path, spoil: Callable[[Path], None]) -> None:
    cache.store("x", cache.key("a"), ANSWER)
    spoil(only_file(folder))
    assert cache.load("x", cache.key("a")) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
@pytest.mark.parametrize("which", ["file", "folder"])
def test_a_foreign_owner_is_not_trusted(folder: Path, which: str) -> None:
    cache.store("x", cache.key("a"), ANSWER)
    os.chown(only_file(folder) if which == "file" else folder, 12345, 12345)
    assert cache.load("x", cache.key("a")) is None


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_folder_that_others_write_is_not_used(folder: Path, mode: int) -> None:
    cache.store("x", cache.key("a"), ANSWER)
    folder.chmod(mode)
    assert cache.folder() is None
    assert cache.load("x", cache.key("a")) is None
    cache.store("x", cache.key("b"), ANSWER)
    assert len(list(folder.iterdir())) == 1


def test_a_folder_behind_a_link_is_not_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    folder.symlink_to(tmp_path / "real")
    assert cache.folder() is None


def test_no_place_to_write_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache.store("x", cache.key("a"), ANSWER)
    assert cache.load("x", cache.key("a")) is None
