"""The snapshot as a file: a JSON document, or a folder or tar of plain command output."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from netpath import __version__
from netpath.errors import UsageError
from netpath.model.snapshot import SCHEMA, Snapshot

API_VERSION = "netpath/v1alpha1"
KIND = "Snapshot"


def encode(snapshot: Snapshot) -> bytes:
    """The document as bytes, the same for equal snapshots, with a newline at its end."""
    document = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "startedAt": snapshot.taken_at,
        "tool": __version__,
        "nodes": _nodes(snapshot),
        "request": {},
        "snapshot": snapshot,
    }
    return msgspec.json.encode(document, order="deterministic") + b"\n"


dump = encode


def _nodes(snapshot: Snapshot) -> list[Mapping[str, Any]]:
    return [{"name": snapshot.hostname, "kernel": snapshot.kernel, "datapaths": []}]


def load(path: str | os.PathLike[str]) -> Snapshot:
    """The snapshot in a file or dump. Raises UsageError, naming the path and what is wrong with it."""
    place = Path(path)
    if place.is_dir() or _is_archive(place):
        from netpath.discover import dump as dumps

        return dumps.read(place)
    try:
        data = place.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    return decode(data, str(path))


_ARCHIVES = ((0, b"\x1f\x8b"), (0, b"\xfd7zXZ\0"), (0, b"BZh"), (0, b"\x28\xb5\x2f\xfd"), (257, b"ustar"))
"""Where the first bytes of a tar, or of what it is packed in, are."""


def _is_archive(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError:
        return False
    return any(head[offset : offset + len(mark)] == mark for offset, mark in _ARCHIVES)


def decode(data: bytes, name: str = "snapshot") -> Snapshot:
    """The snapshot in a document. Raises UsageError in one line that begins with `name`."""
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{name}: not a snapshot: it is no JSON ({_line(error)})") from None
    if not isinstance(document, dict) or "apiVersion" not in document or "kind" not in document:
        raise UsageError(f"{name}: not a snapshot: it is no document of netpath")
    version, kind = document["apiVersion"], document["kind"]
    if version != API_VERSION:
        raise UsageError(f"{name}: apiVersion is {_line(version)}, this netpath reads {API_VERSION}")
    if kind != KIND:
        raise UsageError(f"{name}: kind is {_line(kind)}, a {KIND} is needed")
    body = document.get("snapshot")
    if not isinstance(body, dict):
        raise UsageError(f"{name}: not a snapshot: it has no object named snapshot")
    schema = body.get("schema", 1)
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise UsageError(f"{name}: the schema of the snapshot is not a number")
    if schema > SCHEMA:
        raise UsageError(f"{name}: written by a newer netpath (schema {schema}; this one reads up to {SCHEMA})")
    try:
        snapshot = msgspec.convert(body, Snapshot, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise UsageError(f"{name}: not a valid snapshot: {_line(error)}") from None
    return snapshot


def _line(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 200 else text[:197] + "..."


__all__ = ["API_VERSION", "KIND", "decode", "dump", "encode", "load"]
