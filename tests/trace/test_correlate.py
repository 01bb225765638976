from __future__ import annotations

import random
from dataclasses import replace

from netpath.model.event import Event
from netpath.model.index import SnapshotIndex
from netpath.model.packet import Ethernet, Icmp, Ipv4, Tcp
from netpath.trace.correlate import correlate
from tests.trace import scene

INDEX = SnapshotIndex(scene.snapshot())


def test_the_hops_of_a_delivered_probe_in_order() -> None:
    (journey,) = correlate(scene.forward(), INDEX, [1])
    assert journey.forward.outcome == "delivered"
    assert scene.keys(journey.forward.hops) == scene.HOPS
    assert journey.forward.end is not None and journey.forward.end.hook == "socket"
    assert journey.forward.copies == 0
    assert journey.back is None


def test_events_may_come_in_any_order_and_of_many_probes() -> None:
    events = [item for number in range(1, 6) for item in scene.forward(start=1000 * number, sequence=number)]
    random.Random(1).shuffle(events)
    journeys = correlate(events, INDEX, range(1, 6))
    assert [journey.sequence for journey in journeys] == [1, 2, 3, 4, 5]
    assert all(scene.keys(journey.forward.hops) == scene.HOPS for journey in journeys)


def test_the_decapsulating_nodes_own_local_in_is_no_delivery() -> None:
    events = scene.forward()[:9]
    (journey,) = correlate(events, INDEX, [1])
    assert journey.forward.outcome == "lost"
    assert scene.keys(journey.forward.hops) == scene.HOPS[:8]


def test_a_probe_of_which_nothing_was_seen_is_lost_before_the_first_hop() -> None:
    (journey,) = correlate([], INDEX, [4])
    assert (journey.sequence, journey.forward.outcome, journey.forward.hops) == (4, "lost", ())


def test_a_refused_send_is_dropped_with_its_errno() -> None:
    (journey,) = correlate([], INDEX, [4], {4: 90})
    assert (journey.forward.outcome, journey.forward.send_error) == ("dropped", 90)


def test_copies_of_a_flooding_bridge_are_counted_and_left_out() -> None:
    events = scene.forward()
    flooded = [
        replace(events[11], ifindex=6, time_ns=events[11].time_ns + 1, skb=8),
        replace(events[11], hook="rx", netns=999, ifindex=2, time_ns=events[11].time_ns + 2, skb=8),
        replace(events[11], hook="drop", netns=999, ifindex=2, time_ns=events[11].time_ns + 3, skb=8, reason="OTHERHOST"),
    ]
    (journey,) = correlate(events + flooded, INDEX, [1])
    assert scene.keys(journey.forward.hops) == scene.HOPS
    assert journey.forward.outcome == "delivered"
    assert journey.forward.copies == 2


def test_a_drop_ends_the_way_where_it_happened() -> None:
    events = scene.forward()[:3]
    drop = scene.event(1400, "drop", scene.NODE1, 4, (Ethernet(), *scene.inner()), reason="IP_INNOROUTES")
    (journey,) = correlate([*events, drop], INDEX, [1])
    assert journey.forward.outcome == "dropped"
    assert journey.forward.end == drop
    assert scene.keys(journey.forward.hops) == scene.HOPS[:3]


def _icmp_error(time_ns: int, code: int) -> Event:
    headers = (Ethernet(), Ipv4("10.244.2.2", "10.244.1.2", length=120), Icmp(3, code), *scene.inner())
    return scene.event(time_ns, "tx", scene.POD2, 2, headers, skb=9, role="error")


def test_a_closed_port_rejects() -> None:
    events = scene.forward()[:14]
    drop = replace(events[-1], hook="drop", time_ns=3000, reason="NO_SOCKET")
    (journey,) = correlate([*events, drop, _icmp_error(3100, 3)], INDEX, [1])
    assert journey.forward.outcome == "rejected"
    assert journey.forward.end == drop
    assert journey.back is not None


def test_what_was_answered_was_not_dropped_whatever_the_responder_did_with_it() -> None:
    events = scene.forward()[:14]
    spent = replace(events[-1], hook="drop", time_ns=3000, reason="NOT_SPECIFIED")
    headers = (Ethernet(), Ipv4("10.244.2.2", "10.244.1.2", length=92), Icmp(0))
    answer = scene.event(2900, "tx", scene.POD2, 2, headers, skb=9, role="answer")
    (answered,) = correlate([*events, spent, answer], INDEX, [1])
    (silent,) = correlate([*events, spent], INDEX, [1])
    assert (answered.forward.outcome, silent.forward.outcome) == ("delivered", "dropped")


def test_an_icmp_error_without_the_drop_event_still_tells_refused_from_lost() -> None:
    events = scene.forward()[:13]
    (refused,) = correlate([*events, _icmp_error(3100, 3)], INDEX, [1])
    (unreachable,) = correlate([*events, _icmp_error(3100, 1)], INDEX, [1])
    assert (refused.forward.outcome, unreachable.forward.outcome) == ("rejected", "lost")


def test_an_echoed_payload_is_the_way_back() -> None:
    events = scene.forward()
    echoed = (Ethernet(), *scene.inner("10.244.2.2", "10.244.1.2", 7777, 40001))
    back = [
        scene.event(5000, "tx", scene.POD2, 2, echoed, skb=11),
        scene.event(5100, "rx", scene.NODE2, 5, echoed, skb=11),
        scene.event(5200, "rx", scene.NODE2, 4, echoed, skb=11),
    ]
    (journey,) = correlate([*events, *back], INDEX, [1])
    assert scene.keys(journey.forward.hops) == scene.HOPS
    assert journey.forward.outcome == "delivered"
    assert journey.back is not None
    assert scene.keys(journey.back.hops) == scene.keys(tuple(back))
    assert journey.back.outcome == "lost"


def test_a_proxy_that_sends_the_payload_on_is_no_answer() -> None:
    """docker-proxy: delivered to a socket on the node, then sent from there to the container with other addresses."""
    first = scene.forward()[:3]
    packet = (Ethernet(), *scene.inner())
    proxied = (Ethernet(), *scene.inner("10.244.1.1", "10.244.1.9", 50000, 80))
    events = [
        *first,
        scene.event(1300, "local_in", scene.NODE1, 4, packet),
        scene.event(1400, "socket", scene.NODE1, 4, packet),
        scene.event(2000, "tx", scene.NODE1, 4, proxied, skb=20),
        scene.event(2100, "tx", scene.NODE1, 6, proxied, skb=20),
        scene.event(2200, "rx", 999, 2, proxied, skb=20),
        scene.event(2300, "socket", 999, 2, proxied, skb=20),
    ]
    (journey,) = correlate(events, INDEX, [1])
    assert journey.back is None
    assert journey.forward.outcome == "delivered"
    assert scene.keys(journey.forward.hops) == [*scene.HOPS[:3], ("tx", scene.NODE1, 4), ("tx", scene.NODE1, 6), ("rx", 999, 2)]


def test_a_reset_rejects_and_a_syn_ack_does_not() -> None:
    syn = (Ethernet(), Ipv4("10.244.1.2", "10.244.2.2", length=60), Tcp(40001, 80, "S", seq=5))
    way = [replace(item, headers=syn) for item in scene.forward() if item.hook != "socket" and item.ip_length == 92]
    for flags, outcome in (("RA", "rejected"), ("SA", "delivered")):
        answer = (Ethernet(), Ipv4("10.244.2.2", "10.244.1.2", length=60), Tcp(80, 40001, flags, ack=6))
        reply = scene.event(9000, "tx", scene.POD2, 2, answer, skb=12, role="answer")
        (journey,) = correlate([*way, reply], INDEX, [1])
        assert journey.forward.outcome == outcome
        assert journey.back is not None and scene.keys(journey.back.hops) == [("tx", scene.POD2, 2)]
