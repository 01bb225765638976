"""Real files with random damage: `read` gives a snapshot or a UsageError, never anything else."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netpath import cni
from netpath.discover import dump
from netpath.errors import UsageError
from netpath.model.snapshot import Snapshot
from tests import recordings

COMMON = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@cache
def real_files(case: str) -> dict[str, bytes]:
    place = recordings.folder(case)
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name not in ("case.md", "flows.json")
    }


def snapshot_of(files: dict[str, bytes], folder: Path) -> Snapshot | None:
    place = folder / "fuzzed.tar"
    with tarfile.open(place, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"case/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    try:
        return dump.read(place)
    except UsageError as error:
        assert "\n" not in str(error)
        return None


def _check(snapshot: Snapshot | None) -> None:
    """What everyone who takes a snapshot relies on: plain values, and links that name devices that are there."""
    if snapshot is None:
        return
    json.dumps(dataclasses.asdict(snapshot))
    devices = {(namespace.inode, link.ifindex) for namespace in snapshot.namespaces for link in namespace.links}
    assert len({namespace.inode for namespace in snapshot.namespaces}) == len(snapshot.namespaces)
    for namespace in snapshot.namespaces:
        for link in namespace.links:
            assert link.peer is None or (link.peer.netns, link.peer.ifindex) in devices
        for route in namespace.routes:
            assert all(hop.device is None or (namespace.inode, hop.device) in devices for hop in route.nexthops)
        for entry in namespace.fdb:
            assert (namespace.inode, entry.device) in devices
    assert all("\n" not in line for line in snapshot.problems)
    cni.recognise(snapshot)


CASE = st.sampled_from(recordings.CASES)
NOISE = st.one_of(
    st.binary(min_size=0, max_size=12),
    st.sampled_from(
        [b"null", b"-1", b"[]", b"{}", b'"', b"99999999999999999999", b"1e999", b"\xff\xfe", b"[" * 3000, b"::", b"0x", b"=", b"\n"]
    ),
)


@COMMON
@given(case=CASE, data=st.data())
def test_cut_mutated_and_missing_files(case: str, data: st.DataObject, tmp_path: Path) -> None:
    files = dict(real_files(case))
    for _ in range(data.draw(st.integers(1, 6))):
        name = data.draw(st.sampled_from(sorted(files)))
        content = files[name]
        at = data.draw(st.integers(0, len(content)))
        kind = data.draw(st.sampled_from(["cut", "splice", "drop", "swap"]))
        if kind == "cut":
            files[name] = content[:at]
        elif kind == "splice":
            files[name] = content[:at] + data.draw(NOISE) + content[at + data.draw(st.integers(0, 40)) :]
        elif kind == "swap":
            files[name] = files[data.draw(st.sampled_from(sorted(files)))]
        elif len(files) > 1:
            del files[name]
    _check(snapshot_of(files, tmp_path))


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["10.0.0.1", "eth0", "::1/64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@COMMON
@given(case=CASE, data=st.data())
def test_json_with_values_of_the_wrong_kind(case: str, data: st.DataObject, tmp_path: Path) -> None:
    """Structure kept, values replaced: what a parser that trusts its input falls over."""
    files = dict(real_files(case))
    names = sorted(
        name for name in files if name.endswith(".json") and files[name].strip() not in (b"", b"[]") and "nft" not in name
    )
    for _ in range(data.draw(st.integers(1, 4))):
        name = data.draw(st.sampled_from(names))
        try:
            document = json.loads(files[name])
        except ValueError:
            continue
        where = document
        for _ in range(data.draw(st.integers(1, 5))):
            keys = list(where) if isinstance(where, dict) else list(range(len(where)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(where[key], (dict, list)) and where[key] and data.draw(st.integers(0, 3)):
                where = where[key]
                continue
            where[key] = data.draw(VALUES)
            break
        files[name] = json.dumps(document).encode()
    _check(snapshot_of(files, tmp_path))


@settings(COMMON, max_examples=60)
@given(case=CASE, data=st.data())
def test_archives_with_damaged_bytes(case: str, data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(recordings.archive(case).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    place = tmp_path / "damaged.tar.xz"
    place.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        _check(dump.read(place))
    except UsageError as error:
        assert "\n" not in str(error)
