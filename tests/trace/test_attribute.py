from __future__ import annotations

from netpath.model.packet import Ethernet, Icmp, Ipv4, Udp
from netpath.model.path import AddressPair, RuleRef, Translation
from netpath.trace.attribute import Place, encapsulation, endpoint, steps, translations
from netpath.trace.correlate import FlowKey
from tests.trace import scene

HOPS = [item for item in scene.forward() if item.hook in ("tx", "rx")]
PLACES = [
    Place("veth"),
    Place("veth", 4),
    Place("bridge"),
    Place("vxlan"),
    Place("veth"),
    Place("veth", 2),
    Place("veth", 2),
    Place("veth"),
    Place("vxlan"),
    Place("bridge"),
    Place("veth", 4),
    Place("veth"),
]


def test_the_stages_of_a_vxlan_path() -> None:
    found = steps(HOPS, PLACES)
    assert [step.stage for step in found] == [
        "veth",  # pod eth0 -> host veth
        "bridge",  # host veth -> cni0
        "other",  # cni0 -> flannel.1: routing and rules
        "encap",
        "veth",
        "bridge",  # the fabric's, port to port
        "veth",
        "decap",
        "other",
        "bridge",
        "veth",
    ]
    encap, decap = found[3], found[7]
    assert (encap.bytes, encap.detail) == (50, {"kind": "vxlan", "vni": 1})
    assert (decap.bytes, decap.detail) == (-50, {"kind": "vxlan", "vni": 1})
    assert sum(step.bytes for step in found) == 0


def test_tunnels_are_told_apart() -> None:
    inner = scene.inner()
    outer = Ipv4("192.168.50.11", "192.168.50.12")
    assert encapsulation(inner) is None
    assert encapsulation(scene.wrapped(inner)) == "vxlan"
    assert encapsulation((outer, *inner)) == "ipip"
    assert encapsulation((outer, Udp(8285, 8285), *inner)) == "udp"
    assert encapsulation((outer, Icmp(3, 3), *inner)) is None


def packet(src: str, dst: str, sport: int, dport: int) -> tuple[Ethernet, Ipv4, Udp]:
    return Ethernet(), Ipv4(src, dst, length=92), Udp(sport, dport)


def test_a_destination_and_a_source_translation_in_one_step() -> None:
    before = scene.event(1, "rx", 2, 5, packet("10.0.0.2", "10.96.0.10", 4000, 53))
    after = scene.event(2, "tx", 2, 3, packet("10.0.1.1", "10.0.2.9", 61000, 5353))
    rule = RuleRef("-A KUBE-SEP-X -j DNAT", "nat", "KUBE-SEP-X", "default/dns")
    predicted = [
        Translation(
            2, "dnat", False, AddressPair("10.0.0.2:4000", "10.96.0.10:53"), AddressPair("10.0.0.2:4000", "10.0.2.9:5353"), rule
        ),
        Translation(
            2, "masquerade", False, AddressPair("10.0.0.2:4000", "10.0.2.9:5353"), AddressPair("10.0.1.1:*", "10.0.2.9:5353"), None
        ),
    ]
    dnat, snat = translations([before, after], predicted, reverse=False)
    assert (dnat.kind, dnat.hop, dnat.before.dst, dnat.after.dst, dnat.rule) == ("dnat", 2, "10.96.0.10:53", "10.0.2.9:5353", rule)
    assert (snat.kind, snat.before.src, snat.after.src) == ("masquerade", "10.0.0.2:4000", "10.0.1.1:61000")
    assert dnat.conntrack is None


def test_a_translation_that_nothing_foresaw_has_no_rule_but_may_be_confirmed() -> None:
    before = scene.event(1, "rx", 2, 5, packet("10.0.0.2", "10.96.0.10", 4000, 53))
    after = scene.event(2, "tx", 2, 3, packet("10.0.0.2", "10.0.2.9", 4000, 5353))
    entry = (FlowKey("10.0.0.2", "10.96.0.10", 4000, 53), FlowKey("10.0.2.9", "10.0.0.2", 5353, 4000))
    (found,) = translations([before, after], (), reverse=False, confirmed=[entry])
    assert (found.kind, found.rule, found.conntrack) == ("dnat", None, True)


def test_encapsulation_is_not_taken_for_translation() -> None:
    assert translations(HOPS, (), reverse=False) == ()


def test_endpoints_are_written_as_the_command_line_takes_them() -> None:
    assert endpoint("10.0.0.1", 80) == "10.0.0.1:80"
    assert endpoint("fd00::1", 80) == "[fd00::1]:80"
    assert endpoint("fd00::1", None) == "fd00::1"


def test_a_rewrite_before_the_first_device_and_after_the_last_shows_at_the_sockets() -> None:
    hop = scene.event(1, "tx", 2, 5, packet("10.0.1.1", "10.0.2.9", 4000, 5353))
    sent, received = FlowKey("10.0.1.1", "10.96.0.10", 4000, 53), FlowKey("10.0.1.1", "10.0.2.9", 4000, 9999)
    first, last = translations([hop], (), reverse=False, sent=sent, received=received)
    assert (first.hop, first.before.dst, first.after.dst) == (1, "10.96.0.10:53", "10.0.2.9:5353")
    assert (last.hop, last.before.dst, last.after.dst) == (1, "10.0.2.9:5353", "10.0.2.9:9999")


def test_what_a_process_sent_anew_is_one_rewrite_of_its_own() -> None:
    before = scene.event(1, "rx", 2, 5, packet("172.17.0.3", "192.168.50.11", 4000, 12346))
    after = scene.event(2, "tx", 2, 5, packet("172.17.0.1", "172.17.0.2", 5000, 7071))
    (found,) = translations([before, after], (), reverse=False, copied=(2,))
    assert (found.kind, found.before.src, found.after.dst, found.conntrack) == ("proxy", "172.17.0.3:4000", "172.17.0.2:7071", None)
    (step,) = steps([before, after], [Place("bridge"), Place("bridge")], copied=(2,))
    assert step.stage == "userspace"


def test_an_entry_of_another_connection_confirms_nothing() -> None:
    before = scene.event(1, "rx", 2, 5, packet("10.0.0.2", "10.96.0.10", 4000, 53))
    after = scene.event(2, "tx", 2, 3, packet("10.0.0.2", "10.0.2.9", 4000, 5353))
    other = (FlowKey("10.0.0.2", "10.96.0.10", 4000, 53), FlowKey("10.0.2.8", "10.0.0.2", 5353, 4000))
    (found,) = translations([before, after], (), reverse=False, confirmed=[other])
    assert found.conntrack is None
