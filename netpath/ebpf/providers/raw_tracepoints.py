"""Tracepoints by name: every read of kernel memory is a checked copy."""

from __future__ import annotations

import os
from contextlib import ExitStack

from netpath.ebpf import sys
from netpath.ebpf.providers.base import RETURN_0, Devices, Hook


class RawTracepoints(Devices):
    """BPF_PROG_TYPE_RAW_TRACEPOINT (kernel commit c4f6699dfcb8)."""

    name = "raw"
    title = "raw tracepoint"
    requirement = "Linux 5.8 (for the ring buffer)"
    loss = "without these and BTF-typed tracepoints nothing is seen at devices"

    def load(self, hook: Hook) -> int:
        return self.kit.load("plain", sys.PROG_RAW_TRACEPOINT, hook.program)

    def attach(self, hook: Hook, program: int) -> int:
        return sys.open_raw_tracepoint(program, hook.tracepoint)

    @staticmethod
    def attempt(stack: ExitStack) -> str:
        return tried(stack, "netif_receive_skb")


def tried(stack: ExitStack, tracepoint: str) -> str:
    """Attach a program that does nothing. Raises OSError where there is no such tracepoint."""
    program = sys.load(sys.PROG_RAW_TRACEPOINT, RETURN_0, "np_try")
    stack.callback(os.close, program)
    stack.callback(os.close, sys.open_raw_tracepoint(program, tracepoint))
    return "loaded and attached"
