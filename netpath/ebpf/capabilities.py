"""Which kinds of hook this kernel offers: each is tried for real, and its descriptors closed again at once."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from netpath.ebpf import btf, sys
from netpath.ebpf.providers import DEVICES, INSIDE, raw_tracepoints
from netpath.ebpf.providers.base import RETURN_1, Provider
from netpath.errors import MissingError, NetpathError


@dataclass(frozen=True, slots=True)
class HookKind:
    """One kind of hook: whether it works here, how that was found out, and what is lost without it."""

    name: str
    available: bool
    detail: str
    loss: str
    option: str | None = None
    """What ``--hooks`` calls it, if it is one that can be chosen."""
    requirement: str | None = None
    """What a kernel must have for it."""


def _raw_tracepoint(name: str) -> Callable[[ExitStack], str]:
    return lambda stack: raw_tracepoints.tried(stack, name)


def _ring(stack: ExitStack) -> str:
    stack.callback(os.close, sys.create_map(sys.MAP_RINGBUF, 0, 0, 4096, "np_try"))
    return "made"


def _types(stack: ExitStack) -> str:
    size = btf.read().offset("sk_buff", "head")
    return f"{btf.VMLINUX}: sk_buff.head at byte {size}"


def _reasons(stack: ExitStack) -> str:
    names = btf.read().enum("skb_drop_reason")
    if not names:
        raise OSError(2, "no enum skb_drop_reason in the kernel's types")
    return f"{len(names)} reasons"


def _tcx(stack: ExitStack) -> str:
    program = sys.load(sys.PROG_SCHED_CLS, RETURN_1, "np_try", attach_type=sys.TCX_INGRESS)
    stack.callback(os.close, program)
    # Attaching to a device that can't exist tells whether the kernel knows the kind of link, and touches nothing.
    try:
        stack.callback(os.close, sys.call(sys.LINK_CREATE, struct.pack("<IIII", program, 0x7FFFFFFF, sys.TCX_INGRESS, 0)))
    except OSError as error:
        if error.errno != 19:  # ENODEV: the kind is known, the device is not
            raise
    return "known (tried on a device that does not exist)"


PROVIDERS: tuple[type[Provider], ...] = (*DEVICES, *INSIDE)
KINDS: tuple[tuple[str, Callable[[ExitStack], str], str], ...] = (
    ("BTF", _types, "nothing works: the layout of the kernel's structures is unknown"),
    ("ring buffer", _ring, "nothing works: events can't be handed over"),
    ("raw tracepoint net_dev_start_xmit", _raw_tracepoint("net_dev_start_xmit"), "no hop is seen when a device sends"),
    ("raw tracepoint netif_receive_skb", _raw_tracepoint("netif_receive_skb"), "no hop is seen when a device receives"),
    ("raw tracepoint kfree_skb", _raw_tracepoint("kfree_skb"), "drops look like losses"),
    ("drop reasons", _reasons, "drops are seen, but not why"),
    ("raw tracepoint sk_data_ready", _raw_tracepoint("sk_data_ready"), "the arrival at a socket is inferred from LOCAL_IN"),
    (
        "raw tracepoint skb_copy_datagram_iovec",
        _raw_tracepoint("skb_copy_datagram_iovec"),
        "a user-space relay's reads are not seen",
    ),
    ("tcx", _tcx, "nothing today"),
)
"""What no provider is by itself."""


def survey() -> tuple[HookKind, ...]:
    """Try every kind. Raises MissingError without the privilege to try any."""
    if os.geteuid() != 0:
        raise MissingError("probes: trying eBPF hooks needs root (CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN)")
    kinds = [(attempt, HookKind(name, False, "", loss)) for name, attempt, loss in KINDS]
    kinds += [(each.attempt, HookKind(each.title, False, "", each.loss, each.name, each.requirement)) for each in PROVIDERS]
    found = []
    for attempt, kind in kinds:
        with ExitStack() as stack:
            try:
                found.append(replace(kind, available=True, detail=attempt(stack)))
            except (OSError, NetpathError, ValueError) as error:
                text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                found.append(replace(kind, detail=text))
    return tuple(found)


def used(kinds: tuple[HookKind, ...]) -> tuple[str, ...]:
    """The providers that a run takes here unless told otherwise, by name: of `DEVICES`, and of `INSIDE`."""
    there = {kind.option for kind in kinds if kind.available}
    return tuple(name for family in (DEVICES, INSIDE) if (name := next((each.name for each in family if each.name in there), None)))
