"""What a way through user-space processes is made of: who they are, and where the packet crosses the kernel's boundary. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from netpath.model.packet import Headers, Tcp, Udp
from netpath.model.path import Delivery, Path
from netpath.trace.attribute import Step

LAB_RELAY = "lab relay"
"""What the tunnel processes of labs call themselves (netpath/lab/relay.c)."""


def named(spent: Sequence[Step], expected: Path | None) -> tuple[Step, ...]:
    """The steps, those through user space with the process that prediction found there, if it found as many."""
    foreseen = [stage.detail.get("process") for stage in expected.stages if stage.stage == "userspace"] if expected else []
    crossed = [step for step in spent if step.stage == "userspace"]
    if len(foreseen) != len(crossed):
        return tuple(spent)
    names = {step.to_hop: name for step, name in zip(crossed, foreseen, strict=True)}
    return tuple(
        replace(step, detail={**step.detail, "process": names[step.to_hop]}) if names.get(step.to_hop) else step for step in spent
    )


def boundary(path: Path, spent: Sequence[Step], spaces: Sequence[str], headers: Headers) -> list[dict[str, Any]]:
    """Each time that the packet, or a copy of it, went from a process into the kernel or out of it, in order.

    `spaces` are the names of the hops' namespaces, `headers` the packet's at its first hop. What the kernel answers by itself (a
    handshake, an echo request) comes from no process; a handshake is not handed to one either.
    """
    protocol = next((header.proto for header in headers if isinstance(header, Udp | Tcp)), "icmp")
    found: list[dict[str, Any]] = []
    if path.direction == "forward" or protocol == "udp":
        found.append({"netns": spaces[0], "process": None, "into": "kernel"})
    for step in spent:
        if step.stage == "userspace":
            here = {"netns": spaces[step.to_hop - 1], "process": step.detail.get("process")}
            found += [{**here, "into": "process"}, {**here, "into": "kernel"}]
    if protocol != "tcp" and _to_process(path.delivery):
        assert path.delivery is not None
        found.append({"netns": path.delivery.netns.name, "process": path.delivery.process, "into": "process"})
    return found


def _to_process(delivery: Delivery | None) -> bool:
    return delivery is not None and delivery.to in ("socket", "proxy")


def imitations(paths: Iterable[Path]) -> list[str]:
    """What to say of figures that are a lab relay's, one line for each component that it stands for."""
    found: set[str] = set()
    for path in paths:
        kinds = {hop.index: hop.device.kind for hop in path.hops}
        for stage in path.stages:
            if stage.stage == "userspace" and stage.detail.get("process") == LAB_RELAY:
                found.add("flanneld" if "tun" in (kinds.get(stage.from_hop), kinds.get(stage.to_hop)) else "weaver")
    return [f"{LAB_RELAY}, not {real}: the times in user space are those of the lab's own program" for real in sorted(found)]
