"""The suite's live half, run by other kernels: one boot per kernel, and every guest test is reported as a local one is."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.conftest import skip_allowed
from tests.vm.guest import Outcome, boot
from tests.vm.kernels import CACHE, GuestUnavailable, Kernel, fetch
from tests.vm.reporter import SHARE
from tests.vm.selection import SELECTIONS, Selection

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.timeout(1500)]

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = (
    "veth bridge br_netfilter vxlan 8021q tun dummy ipip nf_tables nf_conntrack nft_chain_nat nft_compat "
    "ip_vs ip_vs_rr ip_vs_wrr ip_set ip_set_hash_ipport ip_set_hash_ipportip ip_set_bitmap_port xt_set xt_ipvs "
    "iptable_nat iptable_filter tcp_diag udp_diag inet_diag raw_diag"
)

COMMAND = """cd {repository}
export PYTHONDONTWRITEBYTECODE=1 HOME=/tmp XDG_CACHE_HOME=/tmp/cache PATH=/usr/sbin:/usr/bin:/sbin:/bin {share_name}=/run/share
mkdir -p /tmp/cache/netpath
cp /run/share/programs/* /tmp/cache/netpath/ 2>/dev/null
[ -d /var/cache/netpath/guests ] && cp -rs /var/cache/netpath/guests /tmp/cache/netpath/guests
for m in {modules}; do modprobe -q $m; done
{python} -m pytest {arguments} -q -p no:cacheprovider -p tests.vm.reporter --color=no --timeout=300 --tb=long
code=$?
mkdir -p /run/share/programs && cp /tmp/cache/netpath/*.json /run/share/programs/ 2>/dev/null
exit $code
"""

SUMMARIES: list[str] = []
"""One line for each guest, for the end of the run."""


def run(kernel: Kernel, selection: Selection, share: Path) -> Outcome:
    """Boot, and run the selection. Compiled programs are kept for the next boot of the kernel: compiling takes a minute there."""
    kept = CACHE / f"programs-{kernel.release}"
    if kept.is_dir():
        shutil.copytree(kept, share / "programs")
    command = COMMAND.format(
        repository=shlex.quote(str(REPOSITORY)),
        share_name=SHARE,
        modules=MODULES,
        python=shlex.quote(sys.executable),
        arguments=shlex.join(selection.arguments),
    )
    outcome = boot(kernel, command, share, timeout=selection.seconds, keep=[REPOSITORY])
    if outcome.exit_code is not None and (share / "programs").is_dir():
        kept.mkdir(exist_ok=True)
        for file in (share / "programs").iterdir():
            shutil.copy(file, kept)
    return outcome


def documents(share: Path) -> Iterator[tuple[str, Any]]:
    """What the guest's pytest wrote: (start, test or broken; what of it). A line cut short by a panic ends it."""
    try:
        lines = (share / "reports").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            document = json.loads(line)
        except ValueError:
            return
        yield document["kind"], document["report"]


def as_local(config: pytest.Config, series: str, document: Any) -> pytest.TestReport:
    """A guest's report, named for its kernel, and failed where CI allows no such skip."""
    report = config.hook.pytest_report_from_serializable(config=config, data=document)
    assert isinstance(report, pytest.TestReport)
    report.nodeid = f"guest[{series}]::{report.nodeid}"
    file, line, name = report.location
    report.location = (file, line, f"guest[{series}] {name}")
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not skip_allowed(reason):
            report.outcome = "failed"
            report.longrepr = f"skipped in a guest in CI, for a reason that tests/conftest.py does not allow: {reason}"
    return report


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: selection.series)
def test_the_selection_runs_in_a_guest(request: pytest.FixtureRequest, selection: Selection) -> None:
    """Passes when the guest came to its end; the tests that ran in it are reported on their own, and fail on their own."""
    began = time.monotonic()
    try:
        kernel = fetch(selection.series)
        with TemporaryDirectory() as scratch:
            share = Path(scratch)
            outcome = run(kernel, selection, share)
            found = list(documents(share))
    except GuestUnavailable as why:
        pytest.skip(f"no guest: {selection.series}: {why}")
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    open_test: str | None = None
    for kind, document in found:
        if kind == "start":
            open_test = document
        elif kind == "test":
            report = as_local(request.config, selection.series, document)
            request.node.ihook.pytest_runtest_logreport(report=report)
            if report.when == "call" or report.outcome != "passed":
                counts[report.outcome] += 1
            if report.when == "teardown":
                open_test = None
    counted = ", ".join(f"{number} {word}" for word, number in counts.items())
    SUMMARIES.append(f"guest {kernel.release}: {counted} in {time.monotonic() - began:.0f} s")
    broken = [document for kind, document in found if kind == "broken"]
    assert not broken, "the guest could not collect its tests:\n" + "\n".join(broken)
    where = f" in {open_test}" if open_test is not None else ""
    assert outcome.exit_code is not None, (
        f"the guest did not finish (a panic, or more than {selection.seconds:.0f} s){where}; its console ended:\n{outcome.tail()}"
    )
    assert outcome.exit_code in (0, 1), f"pytest in the guest ended with {outcome.exit_code}; its console ended:\n{outcome.tail()}"
    assert sum(counts.values()), f"the guest reported no test; its console ended:\n{outcome.tail()}"
