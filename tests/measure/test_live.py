"""Measurements on real labs: what is counted can be counted there, what is compared was sent."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from netpath import lab
from netpath.ebpf.tracer import Tracer
from netpath.measure import headroom
from netpath.measure.plan import MeasureRequest
from netpath.measure.result import Measurement
from netpath.measure.session import run
from netpath.render.measure import measurement_text
from netpath.render.text import Screen
from tests.cli import contract
from tests.cli.command import netpath, one_line

pytestmark = [pytest.mark.root, pytest.mark.ebpf]


@pytest.fixture(scope="module")
def labs() -> Iterator[dict[str, lab.Lab]]:
    with ExitStack() as stack:
        yield {
            mode: stack.enter_context(
                lab.running(mode, f"npt{secrets.token_hex(3)}", pods_per_node=2 if mode.endswith("vxlan") else 1)
            )
            for mode in ("flannel-vxlan", "flannel-hostgw")
        }


def measured(made: lab.Lab, *words: str, to: str = "pod2a", port: int | None = 7777, code: int = 0) -> dict[str, Any]:
    target = made.pod(to).label + (f":{port}" if port else "")
    done = netpath("measure", made.pod("pod1a").label, target, *words, "-o", "json", timeout=100)
    assert (done.code, done.err) == (code, ""), (done.code, done.err)
    contract.check(done.document, contract.MEASUREMENT)
    return done.document


def in_process(made: lab.Lab, **more: Any) -> Measurement:
    settings = {"protocol": "udp", "count": 20, "rate": 2000.0, **more}
    return run(MeasureRequest(made.pod("pod1a").label, f"{made.pod('pod2a').label}:7777", **settings))


@pytest.mark.parametrize(("mode", "added"), [("flannel-vxlan", 50), ("flannel-hostgw", 0)])
def test_a_path_beside_its_underlay(labs: dict[str, lab.Lab], mode: str, added: int) -> None:
    made = labs[mode]
    document = measured(made, "--udp", "--count", "30", "--size", "64,1400", "--rate", "2000", "--round-trip")
    assert document["outcome"] == "delivered" and document["stopped"] == "count"
    assert [(each["flow"], each["size"]) for each in document["comparisons"]] == [
        (flow, size) for flow in ("established", "new") for size in (64, 1400)
    ]
    for each in document["comparisons"]:
        assert (
            each["encap_bytes"] == added
            and each["ratio"] > 1
            and each["ratio"] == pytest.approx(each["path_ns"] / each["underlay_ns"], rel=1e-3)
        )
        assert each["ratio_ci95"][0] <= each["ratio"] <= each["ratio_ci95"][1]
        assert each["bytes_of_probe"] == pytest.approx(added / (each["size"] + 28), abs=1e-3)
        assert each["bytes_of_full"] == pytest.approx(added / document["path_mtu"]["ip"], abs=1e-3)
    assert [each["way"] for each in document["series"]] == ["path"] * 4 + ["underlay"] * 4
    for each in document["series"]:
        assert each["probes"] == 30 and each["outcomes"] == {"delivered": 30}
        assert each["ip_length"] == each["size"] + 28
        assert each["one_way_ns"]["count"] + each["outliers"]["count"] == 30
        assert sum(each["histogram"]["counts"]) + each["histogram"]["above"] == 30
        assert sum(share["share"] for share in each["stages"]) == pytest.approx(1, abs=0.02)
        assert each["round_trip_ns"]["p50"] > each["one_way_ns"]["p50"]
        assert ("encap" in {share["stage"] for share in each["stages"]}) == (each["way"] == "path" and added > 0)
    baseline = document["baseline"]
    assert (baseline["source"], baseline["address"]) == (made.node("node1").netns, made.node("node2").address)
    assert baseline["source_address"] == made.node("node1").address
    for path in baseline["paths"]:
        ends = path["hops"][0]["netns"]["name"], path["hops"][-1]["netns"]["name"]
        expected = (made.node("node1").netns, made.node("node2").netns)
        assert ends == (expected if path["direction"] == "forward" else expected[::-1])
        assert {hop["status"] for hop in path["hops"]} == {"observed"}
    for path in [*document["paths"], *baseline["paths"]]:
        series = document["series"][path["series"]]
        if path["direction"] == "forward":
            assert path["overhead"]["one_way_ns"] == series["one_way_ns"]


def test_new_flows_make_conntrack_entries_and_an_established_one_does_not(labs: dict[str, lab.Lab]) -> None:
    made = labs["flannel-hostgw"]
    node = made.node("node1").netns

    def grown(*words: str) -> int:
        document = measured(made, *words, "--udp", "--count", "40", "--rate", "2000", "--no-baseline")
        return sum(table["after"] - table["before"] for table in document["conntrack"] if table["netns"] == node)

    assert grown("--flow", "new") >= 40
    assert grown("--flow", "established") <= 3


def test_on_one_node_there_is_no_underlay(labs: dict[str, lab.Lab]) -> None:
    document = measured(labs["flannel-vxlan"], "--icmp", "--count", "10", "--rate", "2000", to="pod1b", port=None)
    assert document["baseline"]["applies"] is False and "one node" in document["baseline"]["reason"]
    assert document["comparisons"] == [] and {each["way"] for each in document["series"]} == {"path"}


@pytest.mark.parametrize(("words", "port"), [(["--tcp"], 7070), (["--icmp"], None)], ids=["tcp", "icmp"])
def test_other_protocols(labs: dict[str, lab.Lab], words: list[str], port: int | None) -> None:
    document = measured(labs["flannel-hostgw"], *words, "--count", "15", "--rate", "2000", port=port)
    assert [each["flow"] for each in document["comparisons"]] == (["new"] if port else ["established", "new"])
    assert all(each["outcomes"] == {"delivered": 15} for each in document["series"])


def test_it_ends_when_the_medians_are_known_well_enough(labs: dict[str, lab.Lab]) -> None:
    document = measured(
        labs["flannel-hostgw"], "--udp", "--count", "2000", "--rate", "2000", "--precision", "60%", "--flow", "established"
    )
    assert document["stopped"] == "precision"
    assert all(20 <= each["probes"] < 2000 for each in document["series"])
    for each in document["series"]:
        low, high = each["p50_ci95"]
        assert (high - low) / 2 <= 0.7 * each["p50_all"]


def test_a_refused_probe_has_no_time(labs: dict[str, lab.Lab]) -> None:
    document = measured(labs["flannel-hostgw"], "--udp", "--count", "5", "--flow", "established", port=4, code=1)
    # The kernel sends only so many ICMP errors a second; a probe that ends as a refused one without it is refused as well.
    assert document["outcome"] == "rejected" and document["comparisons"] == []
    mine, host = document["series"]
    assert mine["outcomes"] == {"rejected": 5} and mine["one_way_ns"] is None and mine["p50_all"] is None
    assert host["outcomes"] == {"delivered": 5}
    assert any(
        note.endswith("probes were refused without an ICMP error: the kernel sends only so many a second")
        for note in document["notes"]
    )
    text = netpath(
        "measure", labs["flannel-hostgw"].pod("pod1a").label, f"{labs['flannel-hostgw'].pod('pod2a').label}:4", "--udp", "-c", "5"
    )
    lines = text.out.splitlines()
    assert text.code == 1 and lines[-1] == "verdict: 10 probes rejected, as predicted; COMPLETE"
    at = lines.index("what did not arrive")
    assert lines[at + 1] == "established flow, 64 bytes, path: 5 of 5; new flows, 64 bytes, path: 5 of 5"
    assert lines[at + 2].startswith("  last seen: eth0 rx in ") and "NO_SOCKET" in lines[at + 3]
    assert "listens on udp port 4" in lines[at + 4] and lines[at + 5].strip().startswith("remedy: ")


def test_where_probes_were_dropped_and_where_they_went_astray_is_said(labs: dict[str, lab.Lab]) -> None:
    made = labs["flannel-hostgw"]
    rule = ["iptables-nft", "-I", "FORWARD", "-p", "udp", "--dport", "7777", "-j", "DROP"]
    subprocess.run(["nsenter", f"--net={made.node('node2').path}", *rule], check=True)
    try:
        dropped = in_process(made, count=5)
    finally:
        rule[1] = "-D"
        subprocess.run(["nsenter", f"--net={made.node('node2').path}", *rule], check=True)
    text = measurement_text(dropped, Screen(False, 200))
    assert "  dropped after hop " in text and ": NETFILTER_DROP" in text and "rule: filter/FORWARD: " in text and "remedy: " in text
    assert text.endswith("verdict: 10 probes dropped, as predicted; COMPLETE\n")
    done = in_process(made, count=5, baseline=False, flow="established")
    assert "did not arrive" not in measurement_text(done, Screen(False, 200))
    (path,) = done.trace.paths
    hops = (replace(path.hops[0], status="unexpected"), *path.hops[1:])
    astray = replace(done, trace=replace(done.trace, paths=(replace(path, hops=hops),), outcome="mixed"))
    text = measurement_text(astray, Screen(False, 200))
    assert f"  unexpected: eth0 tx in {made.pod('pod1a').netns}, {path.probes} probes\n" in text
    assert "verdict: 5 probes mixed (5 delivered), NOT as predicted" in text


def test_lost_events_make_it_partial(labs: dict[str, lab.Lab]) -> None:
    """A page holds fewer events than one round of probes makes."""
    document = measured(labs["flannel-vxlan"], "--udp", "--count", "5", "--buffer", "4096", "--timeout", "0.05", code=4)
    assert document["completeness"]["verdict"] == "PARTIAL" and document["completeness"]["lost_events"] > 0


def test_a_load_on_both_ways(labs: dict[str, lab.Lab]) -> None:
    document = measured(labs["flannel-vxlan"], "--udp", "--count", "5", "--load", "--load-seconds", "1")
    tcp, udp = document["load"]
    assert (tcp["protocol"], tcp["cpu_unit"], tcp["path_lost"]) == ("tcp", "kilobyte", None)
    assert (udp["protocol"], udp["cpu_unit"], udp["size"]) == ("udp", "packet", 1400)
    for each in (tcp, udp):
        assert each["path_bits_per_second"] > 1e5 and each["underlay_bits_per_second"] > 1e5
        assert each["ratio"] == pytest.approx(each["path_bits_per_second"] / each["underlay_bits_per_second"], rel=1e-2)
        assert each["path_cpu_ns"] > 0 and "/proc/stat" in each["cpu_source"]


def test_a_load_where_nobody_lets_it_through(labs: dict[str, lab.Lab]) -> None:
    made = labs["flannel-hostgw"]
    node = made.node("node2").path
    rule = [
        "iptables-nft",
        "-I",
        "FORWARD",
        "-d",
        made.pod("pod2a").address,
        "-p",
        "tcp",
        "!",
        "--dport",
        "7070:7071",
        "-j",
        "REJECT",
    ]
    subprocess.run(["nsenter", f"--net={node}", *rule], check=True)
    try:
        document = measured(made, "--udp", "--count", "5", "--load", "--load-seconds", "0.2")
    finally:
        rule[1] = "-D"
        subprocess.run(["nsenter", f"--net={node}", *rule], check=True)
    assert document["load"] == [] and any(note.startswith("no load: ") for note in document["notes"])


def test_a_burst_that_lost_an_event_is_sent_again(labs: dict[str, lab.Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter of lost events rises during the second burst, as it does when the ring's lock can't be had.

    It is read before and after every burst, and before and after the calibration that follows the first.
    """
    real: property = vars(Tracer)["lost"]
    reads = 0

    def lost(self: Tracer) -> int:
        nonlocal reads
        reads += 1
        return int(real.__get__(self)) + (reads >= 6)

    monkeypatch.setattr(Tracer, "lost", property(lost))
    done = in_process(labs["flannel-hostgw"], count=20)
    assert done.trace.completeness.verdict == "COMPLETE" and done.trace.completeness.lost_events == 0
    assert all(each.outcomes == {"delivered": 20} for each in done.series)
    assert any(note.startswith("sent again, because an event was lost: 1 of ") for note in done.trace.notes)


def test_where_nothing_stands_in_the_way_conntrack_and_nat_are_told_apart(labs: dict[str, lab.Lab]) -> None:
    document = measured(labs["flannel-vxlan"], "--udp", "--count", "60", "--rate", "2000", "--size", "64,600")
    for each in document["series"]:
        found = {share["stage"]: share["ns"] for share in each["stages"]}
        assert {"conntrack", "nat", "route"} <= found.keys(), each
        assert sum(found.values()) == pytest.approx(each["one_way_ns"]["mean"], rel=0.02)

    def nat(flow: str) -> float:
        (share,) = [
            share["ns"]
            for each in document["series"]
            if (each["way"], each["flow"], each["size"]) == ("path", flow, 64)
            for share in each["stages"]
            if share["stage"] == "nat"
        ]
        return float(share)

    # The first packet of a flow goes through the NAT table's rules, later ones do not.
    assert nat("new") > 1.5 * nat("established")


def test_only_what_arrives_on_the_baselines_node_is_compared() -> None:
    """A service with one backend on either node: new flows go to both, the established one to one of them."""
    with lab.running("flannel-vxlan", f"npt{secrets.token_hex(3)}", services="nftables") as made:
        done = netpath(
            "measure", made.pod("pod1a").label, "10.96.7.8:5353", "--udp", "-c", "40", "--rate", "2000", "-o", "json", timeout=100
        )
        assert done.code == 0, done.err
        document = done.document
        contract.check(document, contract.MEASUREMENT)
        there = made.node("node2").netns
        assert document["baseline"]["destination"] == there
        # Also where most went to the backend beside the source, without any tunnel.
        assert {each["encap_bytes"] for each in document["comparisons"]} == {50}
        for flow in ("new", "established"):
            (series,) = [number for number, each in enumerate(document["series"]) if (each["way"], each["flow"]) == ("path", flow)]
            away = sum(
                path["probes"] for path in document["paths"] if path["series"] == series and path["hops"][-1]["node"] != there
            )
            whole = sum(path["probes"] for path in document["paths"] if path["series"] == series)
            assert any(each["flow"] == flow for each in document["comparisons"]) == (away < whole)
            assert any(note.startswith(f"{flow}, 64 bytes: ") and f"on {there}, and" in note for note in document["notes"]) == bool(
                away
            )
            assert flow == "established" or 0 < away < whole


def test_a_queue_that_holds_packets_back_is_a_stage_of_its_own() -> None:
    """2 Mbit/s behind a burst of one packet: each of a train waits for the one before it, and that in `qdisc` alone."""
    with lab.running("flannel-hostgw", f"npt{secrets.token_hex(3)}", pods_per_node=1) as made:

        def stages() -> dict[str, float]:
            done = in_process(made, count=30, flow="established", baseline=False)
            assert done.trace.completeness.verdict == "COMPLETE"
            return {each.stage: each.ns for each in done.series[0].stages}

        before = stages()
        queue = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "2mbit", "burst", "200", "limit", "100000"]
        subprocess.run(["nsenter", f"--net={made.nodes[0].path}", *queue], check=True)
        after = stages()
        assert "qdisc" not in before and after["qdisc"] > 20_000
        assert after["qdisc"] > 0.5 * sum(after.values())


def test_neighbours_that_age_meanwhile_are_no_divergence() -> None:
    """A bridge turns a translated frame one way while the backend's neighbour entry is fresh, and another way when it is not."""
    with lab.running("flannel-hostgw", f"npt{secrets.token_hex(3)}", services="nftables") as made:
        for name, value in (("base_reachable_time_ms", 700), ("delay_first_probe_time", 1), ("gc_stale_time", 1)):
            words = ["sysctl", "-qw", f"net.ipv4.neigh.cni0.{name}={value}"]
            subprocess.run(["nsenter", f"--net={made.nodes[0].path}", *words], check=True)
        done = run(MeasureRequest(made.pod("pod1a").label, "10.96.7.8:5353", "udp", count=60, rate=80.0, flow="new"))
        ways = {tuple((hop.netns.inode, hop.device.ifindex, hop.direction) for hop in path.hops) for path in done.trace.paths}
        assert len(ways) == 3, "the entry did not change while it was measured"
        assert done.trace.outcome == "delivered" and not done.trace.diverged


def test_the_table(labs: dict[str, lab.Lab]) -> None:
    made = labs["flannel-vxlan"]
    done = netpath(
        "measure", made.pod("pod1a").label, f"{made.pod('pod2a').label}:7777", "--udp", "-c", "25", "--rate", "2000", "-o", "wide"
    )
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[-1] == "verdict: 50 probes delivered, as predicted; COMPLETE"
    (headline,) = [line for line in lines if line.startswith("established flow, 64 bytes: +")]
    assert "x underlay [" in headline and "; vxlan +50 bytes = 3.4% of a 1,450-byte packet" in headline
    assert any("▁" in line or "█" in line for line in lines)
    assert any(line.startswith(f"conntrack in {made.node('node1').netns}: ") for line in lines)


def test_a_full_conntrack_table_stops_it(labs: dict[str, lab.Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    """The table fills up while it runs: what is read of it after the first bursts says so."""
    real, reads = headroom.read, 0

    def read(paths: Any) -> tuple[headroom.Table, ...]:
        nonlocal reads
        reads += 1
        found = real(paths)
        return tuple(headroom.Table(each.netns, 95, 100) for each in found) if reads > 3 else found

    monkeypatch.setattr(headroom, "read", read)
    done = in_process(labs["flannel-hostgw"], count=100, flow="new")
    assert done.stopped == "conntrack" and done.trace.completeness.verdict == "PARTIAL"
    assert 0 < done.series[0].probes < 100
    assert "conntrack" in done.trace.completeness.reasons[0]
    # An established flow needs no further entries.
    reads = 3
    assert in_process(labs["flannel-hostgw"], count=5, flow="established").stopped == "count"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tcp", "--size", "64"], "SYN"),
        (["--tcp", "--flow", "established"], "SYN"),
        (["--udp", "--size", "64,4"], "--size"),
        (["--udp", "--size", "64,x"], "--size"),
        (["--udp", "--size", ""], "--size"),
        (["--udp", "--precision", "0"], "--precision"),
        (["--udp", "--precision", "five"], "--precision"),
        (["--udp", "--precision", "101%"], "--precision"),
        (["--udp", "--buffer", "5000"], "--buffer"),
        (["--udp", "--rate", "0"], "--rate"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_usage(words: list[str], says: str) -> None:
    assert says in one_line(netpath("measure", "10.0.0.1", "10.0.0.2:53", *words), 2)
