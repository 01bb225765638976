"""What fentry and kprobes share: which of the kernel's functions stand in for netfilter links, and what their marks mean.

A mark is put where a function is entered and where it returns: nf_hook_slow (all that is registered at a hook of netfilter),
nf_conntrack_in, nf_nat_inet_fn; what remains of a hook is filtering. Where nothing is registered, ip_route_input_noref and
ip_forward tell where routing begins and ends (ip_rcv_finish, before it, is inlined by some compilers). The names have been the same
since Linux 5.1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from netpath.ebpf import sys
from netpath.ebpf.kit import Kit
from netpath.ebpf.providers.base import EVERYWHERE, STAGE_LOSS, Inside
from netpath.model.event import QUEUED, Boundary, Stamp

BEGIN, END = -(2**31) + 1, 2**31 - 2
"""Priorities of the marks around all of a hook (probes/functions.h)."""


@dataclass(frozen=True, slots=True)
class Site:
    """A program on a kernel function: as it is entered, or (`leaving`) as it returns. `module`: where it is, unless built in."""

    hook: str
    program: str
    function: str
    leaving: bool = False
    module: str | None = None
    needed: bool = True
    """False: without the function, or while its module is not loaded, there is nothing to see."""


SOCKET = Site("socket", "np_socket", "sock_def_readable")
LOCAL = (
    Site("local_in", "np_deliver", "ip_protocol_deliver_rcu"),
    Site("local_in", "np_deliver", "ip6_protocol_deliver_rcu", needed=False),
    Site("local_out", "np_sent", "__ip_local_out"),
    Site("local_out", "np_sent", "__ip6_local_out", needed=False),
)
STAGES = (
    Site("stamp", "np_hook_begin", "nf_hook_slow"),
    Site("stamp", "np_hook_end", "nf_hook_slow", leaving=True),
    Site("stamp", "np_track_begin", "nf_conntrack_in", module="nf_conntrack", needed=False),
    Site("stamp", "np_track_end", "nf_conntrack_in", leaving=True, module="nf_conntrack", needed=False),
    Site("stamp", "np_nat_begin", "nf_nat_inet_fn", module="nf_nat", needed=False),
    Site("stamp", "np_nat_end", "nf_nat_inet_fn", leaving=True, module="nf_nat", needed=False),
    Site("stamp", "np_received", "ip_route_input_noref"),
    Site("stamp", "np_received", "ip6_route_input", needed=False),
    Site("stamp", "np_forwarded", "ip_forward"),
    Site("stamp", "np_forwarded", "ip6_forward", needed=False),
)


class Functions(Inside):
    """Programs on functions, for all namespaces at once: marks of others than those asked for are left out when they are read."""

    by_namespace = False

    def __init__(self, kit: Kit) -> None:
        super().__init__(kit)
        self._programs: dict[Site, int] = {}
        self._asked: dict[tuple[int, int, str], list[Boundary]] = {}

    @abstractmethod
    def _load(self, site: Site) -> int:
        """A program for a site. Raises LoadError, also for a function that is not there."""

    @abstractmethod
    def _attach(self, site: Site, program: int) -> int:
        """A descriptor that is the attachment. Raises OSError."""

    def load(self) -> None:
        for site in LOCAL:
            try:
                self._programs[site] = self._load(site)
            except sys.LoadError:
                if site.needed:
                    raise

    def programs(self) -> dict[str, int]:
        return {site.hook: program for site, program in self._programs.items() if site in LOCAL}

    def attach_local(self, paths: Sequence[str], *, socket: bool) -> tuple[list[int], frozenset[str]]:
        made: list[int] = []
        seen: set[str] = set()
        for site in (*LOCAL, *((SOCKET,) if socket else ())):
            with suppress(OSError):
                if site not in self._programs and site.needed:
                    self._programs[site] = self._load(site)
                if site in self._programs:
                    made.append(self._attach(site, self._programs[site]))
                    seen.add(site.hook)
        return made, frozenset(seen)

    def attach_stages(self, stages: Mapping[str, Sequence[Boundary]]) -> tuple[dict[str, list[int]], list[str]]:
        self._asked = {}
        for path, boundaries in stages.items():
            with suppress(OSError):  # a namespace that is gone has nothing to mark
                inode = Path(path).stat().st_ino
                for boundary in boundaries:
                    self._asked.setdefault((inode, boundary.family, boundary.hook), []).append(boundary)
        made: list[int] = []
        failed: list[str] = []
        for site in STAGES:
            try:
                if site not in self._programs:
                    self._programs[site] = self._load(site)
                made.append(self._attach(site, self._programs[site]))
            except OSError as error:
                if site.needed:
                    failed.append(f"stages: {self.title} on {site.function}: {error.strerror}; {STAGE_LOSS}")
        return {EVERYWHERE: made}, failed

    def marks(self, stamps: Sequence[Stamp]) -> list[Stamp]:
        """Of each packet's visit to a hook the first mark that lies in a boundary, once for each boundary."""
        found: list[Stamp] = []
        visits: dict[tuple[int, int, int, int, str], tuple[set[int], set[Boundary]]] = {}
        for stamp in sorted(stamps, key=lambda each: each.time_ns):
            if stamp.hook == QUEUED:
                found.append(stamp)
                continue
            visit = (stamp.sequence, stamp.skb, stamp.netns, stamp.family, stamp.hook)
            passed, marked = visits.setdefault(visit, (set(), set()))
            if stamp.priority in passed:
                # No place is passed twice in one visit: the packet has come by again, as another's payload before or since.
                passed.clear()
                marked.clear()
            passed.add(stamp.priority)
            boundary = _boundary(stamp.priority, self._asked.get((stamp.netns, stamp.family, stamp.hook), []))
            if boundary is not None and boundary not in marked:
                marked.add(boundary)
                found.append(replace(stamp, priority=boundary.priority))
        return found


def _boundary(priority: int, boundaries: Sequence[Boundary]) -> Boundary | None:
    """The boundary that a mark stands for."""
    if priority == BEGIN:
        # Those before everything that is registered look downwards for a free place.
        return next((each for each in boundaries if each.limit < each.priority), None)
    if priority == END:
        return max(boundaries, key=lambda each: each.priority, default=None)
    return next((each for each in boundaries if min(each.priority, each.limit) <= priority <= max(each.priority, each.limit)), None)
