"""What `netpath trace` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """The arguments of a trace, as the user wrote them. Sizes in bytes, times in seconds."""

    source: str
    destination: str
    protocol: str | None = None
    """udp, tcp or icmp; None: icmp without a port, tcp with one."""
    sport: int | None = None
    size: int = 64
    """Bytes after the transport header; a TCP SYN carries none."""
    df: bool = False
    ttl: int = 64
    count: int = 5
    timeout: float = 1.0
    """How long to wait for the last probe to arrive or to be dropped."""
    interval: float = 0.01
    cold: bool = False
    """Do not warm ARP and conntrack up by a probe that is not counted."""
    round_trip: bool = False
    stages: bool = True
    """Tell apart, by marks at the netfilter hooks on the predicted path, what the kernel does between two devices."""
    hooks: tuple[str, ...] = ()
    """Providers of hooks that may be used, by name; of a family of which none is named any may (`netpath.ebpf.providers`)."""
    ring_bytes: int = 1 << 20
    """Size of the event buffer: a power of two, 4096 at least."""
