"""The files of a dump, read into memory from a folder or a tar archive that need not be trusted.

Nothing is ever extracted: members are read where they are, links and devices are not followed, names that leave the archive are
left out, and both the size of one file and of all together are bounded, compressed or not.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from netpath.errors import UsageError

MAX_FILE = 64 << 20
"""Bytes. A ruleset of 100,000 rules takes about 15 MB."""
MAX_TOTAL = 512 << 20
MAX_FILES = 100_000


@dataclass(frozen=True, slots=True)
class Archive:
    """Files by their path inside the archive (parts joined by ``/``), and what could not be read."""

    files: Mapping[str, bytes]
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class _Budget:
    """Bounds what one archive may take."""

    total: int = 0
    count: int = 0
    full: bool = False

    def refuses(self, name: str, size: int) -> str | None:
        """The problem line when a file of `size` bytes must not be read; None (and counted) when it may."""
        if size > MAX_FILE:
            return f"{name}: {size} bytes are more than the {MAX_FILE} that a file of a dump may have; left out"
        if self.total + size > MAX_TOTAL or self.count >= MAX_FILES:
            self.full = True
            return f"{name}: left out, the dump is larger than {MAX_TOTAL} bytes or {MAX_FILES} files"
        self.total += size
        self.count += 1
        return None


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """All regular files of a folder or a tar (plain, gz, bz2, xz). UsageError when there is no such thing at `path`."""
    place = Path(path)
    try:
        if place.is_dir():
            return _read_folder(place)
        if not place.exists():
            raise UsageError(f"{place}: no such file or folder")
        return _read_tar(place)
    except OSError as error:
        raise UsageError(f"{place}: {error.strerror or error}") from None


def _read_folder(root: Path) -> Archive:
    files: dict[str, bytes] = {}
    problems: list[str] = []
    budget = _Budget()
    for folder, folders, names in os.walk(root, followlinks=False, onerror=lambda error: problems.append(str(error))):
        folders.sort()
        for name in sorted(names):
            place = Path(folder) / name
            inside = place.relative_to(root).as_posix()
            # A link may lead anywhere, a FIFO may block for ever: only regular files belong to a dump.
            if place.is_symlink() or not place.is_file():
                problems.append(f"{inside}: not a regular file; left out")
                continue
            try:
                refused = budget.refuses(inside, place.stat().st_size)
                if refused is not None:
                    problems.append(refused)
                    if budget.full:
                        return Archive(files, tuple(problems))
                    continue
                with place.open("rb") as stream:
                    files[inside] = stream.read(MAX_FILE)
            except OSError as error:
                problems.append(f"{inside}: {error.strerror or error}")
    return Archive(files, tuple(problems))


def _read_tar(place: Path) -> Archive:
    files: dict[str, bytes] = {}
    problems: list[str] = []
    budget = _Budget()
    try:
        # A stream: a member's bytes are decompressed once, in order, so a bomb is met by the budget and not by memory.
        with tarfile.open(place, "r|*") as archive:
            for member in _members(archive):
                name = _inside(member.name)
                if member.isdir():
                    continue
                if name is None or not member.isreg():
                    problems.append(f"{member.name!r}: not a regular file inside the archive; left out")
                    continue
                refused = budget.refuses(name, member.size)
                if refused is not None:
                    problems.append(refused)
                    if budget.full:
                        break
                    continue
                stream = archive.extractfile(member)
                if stream is not None:
                    files[name] = stream.read(member.size)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError) as error:
        if not files:
            raise UsageError(f"{place}: neither a netpath snapshot nor a tar archive of a dump ({error})") from None
        problems.append(f"the archive is damaged after {len(files)} files: {error}")
    return Archive(files, tuple(problems))


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        yield member
        # tarfile keeps every header it has seen; a stream never goes back to them.
        archive.members = []  # type: ignore[attr-defined]


def _inside(name: str) -> str | None:
    """A member's name with its parts tidied; None when it would lead out of the archive."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return None
    return path.as_posix()
