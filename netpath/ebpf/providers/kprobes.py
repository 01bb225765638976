"""Programs on functions by breakpoint, through perf events: the oldest way, and the dearest. Arguments are taken from registers."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

from netpath.ebpf import sys
from netpath.ebpf.kit import Kit
from netpath.ebpf.providers.base import RETURN_0
from netpath.ebpf.providers.functions import Functions, Site

MACHINES = ("x86_64", "aarch64")
"""Whose calling convention probes/kernel.h knows."""


class Kprobes(Functions):
    """kprobes and kretprobes as perf events (kernel commit e12f03d7031a). Each is gone with its descriptor."""

    name = "kprobe"
    title = "kprobe"
    requirement = "CONFIG_KPROBE_EVENTS, x86-64 or aarch64"
    loss = "without all of these three: arrivals inferred, stages not told apart"

    def __init__(self, kit: Kit) -> None:
        super().__init__(kit)
        self._loaded: dict[str, int] = {}

    def _load(self, site: Site) -> int:
        if os.uname().machine not in MACHINES:
            raise sys.LoadError(errno.EOPNOTSUPP, f"netpath does not know how {os.uname().machine} passes arguments", "")
        if site.program not in self._loaded:
            # Whether there are kprobes at all, before anything is compiled for them.
            sys.kprobe_type()
            self._loaded[site.program] = self.kit.load("registers", sys.PROG_KPROBE, site.program)
        return self._loaded[site.program]

    def _attach(self, site: Site, program: int) -> int:
        return sys.open_kprobe(program, site.function, leaving=site.leaving)

    @staticmethod
    def attempt(stack: ExitStack) -> str:
        program = sys.load(sys.PROG_KPROBE, RETURN_0, "np_try")
        stack.callback(os.close, program)
        stack.callback(os.close, sys.open_kprobe(program, "ip_rcv", leaving=False))
        return "loaded and attached"
