"""Programs among what netfilter has registered, in the namespaces on a path only: nobody else pays."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from socket import AF_INET, AF_INET6

from netpath import setns
from netpath.ebpf import sys
from netpath.ebpf.kit import Kit
from netpath.ebpf.providers.base import RETURN_1, STAGE_LOSS, Inside
from netpath.model.event import LOCAL_IN_PRIORITY, LOCAL_OUT_PRIORITY, Boundary

NFPROTO = (AF_INET, AF_INET6)
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
"""By their numbers (enum nf_inet_hooks)."""
LOCAL = (
    ("local_in", "np_local_in", HOOKS.index("input"), LOCAL_IN_PRIORITY),
    ("local_out", "np_local_out", HOOKS.index("output"), LOCAL_OUT_PRIORITY),
)
RUNS_AT_ONCE = 32
"""Priorities tried for a hook at LOCAL_IN and LOCAL_OUT, each of which one run can have in a namespace (net/netfilter/nf_bpf_link.c)."""
LOADERS = min(4, os.cpu_count() or 1)


class NetfilterLinks(Inside):
    """BPF_PROG_TYPE_NETFILTER (kernel commit fd9c663b9ad6)."""

    name = "netfilter"
    by_namespace = True
    title = "netfilter link"
    requirement = "Linux 6.4"
    loss = "fentry or kprobes stand in"

    def __init__(self, kit: Kit) -> None:
        super().__init__(kit)
        self._local: list[tuple[str, int, int, int]] = []
        self._stamping: dict[int, int] = {}

    def load(self) -> None:
        how = {"attach_type": sys.NETFILTER_ATTACH}
        self._local = [
            (hook, self.kit.load("typed", sys.PROG_NETFILTER, program, **how), number, priority)
            for hook, program, number, priority in LOCAL
        ]

    def programs(self) -> dict[str, int]:
        return {hook: program for hook, program, _, _ in self._local}

    def attach_local(self, paths: Sequence[str], *, socket: bool) -> tuple[list[int], frozenset[str]]:
        made: list[int] = []
        for path in paths:
            with ThreadPoolExecutor(1) as worker:
                made += worker.submit(self._link_in, path).result()
        return made, frozenset(hook for hook, *_ in self._local) if made else frozenset()

    def _link_in(self, path: str) -> list[int]:
        """Attach to the hooks of one namespace; the calling thread stays in it and must end. One that is gone has nothing to watch."""
        links: list[int] = []
        try:
            setns.enter_path(path)
        except OSError:
            return links
        for _, program, number, priority in self._local:
            outwards = 1 if priority > 0 else -1
            for family in NFPROTO:
                for step in range(RUNS_AT_ONCE):
                    try:
                        links.append(sys.link_netfilter(program, family, number, priority + outwards * step))
                    except OSError as error:
                        if error.errno == errno.EBUSY:
                            continue  # another run's hook is there: two programs can't share a priority
                    break  # attached, or no IPv6 in this kernel or namespace
        return links

    def attach_stages(self, stages: Mapping[str, Sequence[Boundary]]) -> tuple[dict[str, list[int]], list[str]]:
        wanted = sorted({boundary.priority for boundaries in stages.values() for boundary in boundaries})
        with ThreadPoolExecutor(LOADERS) as workers:
            refused = [error for error in workers.map(self._load_stamp, wanted) if error is not None]
        if refused:
            return {}, [f"stages: netfilter links: {refused[0].strerror}; {STAGE_LOSS}"]
        made: dict[str, list[int]] = {}
        failed: list[str] = []
        for path, boundaries in stages.items():
            with ThreadPoolExecutor(1) as worker:
                made[path], not_there = worker.submit(self._stamp_in, path, boundaries).result()
            for boundary, error in not_there:
                where = f"{boundary.hook} at {boundary.priority} in {Path(path).name}"
                failed.append(f"stages: {where}: {error.strerror}; {STAGE_LOSS}")
        return made, failed

    def _load_stamp(self, priority: int) -> OSError | None:
        """Have the program for a priority loaded; None, or why that can't be."""
        if priority not in self._stamping:
            try:
                how = {"attach_type": sys.NETFILTER_ATTACH}
                self._stamping[priority] = self.kit.load_at("typed", sys.PROG_NETFILTER, "np_stamp", priority, **how)
            except OSError as error:
                return error
        return None

    def _stamp_in(self, path: str, boundaries: Sequence[Boundary]) -> tuple[list[int], list[tuple[Boundary, OSError]]]:
        """Attach the marks of one namespace; the calling thread stays in it and must end. A namespace that is gone needs none."""
        links: list[int] = []
        failed: list[tuple[Boundary, OSError]] = []
        try:
            setns.enter_path(path)
        except OSError:
            return links, failed
        for boundary in boundaries:
            step = 1 if boundary.limit >= boundary.priority else -1
            number, family = HOOKS.index(boundary.hook), AF_INET6 if boundary.family == 6 else AF_INET
            for priority in range(boundary.priority, boundary.limit + step, step):
                try:
                    if (refused := self._load_stamp(priority)) is not None:
                        raise refused
                    links.append(sys.link_netfilter(self._stamping[priority], family, number, priority))
                except OSError as error:
                    if error.errno == errno.EBUSY and priority != boundary.limit:
                        continue  # another run's mark is there: two programs can't share a priority
                    failed.append((boundary, error))
                break
        return links, failed

    @staticmethod
    def attempt(stack: ExitStack) -> str:
        stack.callback(os.close, sys.load(sys.PROG_NETFILTER, RETURN_1, "np_try", attach_type=sys.NETFILTER_ATTACH))
        return "loaded (attached only in namespaces on a path)"
