"""The reader of netpath's own buffer, against a writer in Python."""

from __future__ import annotations

import mmap
import os
import signal
import struct
from collections.abc import Iterator

import pytest

from netpath.ebpf import ring

SIZE = ring.buffer(4096, 2)


class Writer:
    """Does to a file what the programs do to the array."""

    def __init__(self) -> None:
        self.file = os.fdopen(os.memfd_create("buffer"), "r+b")
        self.file.truncate(SIZE.map_bytes)
        self.place = 0

    def begin(self, lines: int, fill: int) -> tuple[int, int]:
        at, place = ring.FRONT_BYTES + self.place * ring.LINE % SIZE.bytes, self.place
        self.place += lines
        os.pwrite(self.file.fileno(), struct.pack("<Q", self.place), 0)
        os.pwrite(self.file.fileno(), bytes([fill]) * (lines * ring.LINE - 8), at + 8)
        return at, place << 8 | lines

    def finish(self, record: tuple[int, int]) -> None:
        os.pwrite(self.file.fileno(), struct.pack("<Q", record[1]), record[0])


@pytest.fixture
def pair() -> Iterator[tuple[Writer, ring.Lines]]:
    writer = Writer()
    reader = ring.Lines(writer.file.fileno(), SIZE)
    yield writer, reader
    reader.close()
    writer.file.close()


def fills(reader: ring.Lines) -> list[tuple[int, int]]:
    return [(len(raw) // ring.LINE, raw[8]) for raw in reader.records()]


def test_a_record_is_read_once_and_only_when_it_is_whole(pair: tuple[Writer, ring.Lines]) -> None:
    writer, reader = pair
    first, second, third = writer.begin(1, 11), writer.begin(4, 12), writer.begin(2, 13)
    writer.finish(first)
    writer.finish(third)
    assert fills(reader) == [(1, 11)]
    writer.finish(second)
    assert fills(reader) == [(4, 12), (2, 13)]
    assert fills(reader) == []


def test_what_has_been_read_never_seems_less_to_the_programs(pair: tuple[Writer, ring.Lines]) -> None:
    """They look at it at any moment: what they took for a moment's zero was a buffer without room, and an event lost."""
    writer, reader = pair
    words = memoryview(mmap.mmap(writer.file.fileno(), SIZE.map_bytes)).cast("Q")
    ready, gone = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)  # whatever becomes of the parent
        seen = 0
        os.write(gone, b"r")
        while seen < 30_000:
            now = words[8]
            if now < seen:
                os._exit(1)
            seen = now
        os._exit(0)
    assert os.read(ready, 1) == b"r"
    for _ in range(30_000):
        writer.finish(writer.begin(1, 1))
        assert len(fills(reader)) == 1
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_records_of_the_round_before_are_not_taken_for_new_ones(pair: tuple[Writer, ring.Lines]) -> None:
    writer, reader = pair
    for number in range(3 * SIZE.bytes // ring.LINE // 3):
        record = writer.begin(3, number % 251)
        assert fills(reader) == []
        writer.finish(record)
        assert fills(reader) == [(3, number % 251)]


@pytest.mark.parametrize("processors", [1, 2, 64, 448])
def test_there_is_room_for_all_who_saw_room_at_once(processors: int) -> None:
    size = ring.buffer(1 << 20, processors)
    assert size.bytes & (size.bytes - 1) == 0
    assert size.bytes >= size.limit + processors * ring.CONTEXTS * ring.BACK_BYTES
