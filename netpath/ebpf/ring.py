"""Reads what the programs wrote, through a memory map: from netpath's own buffer, or from the kernel's ring buffer."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_BUSY, _DISCARD, _LENGTH = 1 << 31, 1 << 30, (1 << 30) - 1
_POSITION = struct.Struct("<Q")


LINE = 64
"""NP_LINE in probes/event.h."""
FRONT_BYTES, BACK_BYTES = 128, 4 * LINE
"""struct np_buffer before the lines, and room behind them for a record that begins on the last one."""
CONTEXTS = 4
"""Programs that may run at once on a processor: in a process, in a softirq, in an interrupt, in an NMI."""
_TAIL = 64
_STATE = struct.Struct("@Q")
"""Native: read at one go."""


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

    def records(self) -> Iterator[bytes]:
        """All records that are whole by now, oldest first; each is released when the next one is asked for."""
        memory, mask = self._memory, self._mask
        (place,) = _STATE.unpack_from(memory, _TAIL)
        (end,) = _STATE.unpack_from(memory, 0)
        while place < end:
            offset = FRONT_BYTES + (place * LINE & mask)
            (state,) = _STATE.unpack_from(memory, offset)
            lines = state & 0xFF
            if not lines or state >> 8 != place:
                return
            yield memory[offset : offset + lines * LINE]
            place += lines
            _STATE.pack_into(memory, _TAIL, place)

    def close(self) -> None:
        self._memory.close()


class Ring:
    """The consumer of one ring buffer of the kernel's (kernel/bpf/ringbuf.c), of `size` bytes (a power of two, a multiple of the page)."""

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
