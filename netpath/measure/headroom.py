"""Room in the conntrack tables, before and during: new flows must not take it from the node's own traffic.

A table that is full makes the kernel drop packets of new connections ("nf_conntrack: table full, dropping packet",
net/netfilter/nf_conntrack_core.c). Entries stay after their probe for `LIFETIME` seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from netpath import setns
from netpath.errors import InconclusiveError

SHARE = 0.5
"""Of what is free: as much as a measurement takes."""
ENTRIES = 3
"""Entries of one new flow in one table: its own, and where it is tunnelled those of the outer packets there and back."""
LEAST_FREE = 0.1
"""Of the table: when less is free, no new flow is begun."""
LIFETIME = {"udp": 30.0, "icmp": 30.0, "tcp": 120.0}
"""Seconds: nf_conntrack_udp_timeout, nf_conntrack_icmp_timeout, nf_conntrack_tcp_timeout_syn_sent of a fresh kernel."""
SLOWEST = 1.0
"""New flows a second, below which measuring them is refused."""
_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")


@dataclass(frozen=True, slots=True)
class Table:
    """The conntrack table of a namespace: entries there are, and may be at most (0: no limit)."""

    netns: str
    count: int
    limit: int

    @property
    def free(self) -> int | None:
        """Entries that still fit; None without a limit."""
        return max(0, self.limit - self.count) if self.limit else None


def read(paths: Mapping[str, str]) -> tuple[Table, ...]:
    """The tables of namespaces, given as name to file; one without conntrack, or gone, is left out."""
    found: list[Table] = []

    def visit(name: str, path: str) -> None:
        try:
            setns.enter_path(path)
            found.append(Table(name, int(_COUNT.read_text()), int(_MAX.read_text())))
        except (OSError, ValueError):
            return

    for name, path in paths.items():
        thread = threading.Thread(target=visit, args=(name, path), name="netpath-conntrack")
        thread.start()
        thread.join()
    return tuple(found)


def allowed_rate(tables: Iterable[Table], flows: int, rate: float, protocol: str) -> tuple[float, str | None]:
    """New flows a second that leave headroom, at most `rate`, and a line that says so when it is less.

    `flows` is how many are to be made in all. Raises InconclusiveError when not even `SLOWEST` fits.
    """
    allowed, reason = rate, None
    for table in tables:
        free = table.free
        if free is None or flows * ENTRIES <= free * SHARE:
            continue
        fitting = free * SHARE / ENTRIES / LIFETIME[protocol]
        if fitting < SLOWEST or exhausted(table):
            raise InconclusiveError(
                f"{table.netns}: {table.count} of {table.limit} conntrack entries are taken, and new flows need theirs; "
                "measure --flow established, or raise net.netfilter.nf_conntrack_max"
            )
        if fitting < allowed:
            allowed = fitting
            reason = f"new flows at {fitting:.0f} a second instead of {rate:.0f}: {table.netns} has room for {free} more conntrack entries"
    return allowed, reason


def exhausted(table: Table) -> bool:
    """Too little is free to begin another flow."""
    free = table.free
    return free is not None and free < table.limit * LEAST_FREE
