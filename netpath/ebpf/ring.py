"""Reads what the programs wrote, through a memory map: from netpath's own buffer, or from the kernel's ring buffer."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_BUSY, _DISCARD, _LENGTH = 1 << 31, 1 << 30, (1 << 30) - 1

LINE = 64
"""NP_LINE in probes/event.h."""
FRONT_BYTES, BACK_BYTES = 128, 4 * LINE
"""struct np_buffer before the lines, and room behind them for a record that begins on the last one."""
CONTEXTS = 4
"""Programs that may run at once on a processor: in a process, in a softirq, in an interrupt, in an NMI."""
_WORD = 8
_HEAD, _TAIL = 0, 64 // _WORD
"""Places in the map as words."""


def _words(memory: mmap.mmap) -> memoryview:
    """The map as words of 64 bits, each read and written at one go. `struct.pack_into` writes zeros first: the programs would see them
    and, with all that was ever written in between, find no room."""
    return memoryview(memory).cast("Q")


@dataclass(frozen=True, slots=True)
class Buffer:
    """The size of netpath's own buffer (struct np_buffer in probes/event.h), as an array's only value."""

    limit: int
    """Bytes that may be unread."""
    bytes: int
    """Of lines: a power of two with room for the limit, and for what programs on all processors take who saw room at once."""

    @property
    def map_bytes(self) -> int:
        return FRONT_BYTES + self.bytes + BACK_BYTES


def buffer(limit: int, processors: int) -> Buffer:
    """The buffer of which `limit` bytes may be unread."""
    return Buffer(limit, 1 << (limit + processors * CONTEXTS * BACK_BYTES - 1).bit_length())


class Lines:
    """The consumer of netpath's own buffer."""

    def __init__(self, descriptor: int, size: Buffer) -> None:
        self._mask = size.bytes - 1
        self._memory = mmap.mmap(descriptor, size.map_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._words = _words(self._memory)

    def records(self) -> Iterator[bytes]:
        """All records that are whole by now, oldest first; each is released when the next one is asked for."""
        memory, words, mask = self._memory, self._words, self._mask
        place, end = words[_TAIL], words[_HEAD]
        while place < end:
            offset = FRONT_BYTES + (place * LINE & mask)
            state = words[offset // _WORD]
            lines = state & 0xFF
            if not lines or state >> 8 != place:
                return
            yield memory[offset : offset + lines * LINE]
            place += lines
            words[_TAIL] = place

    def close(self) -> None:
        self._words.release()
        self._memory.close()


class Ring:
    """The consumer of one ring buffer of the kernel's (kernel/bpf/ringbuf.c), of `size` bytes (a power of two, a multiple of the page)."""

    def __init__(self, descriptor: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._size = size
        self._consumer = mmap.mmap(descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        # The data area is mapped twice in a row, so that a record that wraps around reads as one piece.
        self._producer = mmap.mmap(descriptor, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumed, self._produced = _words(self._consumer), _words(self._producer)
        self._start = page

    def records(self) -> Iterator[bytes]:
        """All records that are complete by now, oldest first; each is released when the next one is asked for."""
        position, end = self._consumed[0], self._produced[0]
        while position < end:
            offset = self._start + (position & (self._size - 1))
            (header,) = struct.unpack_from("<I", self._producer, offset)
            if header & _BUSY:
                return
            length = header & _LENGTH
            if not header & _DISCARD:
                yield self._producer[offset + 8 : offset + 8 + length]
            position += (length + 8 + 7) & ~7
            self._consumed[0] = position

    def close(self) -> None:
        self._consumed.release()
        self._produced.release()
        self._consumer.close()
        self._producer.close()
