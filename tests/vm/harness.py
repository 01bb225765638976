"""One run of pytest in a guest: what is put there, what comes back."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from netpath.errors import MissingError
from netpath.lab import guests
from tests.lab import kinds
from tests.vm.guest import Outcome, boot
from tests.vm.kernels import CACHE, Kernel
from tests.vm.reporter import SHARE

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
{python} -m tests.vm.facts > /run/share/facts
mkdir -p /run/share/programs && cp /tmp/cache/netpath/*.json /run/share/programs/ 2>/dev/null
exit $code
"""


def run(kernel: Kernel, arguments: Sequence[str], share: Path, *, seconds: float) -> Outcome:
    """Boot, and run pytest with these arguments. Compiled programs are kept for the next boot of the kernel: compiling takes a minute there."""
    # What the guest can't fetch, as it has no network. Without one here either, the tests that need it say so.
    with contextlib.suppress(MissingError):
        guests.fetch("ipvsadm", kinds.IPVSADM)
    kept = CACHE / f"programs-{kernel.release}"
    if kept.is_dir():
        shutil.copytree(kept, share / "programs")
    command = COMMAND.format(
        repository=shlex.quote(str(REPOSITORY)),
        share_name=SHARE,
        modules=MODULES,
        python=shlex.quote(sys.executable),
        arguments=shlex.join(arguments),
    )
    outcome = boot(kernel, command, share, timeout=seconds, keep=[REPOSITORY])
    if outcome.exit_code is not None and (share / "programs").is_dir():
        kept.mkdir(exist_ok=True)
        for file in (share / "programs").iterdir():
            shutil.copy(file, kept)
    return outcome


def facts(share: Path) -> dict[str, Any] | None:
    """What the guest told of its kernel (`tests.vm.facts`); None if it did not come to that."""
    try:
        found: dict[str, Any] = json.loads((share / "facts").read_text())
    except (OSError, ValueError):
        return None
    return found


def verdicts(found: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """By test: passed, failed, or ``skipped: why``. Of what `documents` gives."""
    said: dict[str, str] = {}
    for kind, report in found:
        if kind != "test":
            continue
        name, outcome = report["nodeid"], report["outcome"]
        if outcome == "skipped":
            reason = report["longrepr"][2] if isinstance(report["longrepr"], list) else str(report["longrepr"])
            said[name] = f"skipped: {reason}"
        elif outcome == "failed" or (report["when"] == "call" and name not in said):
            said[name] = outcome
    return said


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
