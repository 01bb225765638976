"""Reads a BPF ring buffer through its memory map. Format: kernel/bpf/ringbuf.c."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

_BUSY, _DISCARD, _LENGTH = 1 << 31, 1 << 30, (1 << 30) - 1
_POSITION = struct.Struct("<Q")


class Ring:
    """The consumer of one ring buffer of `size` bytes (a power of two, a multiple of the page)."""

    def __init__(self, descriptor: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._size = size
        self._consumer = mmap.mmap(descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        # The data area is mapped twice in a row, so that a record that wraps around reads as one piece.
        self._producer = mmap.mmap(descriptor, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._start = page

    def records(self) -> Iterator[bytes]:
        """All records that are complete by now, oldest first; each is released when the next one is asked for."""
        (position,) = _POSITION.unpack_from(self._consumer, 0)
        (end,) = _POSITION.unpack_from(self._producer, 0)
        while position < end:
            offset = self._start + (position & (self._size - 1))
            (header,) = struct.unpack_from("<I", self._producer, offset)
            if header & _BUSY:
                return
            length = header & _LENGTH
            if not header & _DISCARD:
                yield self._producer[offset + 8 : offset + 8 + length]
            position += (length + 8 + 7) & ~7
            _POSITION.pack_into(self._consumer, 0, position)

    def close(self) -> None:
        self._consumer.close()
        self._producer.close()
