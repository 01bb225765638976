"""The suite's live half, run by other kernels. One boot per kernel; every guest test is reported by its own name."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.vm.guest import GuestUnavailable, boot, fetch

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).resolve().parents[2]
KERNELS = ("linux-image-amd64",)
SELECTION = ("tests/trace/test_live.py",)
"""What a guest runs: real devices, real eBPF. The rest of the suite does not depend on the kernel."""

COMMAND = """cd {repository}
export PYTHONDONTWRITEBYTECODE=1 HOME=/tmp XDG_CACHE_HOME=/tmp/cache NETPATH_GUEST=1 PATH=/usr/sbin:/usr/bin:/sbin:/bin
for m in veth bridge br_netfilter vxlan 8021q tun nf_tables nf_conntrack nft_chain_nat nft_compat tcp_diag udp_diag inet_diag raw_diag; do modprobe $m; done
{python} -m pytest {selection} -q -p no:cacheprovider --color=no --timeout=300 -k "not 50_pods and not tcpdump" --junitxml=/run/share/junit.xml
"""

SUMMARIES: list[str] = []
"""One line for each guest, and one for each test it skipped, for the end of the run."""


@dataclass(frozen=True)
class Report:
    """What one guest's run of the selection gave, by test."""

    results: dict[str, str]
    """Test -> passed, ``skipped: why`` or the failure's text."""
    console: str
    problem: str | None
    """Why there are no results: a panic, a hang, an import error."""


@cache
def report(package: str) -> Report:
    kernel = fetch(package)
    with TemporaryDirectory() as scratch:
        share = Path(scratch)
        command = COMMAND.format(repository=REPOSITORY, python=sys.executable, selection=" ".join(SELECTION))
        outcome = boot(kernel, command, share, timeout=1100, keep=[REPOSITORY])
        junit = share / "junit.xml"
        if outcome.exit_code is None:
            return Report({}, outcome.tail(), "the guest did not finish (a panic or a hang)")
        if not junit.exists():
            return Report({}, outcome.tail(), f"pytest left no results (exit code {outcome.exit_code})")
        return Report(_results(junit), outcome.tail(), None)


def _results(junit: Path) -> dict[str, str]:
    results: dict[str, str] = {}
    for case in ET.parse(junit).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        verdict = "passed"
        for child in case:
            if child.tag in ("failure", "error"):
                verdict = f"{child.get('message')}\n{child.text}"
            elif child.tag == "skipped":
                verdict = f"skipped: {child.get('message')}"
        results[name] = verdict
    return results


@pytest.mark.parametrize("package", KERNELS)
def test_the_selection_passes_in_a_guest(package: str) -> None:
    try:
        found = report(package)
    except GuestUnavailable as why:
        pytest.skip(f"no guest: {why}")
    assert found.problem is None, f"{found.problem}\n{found.console}"
    failed = {name: text for name, text in found.results.items() if text != "passed" and not text.startswith("skipped")}
    skipped = {name: text for name, text in found.results.items() if text.startswith("skipped")}
    passed = len(found.results) - len(failed) - len(skipped)
    SUMMARIES.append(f"guest {package}: {passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    SUMMARIES.extend(f"  {name}: {text}" for name, text in skipped.items())
    assert not failed, "\n\n".join(f"in the guest: {name}\n{text}" for name, text in failed.items())
    assert passed > 0
