"""What the injector and its sender process say to each other: one JSON message per packet of a socket pair."""

from __future__ import annotations

import msgspec


class Preload(msgspec.Struct, tag=True, frozen=True):
    """Import scapy now; it will be needed. Not answered."""


class Enter(msgspec.Struct, tag=True, frozen=True):
    """Enter a namespace and open the sockets for a probe. Answered by Entered or Failed."""

    netns_path: str
    protocol: str
    dst: str
    nonce: int
    src: str | None = None
    sport: int | None = None
    dport: int | None = None
    size: int = 64
    df: bool = False
    ttl: int = 64
    mark: int = 0
    bound_device: str | None = None
    tcp_base: int = 0
    identifier: int = 0
    """ICMP echo identifier, 16 bits."""


class Send(msgspec.Struct, tag=True, frozen=True):
    """Send probes of these numbers, one right after the other. Answered by Sent or Failed."""

    sequences: tuple[int, ...]
    size: int | None = None
    """Bytes of payload; None: as entered."""
    fresh: bool = False
    """Each from a source port (ICMP: with an identifier) of its own, so that it is the first packet of a flow."""


class Entered(msgspec.Struct, tag=True, frozen=True):
    """The source address the kernel chooses, the port that is held (None for ICMP) and the namespace entered (inode)."""

    source: str
    sport: int | None
    netns: int


class Shot(msgspec.Struct, frozen=True):
    """CLOCK_MONOTONIC just before a probe's send call, and the errno it ended with (0: taken by the kernel)."""

    sequence: int
    time_ns: int
    error: int


class Sent(msgspec.Struct, tag=True, frozen=True):
    """What became of each probe that was to be sent."""

    shots: tuple[Shot, ...]


class Answer(msgspec.Struct, tag=True, frozen=True):
    """An answer reached the sending socket. Unasked."""

    sequence: int
    time_ns: int


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The request could not be carried out."""

    error: int
    text: str
    unroutable: bool = False
    """The route lookup itself refused: no route, a blackhole, a prohibition, or no source address."""
