"""What `path` and `trace` show: golden renderings, narrow screens, hostile names."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from dataclasses import replace
from pathlib import Path as File
from typing import Any

import pytest

from netpath.model.packet import Icmp, Icmpv6, Ipv4, Ipv6, Opaque, Tcp, Udp, Vlan
from netpath.model.path import Prediction, Trace
from netpath.render.hops import packet, prediction_text, trace_text
from netpath.render.text import Screen, seen
from tests.render.documents import OUTER, SIX, delivered, dropped, hops
from tests.render.test_text import HOSTILE

GOLDEN = File(__file__).parent / "golden"
PLAIN, NARROW, COLOUR = Screen(False, 200), Screen(False, 80), Screen(True, 200)


def prediction() -> Prediction:
    way = tuple(
        replace(hop, status="uncertain" if hop.index == 3 else "predicted", since_start_ns=None, segment_ns=None, note=note)
        for hop in hops()
        for note in ["an XDP program may redirect the packet here" if hop.index == 3 else None]
    )
    whole = delivered().paths[0]
    path = replace(
        whole,
        outcome="uncertain",
        hops=way,
        probes=None,
        overhead=None,
        uncertain=("flannel.1 runs an XDP program, which netpath does not evaluate",),
    )
    return Prediction("uncertain", (path,), delivered().path_mtu)


RENDERINGS = {
    "delivered": lambda: trace_text(delivered(), PLAIN),
    "delivered-wide": lambda: trace_text(delivered(), PLAIN, wide=True),
    "delivered-narrow": lambda: trace_text(delivered(), NARROW),
    "dropped": lambda: trace_text(dropped(), PLAIN),
    "dropped-narrow": lambda: trace_text(dropped(), NARROW),
    "dropped-colour": lambda: trace_text(dropped(), COLOUR),
    "predicted": lambda: prediction_text(prediction(), PLAIN),
    "predicted-narrow": lambda: prediction_text(prediction(), NARROW),
}


@pytest.mark.parametrize("name", RENDERINGS)
def test_golden(name: str) -> None:
    """NETPATH_GOLDEN=write makes the files anew; look at the difference before it is committed."""
    path, text = GOLDEN / f"{name}.txt", RENDERINGS[name]()
    if os.environ.get("NETPATH_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("headers", [OUTER, SIX], ids=["vxlan", "ipv6"])
def test_no_line_is_wider_than_a_narrow_screen(width: int, headers: Any) -> None:
    long = "cni-4f5b2d58-9e4e-2d0e-1c8f-0123456789ab-and-a-name-that-goes-on-for-longer-than-any-screen"
    way = tuple(
        replace(
            hop,
            headers=headers,
            status="unexpected",
            note="seen, although the bridge should have flooded it to the other ports of the VLAN only",
            netns=replace(hop.netns, name=long),
            node=long,
            device=replace(hop.device, name="abcdefghijklmno"),
        )
        for hop in hops()
    )
    text = trace_text(delivered(way=way), Screen(False, width)) + trace_text(dropped(), Screen(False, width))
    assert max(map(seen, text.splitlines())) <= width
    assert "abcdefghijklmno" in text and long in text.replace("\n", "").replace(" ", "")


def test_a_terminal_is_narrow_only_if_the_table_does_not_fit() -> None:
    whole = trace_text(delivered(), PLAIN)
    widest = max(map(seen, whole.splitlines()[:8]))
    assert trace_text(delivered(), Screen(True, widest)).count("NETNS") == 1
    assert trace_text(delivered(), Screen(True, widest - 1)).count("NETNS") == 0


def test_colours_change_nothing_but_colours() -> None:
    import re

    for made in (delivered(), dropped()):
        assert re.sub("\x1b\\[[0-9]*m", "", trace_text(made, COLOUR)) == trace_text(made, PLAIN)
        assert "\x1b" not in trace_text(made, PLAIN)


def _poisoned(value: Any) -> Any:
    """The same document with every text that comes from the system replaced by a hostile one."""
    keep = {"direction", "outcome", "status", "verdict", "proto", "basis", "src", "dst", "to", "kind", "hook", "flags"}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {
            field.name: _poisoned(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.name not in keep or not isinstance(getattr(value, field.name), str)
        }
        return replace(value, **changes)
    if isinstance(value, tuple):
        return tuple(_poisoned(item) for item in value)
    return HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("screen", [PLAIN, NARROW], ids=["plain", "narrow"])
@pytest.mark.parametrize("wide", [False, True])
def test_hostile_names_never_reach_the_terminal(screen: Screen, wide: bool) -> None:
    made: list[Trace] = [_poisoned(delivered()), _poisoned(dropped())]
    texts = [trace_text(each, screen, wide=wide) for each in made]
    texts.append(prediction_text(_poisoned(prediction()), screen, wide=wide))
    for text in texts:
        assert "\\x1b" in text
        bad = {
            character
            for character in text
            if character != "\n" and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn", "Zl")
        }
        assert not bad, bad


def test_hostile_names_make_no_lines_of_their_own() -> None:
    endless = Screen(False, 5000)
    assert trace_text(_poisoned(delivered()), endless).count("\n") == trace_text(delivered(), endless).count("\n")


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ((Ipv4("a", "b"), Udp(1, None)), "a:1 > b:* udp"),
        ((Ipv6("::1", "::2"), Tcp(1, 2, "SA")), "[::1]:1 > [::2]:2 tcp SA"),
        ((Ipv4("a", "b"), Icmp(8)), "a > b icmp echo"),
        ((Ipv4("a", "b"), Icmp(3, 3)), "a > b icmp unreachable code 3"),
        ((Ipv6("::1", "::2"), Icmpv6(129)), "::1 > ::2 icmpv6 echo reply"),
        ((Ipv4("a", "b"), Ipv4("c", "d"), Udp(1, 2)), "a > b ipip | c:1 > d:2 udp"),
        ((Ipv4("a", "b"), Udp(1, 8285), Ipv4("c", "d"), Udp(1, 2)), "a > b udp/8285 | c:1 > d:2 udp"),
        ((Vlan(7), Ipv4("a", "b")), "vlan 7 | a > b"),
        ((Ipv4("a", "b"), Opaque("sle\x1beve", 9)), "a > b sle\\x1beve"),
        ((), ""),
    ],
)
def test_packets(headers: Any, text: str) -> None:
    assert packet(headers) == text


def test_a_divergence_is_marked_and_counted() -> None:
    text = trace_text(dropped(), PLAIN)
    assert "MISSING" in text and text.splitlines()[-1] == "verdict: dropped, NOT as predicted (delivered): 1 hop differs; PARTIAL"
    elsewhere = delivered(prediction=Prediction("dropped", (), None))
    assert "NOT as predicted (dropped); COMPLETE" in trace_text(elsewhere, PLAIN)
