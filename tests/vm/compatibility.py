"""docs/compatibility.md from what the tests ran: one file of results for each kernel in `results`, one page of all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).resolve().parents[2] / "docs/compatibility.md"
GROWTH = 1.3
"""How many times its recorded size a program may reach before a test asks whether that was meant."""


@dataclass(frozen=True)
class Row:
    """A line of a table: what it is called, and the tests that prove it (beginnings of their ids)."""

    name: str
    tests: tuple[str, ...]


_LIVE = "tests/trace/test_live.py::"
FEATURES = (
    Row(
        "every device on the way seen, in order",
        ("tests/trace/test_precision.py", f"{_LIVE}test_every_hop_is_observed_as_predicted[4-udp]"),
    ),
    *(
        Row(f"the same hops, rewrite and stages by {name}", (f"tests/trace/test_hooks.py::test_every_kind_sees_the_same[{name}]",))
        for name in ("netfilter", "fentry", "kprobe")
    ),
    Row("UDP over IPv4, every hop observed as predicted", (f"{_LIVE}test_every_hop_is_observed_as_predicted[4-udp]",)),
    Row("TCP over IPv4", (f"{_LIVE}test_every_hop_is_observed_as_predicted[4-tcp]",)),
    Row("UDP over IPv6", (f"{_LIVE}test_every_hop_is_observed_as_predicted[6-udp]",)),
    Row("the way back", (f"{_LIVE}test_the_way_back_is_a_path_of_its_own",)),
    Row(
        "a missing FDB entry is found and named",
        (f"{_LIVE}test_a_fault_is_found_where_it_is_and_was_predicted[missing FDB entry]",),
    ),
    Row("strict rp_filter is found and named", (f"{_LIVE}test_a_fault_is_found_where_it_is_and_was_predicted[strict rp_filter]",)),
    Row("a missing route is found and named", (f"{_LIVE}test_a_fault_is_found_where_it_is_and_was_predicted[missing route]",)),
    Row("a closed port is found and named", (f"{_LIVE}test_a_closed_port_is_rejected_where_it_arrived",)),
    Row("bridges with VLAN filtering", (f"{_LIVE}test_a_vlan_aware_bridge",)),
    Row("VLAN devices below a tunnel", ("tests/lab/test_ipip.py::test_flannel_ipip_over_a_vlan",)),
)
DATAPATHS = (
    Row("VXLAN between bridges (Flannel, Calico VXLAN)", (f"{_LIVE}test_every_hop_is_observed_as_predicted",)),
    Row("IPIP (Calico, Always), traced", ("tests/lab/test_ipip.py::test_calico_ipip_pod_to_pod",)),
    Row("IPIP (Calico, CrossSubnet), traced", ("tests/lab/test_ipip.py::test_calico_crosses_subnets_by_the_tunnel_only",)),
    Row("IPIP (Flannel), traced", ("tests/lab/test_ipip.py::test_flannel_ipip_over_a_vlan",)),
    Row("IPIP (Calico): told by `inventory`", ("tests/lab/test_ipip.py::test_calico_ipip_is_recognised",)),
    Row("kube-proxy IPVS: backends read and predicted", ("tests/lab/test_ipvs.py::test_path_lists_every_backend",)),
    Row("kube-proxy IPVS, ClusterIP, traced", ("tests/lab/test_ipvs.py::test_a_pod_is_balanced_and_answered",)),
    Row("kube-proxy IPVS, NodePort, traced", ("tests/lab/test_ipvs.py::test_a_node_port_from_the_other_node",)),
)


def load() -> dict[str, dict[str, Any]]:
    """The recorded results by column, oldest kernel first."""
    found = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    return dict(sorted(found.items(), key=lambda item: tuple(int(part) for part in item[0].split("."))))


def save(column: str, document: Mapping[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{column}.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def column(release: str) -> str:
    """``6.1.0-56-amd64`` -> ``6.1``."""
    return ".".join(release.split("-")[0].split(".")[:2])


def cell(row: Row, tests: Mapping[str, str]) -> str:
    """yes, no with the reason, FAILS, or a dash where none of the row's tests ran."""
    verdicts = [verdict for name, verdict in tests.items() if name.startswith(row.tests)]
    if not verdicts:
        return "–"
    if any(verdict == "failed" for verdict in verdicts):
        return "FAILS"
    if "passed" in verdicts:
        return "yes"
    return "no: " + verdicts[0].partition(": ")[2].removeprefix("Skipped: ")


def _table(first: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    lines = [f"| {first} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {name} | {' | '.join(text.replace('|', '/') for text in cells)} |" for name, cells in rows]


def _hook(hooks: Mapping[str, Any], name: str) -> str:
    if name not in hooks:
        return "–"
    return "yes" if hooks[name]["available"] else f"no: {hooks[name]['detail']}"


def _size(programs: Mapping[str, Any], name: str) -> str:
    if name not in programs:
        return "–"
    verified = programs[name]["verified"]
    return f"{programs[name]['instructions']}" + (f" ({verified})" if verified is not None else "")


def render(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page."""
    columns = [f"{name} ({each['where']})" for name, each in results.items()]
    every = list(results.values())
    hooks = list(dict.fromkeys(name for each in every for name in each["hooks"]))
    programs = sorted({name for each in every for name in each["programs"]})
    lines = [
        "# Kernels",
        "",
        "What works on which kernel, as the tests found it: this page is written from their results (`python -m tests.vm record`), and a",
        "test fails when it no longer says what they say. The guests are Debian's stock kernels (5.10 of bullseye, 6.1 of bookworm, 6.12",
        "of bookworm-backports), booted under QEMU with nothing else changed; the other column is a kernel without loadable modules.",
        "",
        "- yes: the tests of the line pass there. no: the kernel does not offer it, and netpath says so. –: not run on that kernel.",
        "- A hook that is missing is named: by `netpath probes` with what is lost, and by a trace, which is PARTIAL where it matters.",
        "- Below 5.8 there is no ring buffer: netpath refuses a trace with exit 3. No such kernel was tried.",
        "- Before 5.17 the kernel gives no reasons for drops: the function that freed the packet is named. Before 5.11 fentry can't reach",
        "  functions of modules, and kprobes are taken for it. Discovery, prediction and `inventory` need no hooks.",
        "- A VXLAN device without a forwarding entry drops with `NO_TX_TARGET` since 6.14, and in later 6.12 too (seen on 6.12.95), where",
        "  prediction still says `VXLAN_NO_REMOTE`. A trace says what the kernel said.",
        "",
        "## Hook kinds",
        "",
        *_table("hook", columns, [(name, [_hook(each["hooks"], name) for each in every]) for name in hooks]),
        "",
        "## Features",
        "",
        *_table("feature", columns, [(row.name, [cell(row, each["tests"]) for each in every]) for row in FEATURES]),
        "",
        "## Datapaths",
        "",
        *_table("datapath", columns, [(row.name, [cell(row, each["tests"]) for each in every]) for row in DATAPATHS]),
        "",
        "Flannel's other backends, Calico without overlay, Docker and kube-proxy's other modes do not depend on the kernel beyond the",
        "hooks; they are tested on the kernel of the last column.",
        "",
        "## Size of the programs",
        "",
        "Instructions after the verifier's rewriting, and in brackets how many it walked through (the kernel's limit is 1,000,000; it",
        f"tells since 5.16). A test fails where one grows beyond {GROWTH} times what is recorded here.",
        "",
        *_table("program", columns, [(name, [_size(each["programs"], name) for each in every]) for name in programs]),
        "",
        "## What stays the same over versions",
        "",
        "- JSON documents carry `apiVersion`; within `netpath/v1alpha1` keys are added, never renamed or removed, and readers pass over",
        "  what they don't know. A snapshot's `schema` counts its own format: every netpath reads all earlier ones.",
        "- Exit codes, commands, options and the names of stages, hooks and drop reasons are those of the CLI reference.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def grown(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Programs that are much larger than recorded, one line each."""
    found = []
    for name in sorted(recorded.keys() & now.keys()):
        for what in ("instructions", "verified"):
            before, after = recorded[name][what], now[name][what]
            if before and after and after > before * GROWTH:
                found.append(f"{name}: {before} {what} were recorded, now {after}")
    return found


def changed(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Hook kinds that are no longer as recorded, one line each."""
    return [
        f"{name}: {'available' if now[name]['available'] else now[name]['detail']}, recorded otherwise"
        for name in sorted(recorded.keys() & now.keys())
        if recorded[name]["available"] != now[name]["available"]
    ]
