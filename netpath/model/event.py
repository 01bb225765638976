"""What an eBPF probe saw: one record of one packet at one hook."""

from __future__ import annotations

from dataclasses import dataclass

from netpath.model.packet import Headers

LOCAL_IN_PRIORITY = 1000
"""Where the delivery hook sits at LOCAL_IN: after filtering and source NAT (100), so that only what passed counts as delivered."""
LOCAL_OUT_PRIORITY = -1000
QUEUED = "queued"


@dataclass(frozen=True, slots=True)
class Event:
    """A sighting of a probe (or of an answer to it, or of an ICMP error that quotes it).

    `time_ns` is CLOCK_MONOTONIC (bpf_ktime_get_ns). `length` is the frame as it is at the hook, its Ethernet header counted in
    where the device has one; `ip_length` the outermost IP packet.
    """

    time_ns: int
    hook: str
    """tx (net_dev_start_xmit), rx (netif_receive_skb), drop (kfree_skb), local_in, local_out, socket (sk_data_ready)."""
    netns: int
    ifindex: int
    sequence: int
    """The probe's number."""
    role: str
    """probe, answer (a TCP SYN-ACK or RST, an echo reply, an echoed payload in the other direction) or error (ICMP, quoting it)."""
    length: int
    ip_length: int
    headers: Headers
    skb: int = 0
    cpu: int = 0
    cost_ns: int = 0
    """What recording the event cost the packet, in ns, measured at the event itself (its entry and exit left out), or, with
    `Tracer.spare`, at others of the same place."""
    reason: str | None = None
    """Drops only: the name in enum skb_drop_reason, or NOT_SPECIFIED."""
    symbol: str | None = None
    """Drops only: the kernel function that freed it."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """When a probe was at one place among what is registered at a netfilter hook, or entered a queue: what splits a segment into stages."""

    time_ns: int
    netns: int
    family: int
    """4 or 6: of the packet as the hook saw it, its outermost IP header."""
    hook: str
    """prerouting, input, forward, output or postrouting; `QUEUED`: a queueing discipline has taken it."""
    priority: int
    """Whatever is registered at a lower priority had been done."""
    sequence: int
    skb: int = 0
    cost_ns: int = 0
    """As `Event.cost_ns`."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where a mark goes at a netfilter hook: at `priority`, or anywhere from there to `limit` when that place is taken."""

    family: int
    hook: str
    priority: int
    limit: int
