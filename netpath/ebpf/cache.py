"""Answers that take long to find and stay true for a kernel, kept as files. A missing, damaged or foreign one is as if it were not there.

A file here decides what is loaded into the kernel, so it is read only from a folder, and only if it is a file, that nobody
else can have written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def folder() -> Path | None:
    """Where the files are: $XDG_CACHE_HOME/netpath, or /var/cache/netpath for root. None when others could write there."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        home = Path("/var/cache") if os.geteuid() == 0 else Path.home() / ".cache"
        path = (Path(base) if base else home) / "netpath"
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        trusted = _ours(path.lstat(), stat.S_IFDIR)
    except (OSError, RuntimeError):
        return None
    return path if trusted else None


def _ours(found: os.stat_result, kind: int) -> bool:
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_IFMT(found.st_mode) == kind and found.st_uid == os.geteuid() and not writable


def key(*parts: object) -> str:
    """One text for all that an answer depends on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _path(name: str, answer_key: str) -> Path | None:
    where = folder()
    return where / f"{name}-{answer_key[:32]}.json" if where is not None else None


def load(name: str, answer_key: str) -> Any:
    """What was stored under this key, or None."""
    path = _path(name, answer_key)
    if path is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not _ours(os.fstat(descriptor), stat.S_IFREG):
                return None
            document = json.loads(file.read())
        if document["key"] != answer_key or document["digest"] != key(document["answer"]):
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return document["answer"]


def store(name: str, answer_key: str, answer: object) -> None:
    """Keep an answer (JSON), whole or not at all. What can't be kept is found again next time."""
    path = _path(name, answer_key)
    if path is None:
        return
    scratch = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".new-", delete=False) as file:
            scratch = file.name
            json.dump({"key": answer_key, "digest": key(answer), "answer": answer}, file)
        Path(scratch).replace(path)
    except OSError:
        if scratch is not None:
            with contextlib.suppress(OSError):
                Path(scratch).unlink()


def keep_text(name: str, text: str) -> Path | None:
    """Keep a text for people, in place of the last one of that name; its path, or None where nothing can be kept."""
    where = folder()
    if where is None:
        return None
    path, scratch = where / name, None
    try:
        with tempfile.NamedTemporaryFile("w", dir=where, prefix=".new-", delete=False) as file:
            scratch = file.name
            file.write(text)
        Path(scratch).replace(path)
    except OSError:
        if scratch is not None:
            with contextlib.suppress(OSError):
                Path(scratch).unlink()
        return None
    return path


def keep_program(name: str, answer_key: str, make: Callable[[Path], None]) -> Path | None:
    """An executable that is kept under this key; `make` writes it if it is not there yet. None where nothing can be kept."""
    where = folder()
    if where is None:
        return None
    path = where / f"{name}-{answer_key[:32]}"
    try:
        if _ours(path.lstat(), stat.S_IFREG):
            return path
    except FileNotFoundError:
        pass
    try:
        scratch = Path(tempfile.mkdtemp(dir=where, prefix=".new-"))
    except OSError:
        return None
    try:
        make(scratch / name)
        (scratch / name).chmod(0o755)
        (scratch / name).replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path
