"""Connections and their bindings: who is tracked, what a NAT rule sets up, and what it does to packets of both directions.

Semantics: net/netfilter/nf_nat_core.c (nf_nat_setup_info, get_unique_tuple, nf_nat_packet), nf_conntrack_core.c (resolve_normal_ct).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace

from netpath.model.path import RuleRef
from netpath.model.snapshot import ConntrackEntry, FlowTuple
from netpath.netfilter.state import Result, State
from netpath.netfilter.types import Connection, HookContext, PacketState, Rewrite

SOURCE_HOOKS = ("postrouting", "input")
WITH_PORTS = ("tcp", "udp", "sctp", "dccp", "udplite")
BRANCHES = 16
"""A range of at most this many addresses becomes one outcome for each; of a larger one the first stands for all, uncertain."""


def inverted(flow: FlowTuple) -> FlowTuple:
    return FlowTuple(flow.destination, flow.source, flow.dport, flow.sport)


def flow_of(packet: PacketState) -> FlowTuple:
    return FlowTuple(packet.src, packet.dst, packet.sport, packet.dport)


def tracked(packet: PacketState) -> Connection | None:
    """The packet's connection, if conntrack has it: an untracked packet has none (nf_ct_get gives NULL)."""
    connection = packet.connection
    return None if connection is None or connection.state in ("untracked", "invalid") else connection


def untrack(packet: PacketState) -> PacketState:
    """NOTRACK: only what conntrack has not seen yet (xt_CT.c, nft_notrack_eval)."""
    if packet.connection is not None:
        return packet
    flow = flow_of(packet)
    return replace(packet, connection=Connection("untracked", packet.protocol, flow, inverted(flow)))


def track(packet: PacketState, context: HookContext, entries: Sequence[ConntrackEntry]) -> PacketState:
    """nf_conntrack_in: the connection it is known to belong to, else a new one, or none for what can't begin one."""
    if packet.connection is not None:
        return packet
    found = context.recall(packet)
    if found is None:
        found = next((known for entry in entries if (known := _recalled(entry, packet)) is not None), None)
    if found is not None:
        return replace(packet, connection=found)
    flow = flow_of(packet)
    state = "new"
    if packet.protocol == "tcp":
        flags = set(packet.tcp_flags)
        # With nf_conntrack_tcp_loose (the default) a bare ACK or data picks a connection up; these never do (tcp_conntracks).
        if {"S", "A"} <= flags or flags & {"F", "R"}:
            state = "invalid"
    elif packet.protocol == "icmp" and packet.icmp_type is not None and packet.icmp_type not in (8, 13, 15, 17):
        state = "invalid"
    elif packet.protocol == "icmpv6" and packet.icmp_type is not None:
        if packet.icmp_type in (130, 131, 132, 133, 134, 135, 136, 137, 143):
            state = "untracked"
        elif packet.icmp_type not in (128, 139):
            state = "invalid"
    return replace(packet, connection=Connection(state, packet.protocol, flow, inverted(flow)))


def _recalled(entry: ConntrackEntry, packet: PacketState) -> Connection | None:
    """The connection of an entry that the packet belongs to, in the direction it goes."""
    if entry.family != packet.family or entry.protocol != packet.protocol or entry.zone:
        return None
    for direction, flow in (("original", entry.original), ("reply", entry.reply)):
        if flow.source != packet.src or flow.destination != packet.dst:
            continue
        if packet.protocol in WITH_PORTS and (packet.sport is None or (flow.sport, flow.dport) != (packet.sport, packet.dport)):
            continue
        flags = {flag.lower().strip("[]") for flag in entry.flags}
        fresh = direction == "original" and "unreplied" in flags
        return Connection(
            state="new" if fresh else "established",
            protocol=entry.protocol,
            original=entry.original,
            reply=entry.reply,
            direction=direction,
            mark=entry.mark,
            source_done=True,
            destination_done=True,
            assured=True if "assured" in flags else False if "unreplied" in flags or packet.protocol not in WITH_PORTS else None,
            known=True,
        )
    return None


EXPECTED, SEEN_REPLY, ASSURED, CONFIRMED, SOURCE_NAT, DESTINATION_NAT = 1, 2, 4, 8, 16, 32
"""Bits of a connection's status (enum ip_conntrack_status)."""


def status(connection: Connection) -> tuple[int, int]:
    """The status bits that are set, and those that may be: what neither the entry nor the packet tells.

    The hooks see a first packet before it is confirmed, and a first answer after SEEN_REPLY is set (nf_conntrack_in).
    """
    bits = unsure = 0
    if connection.known or connection.confirmed or connection.state != "new":
        bits |= CONFIRMED
    if connection.state == "established":
        bits |= SEEN_REPLY
    if connection.assured is None:
        unsure |= ASSURED
    elif connection.assured:
        bits |= ASSURED
    if connection.state == "related" or connection.known:
        unsure |= EXPECTED  # that it was expected by another one is not in a dump of the entries
    original, reply = connection.original, connection.reply
    if (original.source, original.sport) != (reply.destination, reply.dport):
        bits |= SOURCE_NAT
    if (original.destination, original.dport) != (reply.source, reply.sport):
        bits |= DESTINATION_NAT
    return bits, unsure


def bound(state: State, source_side: bool) -> bool:
    connection = state.packet.connection
    return connection is not None and (connection.source_done if source_side else connection.destination_done)


def bind(
    state: State,
    context: HookContext,
    entries: Sequence[ConntrackEntry],
    rule: RuleRef,
    kind: str,
    addresses: tuple[str, str] | None,
    ports: tuple[int, int] | None,
    any_port: bool,
) -> list[Result]:
    """What a NAT target sets up (nf_nat_setup_info): one result for each address it may take. Applied at the end of the nat step."""
    connection = tracked(state.packet)
    if connection is None:
        return [Result("accept", state, rule)]
    choices: list[str | None] = [None]
    if addresses is not None:
        try:
            low, high = (ipaddress.ip_address(end) for end in addresses)
            count = int(high) - int(low) + 1
        except ValueError:
            return [Result("accept", state.doubting(f"an address that is not one in {rule.text!r}"), rule)]
        if low.version != high.version or low.version != state.packet.family or count < 1:
            return [Result("accept", state.doubting(f"an address of the wrong kind in {rule.text!r}"), rule)]
        if count > BRANCHES:
            state = state.doubting(f"which address of {low}-{high} the kernel takes for {rule.text!r}")
            count = 1
        choices = [str(low + step) for step in range(count)]
    source_side = context.hook in SOURCE_HOOKS
    results: list[Result] = []
    for address in choices:
        reply = connection.reply
        if source_side:
            reply = replace(reply, destination=address or reply.destination)
            kept = reply.dport
            port = _port(ports, kept, any_port, ports is None and _clashes(connection, reply, entries))
            changed = replace(connection, reply=replace(reply, dport=port), source_done=True, source_rule=rule, source_kind=kind)
        else:
            reply = replace(reply, source=address or reply.source)
            # --random-fully applies to source ports; for a destination without ports nothing is chosen (nf_nat_l4proto_unique_tuple).
            port = reply.sport if ports is None else _port(ports, reply.sport, any_port, False)
            changed = replace(
                connection, reply=replace(reply, sport=port), destination_done=True, destination_rule=rule, destination_kind=kind
            )
        chosen = state.times(1 / len(choices))
        results.append(Result("accept", replace(chosen, packet=replace(chosen.packet, connection=changed)), rule))
    return results


def _port(ports: tuple[int, int] | None, kept: int | None, any_port: bool, clash: bool) -> int | None:
    """The port after translation (get_unique_tuple): the only one, the old one where it will do, else one only the kernel knows."""
    if ports is None:
        return None if any_port or clash else kept
    low, high = ports
    if low == high:
        return low
    return kept if not any_port and kept is not None and low <= kept <= high else None


def _clashes(connection: Connection, reply: FlowTuple, entries: Sequence[ConntrackEntry]) -> bool:
    """Whether another connection already answers to the tuple this one would get: the kernel then takes another port."""
    return any(
        entry.protocol == connection.protocol
        and (entry.reply == reply or entry.original == reply)
        and entry.original != connection.original
        for entry in entries
    )


def settle(state: State, source_side: bool) -> State:
    """Rewrite the packet as its connection's binding says (nf_nat_packet); without a rule the binding is a null binding."""
    packet, connection = state.packet, state.packet.connection
    assert connection is not None
    original = connection.direction == "original"
    if original and source_side:
        connection = replace(connection, source_done=True)
    elif original:
        connection = replace(connection, destination_done=True)
    # The packet looks after both translations like the inverse of the other direction's tuple.
    seen = inverted(connection.reply) if original else inverted(connection.original)
    before = flow_of(packet)
    if source_side:
        after = FlowTuple(seen.source, before.destination, seen.sport, before.dport)
    else:
        after = FlowTuple(before.source, seen.destination, before.sport, seen.dport)
    if packet.protocol not in WITH_PORTS:
        after = replace(after, sport=before.sport, dport=before.dport)
    changed = replace(packet, connection=connection, src=after.source, dst=after.destination, sport=after.sport, dport=after.dport)
    if after == before:
        return replace(state, packet=changed)
    # For a reply the source side undoes the destination's binding, and the other way round (IPS_NAT_MASK).
    by_source = source_side if original else not source_side
    kind = connection.source_kind if by_source else connection.destination_kind
    rule = connection.source_rule if by_source else connection.destination_rule
    rewrite = Rewrite(kind, not original, before, after, rule)
    return replace(state, packet=changed, rewrites=(*state.rewrites, rewrite))
