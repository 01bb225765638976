"""Where events come from: one file for each kind of hook the kernel may offer, best first.

Two families, of which a run uses one provider each: `DEVICES` see packets at devices, sockets and where they are dropped;
`INSIDE` see them where IP takes them over, and between the stages of netfilter. What a provider lacks costs precision, never
correctness: the rest of the run goes on, and the result says what was missing.
"""

from __future__ import annotations

from collections.abc import Sequence

from netpath.ebpf.providers import btf_tracepoints, fentry, kprobes, netfilter_links, raw_tracepoints
from netpath.ebpf.providers.base import Devices, Inside
from netpath.errors import UsageError

DEVICES: tuple[type[Devices], ...] = (btf_tracepoints.BtfTracepoints, raw_tracepoints.RawTracepoints)
INSIDE: tuple[type[Inside], ...] = (netfilter_links.NetfilterLinks, fentry.Fentry, kprobes.Kprobes)
NAMES = tuple(each.name for each in (*DEVICES, *INSIDE))


def chosen(names: Sequence[str]) -> tuple[tuple[type[Devices], ...], tuple[type[Inside], ...]]:
    """The providers that may be used, in order, when only those of `names` may (of a family that is not named: all).

    Raises UsageError for a name that no provider has.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise UsageError(f"--hooks {unknown[0]}: no such kind of hook; there are {', '.join(NAMES)} (see netpath probes)")
    devices = tuple(each for each in DEVICES if each.name in names)
    inside = tuple(each for each in INSIDE if each.name in names)
    return devices or DEVICES, inside or INSIDE
