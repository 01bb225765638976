"""How a probe is told from all other packets: the head of its payload.

Layout, big endian: 8 bytes of nonce (random for each run), 4 bytes of sequence number (0 is the warm-up), then filler.
A TCP SYN carries no payload; its sequence number is `tcp_sequence(base, sequence)` and the answer acknowledges that plus one.
"""

from __future__ import annotations

import secrets
import struct

HEAD = struct.Struct(">QI")
MINIMUM_PAYLOAD = HEAD.size
"""Bytes of payload that a UDP or ICMP probe needs at least."""

TCP_STRIDE = 16
"""Distance between the sequence numbers of consecutive SYNs. More than one, because the RST that answers a SYN-ACK carries the
SYN's number plus one and must not look like the next probe."""


def new_nonce() -> int:
    """A random 64-bit nonce, never zero."""
    return secrets.randbits(64) | 1


def new_tcp_base() -> int:
    """A random initial sequence number with room for a million probes before it wraps."""
    return secrets.randbelow(2**32 - TCP_STRIDE * 2**20)


def pack(nonce: int, sequence: int, size: int) -> bytes:
    """A probe's payload of `size` bytes, at least `MINIMUM_PAYLOAD`.

    Raises ValueError when `size` is too small to hold the nonce.
    """
    if size < MINIMUM_PAYLOAD:
        raise ValueError(f"a probe needs {MINIMUM_PAYLOAD} bytes of payload, not {size}")
    head = HEAD.pack(nonce, sequence)
    return head + bytes(i & 0xFF for i in range(size - len(head)))


def unpack(payload: bytes) -> tuple[int, int] | None:
    """(nonce, sequence) of a payload, or None when it is too short."""
    if len(payload) < MINIMUM_PAYLOAD:
        return None
    nonce, sequence = HEAD.unpack_from(payload)
    return nonce, sequence


def tcp_sequence(base: int, sequence: int) -> int:
    """The TCP sequence number of probe `sequence`."""
    return (base + TCP_STRIDE * sequence) & 0xFFFFFFFF
