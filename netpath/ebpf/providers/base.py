"""What a provider of hooks is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

from netpath.ebpf.kit import Kit
from netpath.model.event import Boundary, Stamp

RETURN_0 = bytes.fromhex("b7000000000000009500000000000000")
RETURN_1 = bytes.fromhex("b7000000010000009500000000000000")
"""Whole programs, to try a kind of hook with: ``r0 = N; exit``. 1 is NF_ACCEPT where it is a verdict."""
EVERYWHERE = ""
"""Instead of a namespace: for the whole machine."""
STAGE_LOSS = "time inside the kernel can't be split into conntrack, nat, filter and routing; it is shown as other"


@dataclass(frozen=True, slots=True)
class Hook:
    """One place where a packet is seen. `needed` says what a trace loses without it; empty: it can do without."""

    name: str
    program: str
    tracepoint: str
    needed: str


TRACEPOINTS = (
    Hook("tx", "np_tx", "net_dev_start_xmit", "no hop is seen when a device sends"),
    Hook("rx", "np_rx", "netif_receive_skb", "no hop is seen when a device receives"),
    Hook("drop", "np_drop", "kfree_skb", "drops are seen as losses, without a reason"),
    Hook("socket", "np_socket", "sk_data_ready", ""),
    Hook("tun_read", "np_tun_read", "skb_copy_datagram_iovec", ""),
)
QUEUE = Hook("queued", "np_queued", "qdisc_enqueue", "")
"""Attached with the marks of stages, of which it is one: where a queueing discipline takes a packet."""
QUEUE_LOSS = "time in a queueing discipline is shown as other"


class Provider(ABC):
    """A kind of hook."""

    name: ClassVar[str]
    """As ``--hooks`` takes it."""
    title: ClassVar[str]
    requirement: ClassVar[str]
    """What a kernel must have for it, for people."""
    loss: ClassVar[str]
    """What is lost when it is missing and no other stands in."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit

    @staticmethod
    @abstractmethod
    def attempt(stack: ExitStack) -> str:
        """Try for real whether the kernel has it, with nothing left behind `stack`. Raises OSError when it has not."""


class Devices(Provider):
    """A way to hang programs on tracepoints."""

    @abstractmethod
    def load(self, hook: Hook) -> int:
        """The hook's program, loaded. Raises LoadError."""

    @abstractmethod
    def attach(self, hook: Hook, program: int) -> int:
        """A descriptor that is the attachment. Raises OSError."""


class Inside(Provider):
    """A way to see packets where IP takes them over (`local_in`, `local_out`) and between the stages of netfilter."""

    by_namespace: ClassVar[bool]
    """Marks are attached in single namespaces, not for the whole machine."""

    @abstractmethod
    def load(self) -> None:
        """Load what deliveries and sends need. Raises LoadError when the kernel does not have this provider."""

    @abstractmethod
    def programs(self) -> dict[str, int]:
        """Descriptors of what `load` loaded, by hook."""

    @abstractmethod
    def attach_local(self, paths: Sequence[str], *, socket: bool) -> tuple[list[int], frozenset[str]]:
        """Watch deliveries and sends, of these namespaces at least: (descriptors, which of socket, local_in and local_out).

        `socket`: what becomes readable too, as no tracepoint tells.
        """

    @abstractmethod
    def attach_stages(self, stages: Mapping[str, Sequence[Boundary]]) -> tuple[dict[str, list[int]], list[str]]:
        """Put the marks in place: (descriptors by namespace, as in `stages`, or under `EVERYWHERE`; what could not be, each with what
        is lost)."""

    def marks(self, stamps: Sequence[Stamp]) -> list[Stamp]:
        """The stamps that were asked for, at the priorities of their boundaries."""
        return list(stamps)
