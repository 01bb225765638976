"""Datapaths beside each other: what is said about them, how it is shown, and two of them for real."""

from __future__ import annotations

import os
import re
import secrets
import signal
import statistics
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from netpath import lab
from netpath.errors import MissingError, NetpathError, UsageError
from netpath.lab import compare
from netpath.lab.compare import Claim, Comparison, ModeResult, Ratio
from netpath.measure import load
from netpath.measure.client import Sender
from netpath.measure.load import Route, Slice
from netpath.measure.result import StageShare
from netpath.measure.station import Station
from netpath.render.compare import comparison_html, comparison_markdown, comparison_text
from netpath.render.measure import bits, stage_line
from netpath.render.text import Screen
from tests.bench.compare import agreement
from tests.cli import contract
from tests.cli.command import netpath, one_line


def result(mode: str, *, rtt: float = 1.2, tcp: float = 0.9, spread: float = 0.02, **more: Any) -> ModeResult:
    settings: dict[str, Any] = {
        "summary": "a datapath",
        "real_parts": "all of it",
        "one_way_p50": 9_810.0,
        "one_way_p99": 20_000.0,
        "one_way_new_p50": 15_000.0,
        "one_way_ratio": Ratio(1.3, (1.25, 1.35)),
        "rtt_p50": 24_000.0,
        "rtt_ratio": Ratio(rtt, (rtt - spread, rtt + spread)),
        "rtt_to_hostgw": None,
        "tcp_bits_per_second": 4.2e9,
        "tcp_ratio": Ratio(tcp, (tcp - spread, tcp + spread)),
        "tcp_to_hostgw": None,
        "cpu_ratio": 1.4,
        "packet_cpu_ns": 9_000.0,
        "packet_cpu_ratio": 1.6,
        "encap_bytes": 0,
        "encap_ns": None,
        "nat_established_ns": None,
        "nat_new_ns": None,
        "translations": 0,
        "crossings": 0,
        "routes_per_node": 4,
        "stages": (StageShare("bridge", 6000.0, 0.6), StageShare("other", 4000.0, 0.4)),
        "complete": True,
    }
    return ModeResult(mode=mode, **{**settings, **more})


def verdict(results: list[ModeResult], mode: str) -> Claim:
    (found,) = [claim for claim in compare.claims(results) if claim.mode == mode]
    return found


@pytest.mark.parametrize(
    ("tcp", "spread", "expected"),
    [
        (0.75, 0.02, "holds here"),
        (0.81, 0.02, "holds here"),
        (0.85, 0.02, "does not hold here"),
        (0.60, 0.02, "does not hold here"),
        (0.75, 0.15, "undecided here"),
        (0.10, 0.15, "does not hold here"),
    ],
)
def test_a_claimed_loss(tcp: float, spread: float, expected: str) -> None:
    claim = verdict([result("flannel-vxlan", tcp=tcp, spread=spread)], "flannel-vxlan")
    assert claim.verdict == expected
    assert f"{tcp - 1:+.0%}" in claim.measured and "host sockets" in claim.basis and "single kernel with no NIC" in claim.basis
    assert ("than claimed by" in claim.measured) == (expected == "does not hold here")


def test_what_was_left_out_is_said_with_its_reason() -> None:
    said = {claim.mode: claim for claim in compare.claims([], {"docker": "no dockerd", "calico-ipip": "no kernel ipip"})}
    assert said["docker"].basis == "docker was left out: no dockerd"
    assert said["calico-ipip"].basis == "calico-ipip was left out: no kernel ipip"
    assert said["flannel-vxlan"].basis == "flannel-vxlan was not among the modes"


def test_how_far_a_claim_is_off() -> None:
    assert "less than claimed by 3%" in verdict([result("flannel-vxlan", tcp=0.85)], "flannel-vxlan").measured
    assert "more than claimed by 8%" in verdict([result("flannel-vxlan", tcp=0.60)], "flannel-vxlan").measured
    assert verdict([result("flannel-hostgw", tcp=0.9)], "flannel-hostgw").verdict == "holds here"
    assert verdict([result("flannel-hostgw", tcp=0.7)], "flannel-hostgw").verdict == "does not hold here"


def test_the_slowest_must_be_it_in_both() -> None:
    others = [result("flannel-vxlan", rtt=1.5, tcp=0.8)]
    assert verdict([result("flannel-udp", rtt=4, tcp=0.1), *others], "flannel-udp").verdict == "holds here"
    assert verdict([result("flannel-udp", rtt=4, tcp=0.9), *others], "flannel-udp").verdict == "does not hold here"
    assert verdict([result("flannel-udp", rtt=4, tcp=0.1)], "flannel-udp").verdict == "not measured"
    slower = verdict([result("flannel-udp", rtt=4, tcp=0.1), result("weave-sleeve", rtt=8, tcp=0.05)], "flannel-udp")
    assert slower.verdict == "does not hold here" and "slowest other is weave-sleeve with 8.00x" in slower.measured
    near = [result("flannel-udp", rtt=4, tcp=0.1, spread=0.05), result("weave-sleeve", rtt=3.95, tcp=0.12, spread=0.05)]
    assert verdict(near, "flannel-udp").verdict == "undecided here"


def test_alike_is_undecided_where_the_intervals_are_wide() -> None:
    pair = [result("calico-ipip", rtt=1.7, tcp=0.8, spread=0.2), result("calico-vxlan", rtt=1.5, tcp=0.8, spread=0.2)]
    assert verdict(pair, "calico-ipip").verdict == "undecided here"


@pytest.mark.parametrize(
    ("rtt", "tcp", "expected"), [(1.55, 0.82, "holds here"), (1.8, 0.8, "does not hold here"), (1.5, 0.6, "does not hold here")]
)
def test_alike_is_within_a_tenth(rtt: float, tcp: float, expected: str) -> None:
    pair = [result("flannel-ipip", rtt=rtt, tcp=tcp), result("flannel-vxlan", rtt=1.5, tcp=0.8)]
    assert verdict(pair, "flannel-ipip").verdict == expected
    assert verdict([*pair, result("calico-ipip")], "flannel-ipip").verdict == expected
    assert verdict(pair[:1], "calico-ipip").verdict == "not measured"


def test_what_cannot_be_built_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all modes one that the kernel lacks; one that was asked for, or broke, makes the result incomplete."""
    errors = {"flannel-vxlan": MissingError("no vxlan"), "bridge": NetpathError("out of\nmemory")}

    def build(mode: lab.Mode, stack: object) -> Any:
        raise errors.get(mode.name, MissingError("nothing here"))

    monkeypatch.setattr(compare, "_build", build)
    with pytest.raises(MissingError, match="no vxlan"):
        compare.run()
    with pytest.raises(NetpathError, match="out of"):
        compare.run(["bridge", "ptp"])


def test_rewrites_are_counted() -> None:
    assert verdict([result("docker", translations=2)], "docker").verdict == "does not hold here"
    assert verdict([result("docker", translations=3)], "docker").verdict == "holds here"
    assert {claim.verdict for claim in compare.claims([])} == {"not measured"}


def test_a_ratio_over_host_gateway_is_one_over_each_ones_own_host_sockets() -> None:
    one, other = compare.with_host_gateway([result("flannel-vxlan", rtt=1.8, tcp=0.6), result("flannel-hostgw", rtt=1.2, tcp=0.8)])
    assert one.rtt_to_hostgw == pytest.approx(1.5) and one.tcp_to_hostgw == pytest.approx(0.75)
    assert (other.rtt_to_hostgw, other.tcp_to_hostgw) == (1.0, 1.0)
    (alone,) = compare.with_host_gateway([result("flannel-vxlan")])
    assert alone.rtt_to_hostgw is None


def test_what_drifts_from_pair_to_pair_is_in_both() -> None:
    pairs = [(1.5 * base, float(base)) for base in (10, 100, 40, 7, 90)]
    found = compare.paired(pairs)
    assert found.value == pytest.approx(1.5) and found.ci95 == pytest.approx((1.5, 1.5))
    assert compare.paired(pairs[:2]).ci95 is None


def test_modes_are_chosen_once_and_must_exist() -> None:
    assert compare.chosen(()) == lab.MODES
    assert [mode.name for mode in compare.chosen(("ptp", "bridge", "ptp"))] == ["ptp", "bridge"]
    with pytest.raises(UsageError, match="'vxlan'"):
        compare.chosen(("ptp", "vxlan"))


HOSTILE = "<script>alert(1)</script>\x1b[31m|"


def made(**more: Any) -> Comparison:
    results = compare.with_host_gateway(
        [
            result(
                "flannel-vxlan",
                encap_bytes=50,
                encap_ns=4000.0,
                stages=(StageShare("encap", 7000.0, 0.7), StageShare(HOSTILE, 3000.0, 0.3)),
            ),
            result("flannel-hostgw"),
            result(HOSTILE, nat_new_ns=900.0, translations=2, crossings=1),
        ]
    )
    settings: dict[str, Any] = {
        "modes": results,
        "claims": compare.claims(results),
        "skipped": {"docker": HOSTILE},
        "incomplete": True,
        "rounds": 3,
        "caveat": compare.CAVEAT,
        "kernel": "6.18",
        "taken_at": "2026-11-23T17:00:00Z",
    }
    return Comparison(**{**settings, **more})


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> _Page:
    page = _Page()
    page.feed(text)
    return page


def widths(page: _Page) -> list[float]:
    styles = [attrs["style"] or "" for tag, attrs in page.seen if tag == "span"]
    return [float(found[1]) for style in styles if (found := re.search(r"width:([\d.]+)%", style))]


def test_the_page_is_whole_escaped_and_needs_nothing_else() -> None:
    text = comparison_html(made())
    page = read(text)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.seen} and "\x1b" not in text
    assert not [attrs for _, attrs in page.seen if {"src", "href"} & attrs.keys()] and "url(" not in text and "@import" not in text
    bars = [attrs for tag, attrs in page.seen if tag == "span"]
    assert len(bars) == 6
    # The third mode goes through a process: its bar has a scale of its own.
    assert widths(page) == [70, 30, 60, 40, 60, 40]
    assert "PARTIAL" not in text


def test_bars_are_in_order_of_length_and_their_parts_in_one_order() -> None:
    short = (StageShare("other", 1000.0, 0.25), StageShare("encap", 2000.0, 0.5), StageShare("bridge", 1000.0, 0.25))
    long = (StageShare("bridge", 6000.0, 0.75), StageShare("encap", 2000.0, 0.25))
    slow = (StageShare("userspace", 90_000.0, 1.0),)
    modes = (result("long", stages=long), result("short", stages=short), result("slow", stages=slow, crossings=1))
    text = comparison_html(made(modes=modes))
    assert text.index(">short<") < text.index(">long<") < text.index("user space, on a scale of its own") < text.index(">slow<")
    assert widths(read(text)) == [12.5, 25, 12.5, 75, 25, 100]
    titles = [attrs["title"] for tag, attrs in read(text).seen if tag == "span"]
    assert [(title or "").split()[0] for title in titles] == ["bridge", "encap", "other", "bridge", "encap", "userspace"]
    empty = read(comparison_html(made(modes=(result("none", stages=()),))))
    assert widths(empty) == []


def test_every_form_says_what_is_partial() -> None:
    partial = made(modes=tuple(replace(each, complete=each.mode != "flannel-hostgw") for each in made().modes))
    for text in (comparison_text(partial, Screen(False, 200)), comparison_markdown(partial), comparison_html(partial)):
        assert "PARTIAL: events were lost or hooks missing in flannel-hostgw" in text


def test_the_table_says_what_is_not_known() -> None:
    screen = Screen(False, 200)
    text = comparison_text(made(), screen)
    assert "\x1b" not in text and "left out: docker" in text and "PARTIAL" not in text
    (vxlan,) = [line for line in text.splitlines() if line.startswith("flannel-vxlan") and "+50" in line]
    assert vxlan.split()[:8] == ["flannel-vxlan", "+50", "4.00", "µs", "-", "-", "0", "0"]


def test_what_is_too_small_to_be_told_is_not_shown_as_a_figure() -> None:
    """A corrected time may come out below nothing; no bar can be that long."""
    stages = (StageShare("bridge", 4000.0, 1.01), StageShare("nat", -59.0, -0.01))
    shown = made(modes=(result("flannel-vxlan", nat_established_ns=-59.0, nat_new_ns=101.0, stages=stages),))
    text = comparison_text(shown, Screen(False, 200))
    assert "<100 ns" in text and "101 ns" in text and "nat 0%" in text and "-59" not in text and "-0%" not in text
    assert widths(read(comparison_html(shown))) == [100, 0]
    assert stage_line(stages) == "bridge 4.00 µs (101%), nat <100 ns (0%)"


def test_markdown_keeps_its_columns() -> None:
    text = comparison_markdown(made())
    assert "<script>" not in text
    for line in text.splitlines():
        if line.startswith("| flannel"):
            assert line.replace("\\|", "").count("|") in (10, 15)


@pytest.mark.parametrize(
    ("value", "text"), [(4.2e9, "4.2 Gbit/s"), (184e6, "184 Mbit/s"), (999.6e6, "1 Gbit/s"), (1500.0, "1.5 kbit/s")]
)
def test_bits(value: float, text: str) -> None:
    assert bits(value) == text


def slice_of(gigabits: float, *, packets: int | None = None, busy: int = 10**9) -> Slice:
    return Slice(1.0, int(gigabits * 1e9 / 8), packets, None if packets is None else 0.25, busy)


def test_cpu_time_is_that_of_all_slices_together() -> None:
    """One slice lasts for few ticks of the kernel's: a median of such would jump by tens of percent."""
    slices = [slice_of(1, packets=1000, busy=ticks * 10**7) for ticks in (1, 2, 1, 2)]
    assert compare.cpu(slices) == pytest.approx(15_000)
    assert compare.cpu(slices[:2]) is None and compare.cpu([slice_of(0, packets=0)] * 4) is None


def test_a_load_is_the_medians_of_its_slices() -> None:
    found = load.summarise("tcp", [slice_of(value) for value in (3, 4, 100)], [slice_of(value) for value in (8, 8, 8)], 1400)
    assert found.path_bits_per_second == 4e9 and found.ratio == 0.5 and found.size is None
    assert found.path_cpu_ns == pytest.approx(1e9 / (4e9 / 8 / 1000)) and found.cpu_ratio == pytest.approx(2)
    alone = load.summarise("udp", [slice_of(1, packets=1000)], [], 1400)
    assert alone.ratio is None and alone.underlay_cpu_ns is None
    assert (alone.path_cpu_ns, alone.path_lost, alone.cpu_unit) == (1e6, 0.25, "packet")
    nothing = load.summarise("udp", [slice_of(0, packets=0)], [slice_of(0, packets=0)], 1400)
    assert nothing.path_cpu_ns is None and nothing.ratio is None


@pytest.fixture(scope="module")
def there() -> Iterator[lab.Lab]:
    with lab.running("bridge", f"npt{secrets.token_hex(3)}", pods_per_node=1, echo=False) as found:
        yield found


@pytest.mark.root
def test_what_is_sent_is_counted(there: lab.Lab) -> None:
    pod = there.pod("pod2a")
    with Station(pod.path, pod.address) as station, Sender(there.pod("pod1a").path) as sender:
        route = Route(sender, station, (pod.address, station.udp), (pod.address, station.tcp))
        times = load.pings(route, 50)
        assert len(times) == 50 and 1_000 < statistics.median(times) < 50_000_000
        assert station.swallowed().datagrams == 0  # pings are answered, not swallowed
        tcp = load.stream(route, "tcp", 0.2)
        assert tcp.received_bytes == station.swallowed().stream_bytes > 100_000 and tcp.seconds >= 0.2
        udp = load.stream(route, "udp", 0.3, size=500, rate=2000)
        assert udp.packets is not None and udp.lost is not None and 0.0 <= udp.lost < 1
        assert udp.received_bytes == udp.packets * 500 and 0 < udp.packets <= 0.3 * 2000 + 64


@pytest.mark.root
def test_nobody_there(there: lab.Lab) -> None:
    pod = there.pod("pod2a")
    with Station(pod.path, pod.address) as station, Sender(there.pod("pod1a").path) as sender:
        route = Route(sender, station, (pod.address, 9), (pod.address, 9))
        with pytest.raises(NetpathError, match=re.escape(f"{pod.address}:9")):
            load.pings(route, 5)
        with pytest.raises(NetpathError, match="refused"):
            load.stream(route, "tcp", 0.1)
        # It is still there, and of use.
        assert load.pings(replace(route, udp=(pod.address, station.udp)), 5)
        os.kill(sender.pid, signal.SIGKILL)
        with pytest.raises(NetpathError, match="sender ended"):
            load.pings(replace(route, udp=(pod.address, station.udp)), 5)
        os.kill(station.pid, signal.SIGKILL)
        with pytest.raises(NetpathError, match="receiver ended"):
            station.swallowed()
    with pytest.raises(NetpathError, match="sender did not start"):
        Sender("/run/netns/nptnosuch").__enter__()
    with pytest.raises(NetpathError, match=r"10\.99\.99\.99 did not start"):
        Station(pod.path, "10.99.99.99").__enter__()


@pytest.mark.root
@pytest.mark.ebpf
def test_two_modes() -> None:
    before = {each.name for each in lab.list_labs()}
    words = ["flannel-vxlan", "flannel-hostgw", "--rounds", "1", "--count", "8"]
    done = netpath("lab", "compare", *words, "-o", "json", timeout=110)
    assert (done.code, done.err) == (0, "")
    contract.check(done.document, contract.COMPARISON)
    assert done.document["request"]["modes"] == ["flannel-vxlan", "flannel-hostgw"]
    vxlan, routed = done.document["modes"]
    assert (vxlan["mode"], vxlan["encap_bytes"], routed["mode"], routed["encap_bytes"]) == (
        "flannel-vxlan",
        50,
        "flannel-hostgw",
        0,
    )
    assert vxlan["encap_ns"] > 0 and routed["encap_ns"] is None
    assert (routed["rtt_to_hostgw"], routed["tcp_to_hostgw"]) == (1, 1)
    assert vxlan["one_way_ratio"]["value"] > 1 and vxlan["routes_per_node"] == 4
    assert sum(stage["share"] for stage in vxlan["stages"]) == pytest.approx(1, abs=0.01)
    said = {claim["mode"]: claim["verdict"] for claim in done.document["claims"]}
    assert said["docker"] == said["flannel-udp"] == "not measured" != said["flannel-vxlan"]
    mine = {each.name for each in lab.list_labs()} - before
    assert not [
        each for each in lab.list_labs() if each.name in mine and each.mode.startswith("flannel") and not each.options["echo"]
    ]


def test_a_mode_that_does_not_exist() -> None:
    assert "'nosuch'" in one_line(netpath("lab", "compare", "nosuch"), 2)


def run_of(**ratios: tuple[float, float, float]) -> dict[str, Any]:
    modes = []
    for mode, (low, value, high) in ratios.items():
        ratio = {"value": value, "ci95": [low, high]}
        modes.append({"mode": mode, "one_way_ratio": None, "rtt_ratio": ratio, "tcp_ratio": {"value": value, "ci95": None}})
    return {"modes": modes, "claims": [{"claim": "it is slow", "verdict": "holds here"}]}


def test_two_runs_are_held_against_each_other() -> None:
    first = run_of(a=(1.0, 1.1, 1.2), b=(1.3, 1.4, 1.5), c=(1.45, 1.6, 1.7), gone=(1, 1, 1))
    second = run_of(a=(1.6, 1.7, 1.8), b=(1.3, 1.45, 1.5), c=(1.55, 1.6, 1.65))
    found = agreement(first, second)
    assert found["modes"] == ["a", "b", "c"] and found["in_one_run_only"] == ["gone"]
    rtt = found["rtt_ratio"]
    assert (rtt["within_limit"], rtt["of"], rtt["beyond_limit"], rtt["worst"]) == (2, 3, ["a"], "a")
    assert rtt["worst_change"] == pytest.approx(1.7 / 1.1 - 1)
    # a and c can be told apart in the first run only, b and c in the second only.
    assert (rtt["pairs_told_apart_in_both"], rtt["pairs_in_another_order"]) == (1, [["a", "b"]])
    # Without intervals nothing can be told apart, and a figure that is in neither run is not compared.
    assert found["tcp_ratio"]["pairs_told_apart_in_both"] == 0 and found["one_way_ratio"]["of"] == 0
    assert found["claims"] == {"it is slow": ["holds here", "holds here"]}
