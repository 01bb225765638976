"""The walk as a whole: a probe from its socket to its end, and the answer back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from netpath.model.index import SnapshotIndex
from netpath.model.packet import Flow
from netpath.model.path import Path, PathMtu, Prediction
from netpath.model.snapshot import DeviceId, Namespace, Snapshot
from netpath.netfilter.types import Evaluator
from netpath.predict.endpoint import Endpoint
from netpath.predict.engine import Finished, Walk, no_rules
from netpath.predict.host import EvaluatorFactory, Host
from netpath.predict.layer2 import Layer2
from netpath.predict.layer3 import Layer3
from netpath.predict.packet import answer_to, from_flow
from netpath.predict.switch import Switch
from netpath.predict.tunnels import Tunnels
from netpath.predict.userspace import UserSpace


class Walker(Layer2, Layer3, Tunnels, UserSpace, Switch, Endpoint):
    """All layers; one instance for each prediction."""


def rulesets(namespace: Namespace) -> Evaluator:
    """The evaluator of a namespace's own rulesets."""
    try:
        from netpath.netfilter import evaluator
    except ImportError:
        return no_rules(namespace)
    return evaluator(namespace)


def predict(
    snapshot: Snapshot,
    flow: Flow,
    *,
    index: SnapshotIndex | None = None,
    direction: str = "forward",
    evaluators: EvaluatorFactory = rulesets,
) -> Prediction:
    """All ways that the packet of `flow` may take through `snapshot`, likeliest first.

    Pure: nothing is opened, sent or timed. Never raises for odd or partial snapshots: what can't be told ends a path as
    ``uncertain``, with the reason. `evaluators` gives the rulesets of a namespace.
    """
    return _prediction(_forward(index or SnapshotIndex(snapshot), flow, direction, evaluators))


def predict_reply(
    snapshot: Snapshot,
    flow: Flow,
    path: Path,
    *,
    index: SnapshotIndex | None = None,
    evaluators: EvaluatorFactory = rulesets,
) -> Prediction:
    """The way of the answer to a delivered packet of `flow` that went along `path` (of `predict` or observed).

    Connections that the way there made in each namespace's conntrack translate the answer back. A UDP answer is the same
    payload sent back, a TCP answer a SYN-ACK. No paths when `path` was not delivered.
    """
    index = index or SnapshotIndex(snapshot)
    reached = [each for each in _forward(index, flow, "forward", evaluators) if each.path.outcome == "delivered" and each.packet]
    if not reached:
        return Prediction("uncertain", (), None)
    wanted = _keys(path)

    def likeness(each: Finished) -> tuple[int, int, float]:
        """Ways of the same hops differ in what was made of the packet."""
        ours, theirs = ([item.after for item in way.translations] for way in (each.path, path))
        same = sum(one == other for one, other in zip(ours, theirs, strict=False)) - abs(len(ours) - len(theirs))
        return _likeness(_keys(each.path), wanted), same, each.path.share

    there = max(reached, key=likeness)
    assert there.packet is not None and there.netns is not None
    walker = Walker(index, evaluators)
    host = walker.host(there.netns)
    assert host is not None
    walk = Walk(direction="return", asker=flow.netns)
    walk.memory = {key: list(value) for key, value in there.walk.memory.items()}
    walk.learned = there.walk.learned.copy()
    walk.relays = list(there.walk.relays)
    answer = answer_to(there.packet, ttl=host.default_ttl(there.packet.family))
    _run(walker, walk, host, lambda: walker.send(walk, host, answer, source=answer.src))
    return _prediction(_merged(walker.finished))


def _forward(index: SnapshotIndex, flow: Flow, direction: str, evaluators: EvaluatorFactory) -> list[Finished]:
    walker = Walker(index, evaluators)
    walk = Walk(direction=direction, mark=flow.mark)
    host = walker.host(flow.netns)
    if host is None:
        walk.doubt(f"the namespace {flow.netns} is not in the snapshot")
        walker.end_unknown(walk, None, None)
        return walker.finished
    oif: int | None = None
    if flow.bound_device is not None:
        link = index.link_by_name(flow.netns, flow.bound_device)
        if link is None:
            walker.drop(walk, host, None, "IP_OUTNOROUTES", f"{host.name} has no device {flow.bound_device}")
            return walker.finished
        oif = link.ifindex
    packet = from_flow(flow, flow.src or "")
    _run(walker, walk, host, lambda: walker.send(walk, host, packet, source=flow.src, oif=oif))
    return _merged(walker.finished)


def _run(walker: Walker, walk: Walk, host: Host, start: Callable[[], None]) -> None:
    """Walk to the end. Text that should be an address and is none stops one way; the others count."""
    walker.todo.append(start)
    while walker.todo:
        try:
            walker.work()
        except (ValueError, KeyError) as error:
            lost = Walk(direction=walk.direction, uncertain=[f"the snapshot can't be followed: {error}"])
            walker.end_unknown(lost, host, None)


def _keys(path: Path) -> list[tuple[DeviceId, str]]:
    return [(DeviceId(hop.netns.inode, hop.device.ifindex), hop.direction) for hop in path.hops]


def _likeness(a: Sequence[object], b: Sequence[object]) -> int:
    """How many leading hops two ways share, less what differs in length."""
    same = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        same += 1
    return same * 2 - abs(len(a) - len(b))


def _merged(finished: list[Finished]) -> list[Finished]:
    """Branches that came to the same path in the end are one, with their shares added."""
    kept: dict[object, Finished] = {}
    for each in finished:
        path = each.path
        key = (path.outcome, path.hops, path.translations, path.drop, path.delivery, path.uncertain)
        known = kept.get(key)
        kept[key] = each if known is None else replace(known, path=replace(known.path, share=known.path.share + path.share))
    return sorted(kept.values(), key=lambda each: -each.path.share)


def _prediction(finished: list[Finished]) -> Prediction:
    paths = tuple(each.path for each in finished)
    outcomes = {path.outcome for path in paths}
    outcome = outcomes.pop() if len(outcomes) == 1 else ("mixed" if outcomes else "uncertain")
    return Prediction(outcome, paths, _path_mtu(finished[0]) if finished else None)


def _path_mtu(finished: Finished) -> PathMtu | None:
    """The largest IP packet that crosses the likeliest path whole."""
    if not finished.walk.limits or not finished.path.hops:
        return None
    hop, size = min(finished.walk.limits, key=lambda limit: (limit[1], limit[0]))
    return PathMtu(ip=size, payload=max(0, size - _headers(finished)), limited_by_hop=hop)


def _headers(finished: Finished) -> int:
    from netpath.model.packet import Ipv6, Tcp

    first = finished.path.hops[0].headers
    network = 40 if any(isinstance(header, Ipv6) for header in first) else 20
    return network + (20 if any(isinstance(header, Tcp) for header in first) else 8)


__all__ = ["Walker", "predict", "predict_reply", "rulesets"]
