"""Whatever is pressed, nothing is left behind: no lab and no process, and with the processes goes all eBPF."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from netpath import lab
from tests.cli.command import NETPATH, Done, environment, one_line, without_progress

pytestmark = [pytest.mark.root, pytest.mark.ebpf]
DEADLINE = 60.0


def children(pid: int) -> set[int]:
    """All processes below one, by their parents' numbers."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue  # ended since
        parents.setdefault(int(text[text.rindex(")") + 2 :].split()[1]), []).append(int(path.parent.name))
    found: set[int] = set()
    pending = [pid]
    while pending:
        below = set(parents.get(pending.pop(), ())) - found
        found |= below
        pending += below
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def interrupted(words: list[str], when: Callable[[int], bool], how: signal.Signals = signal.SIGINT) -> None:
    """Run netpath, interrupt it alone as soon as `when` (given its pid) is true, and look at what is left."""
    process = subprocess.Popen(
        [*NETPATH, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd="/",
        start_new_session=True,
    )
    try:
        end = time.monotonic() + DEADLINE
        while not when(process.pid):
            assert process.poll() is None and time.monotonic() < end, process.stderr and process.stderr.read()
        below = children(process.pid)
        os.kill(process.pid, how)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "interrupted" in one_line(Done(process.returncode, out, without_progress(err)), 130)
    assert not [command for pid in below if "netpath" in (command := command_of(pid))]


def runs(module: str) -> Callable[[int], bool]:
    return lambda pid: any(module in command_of(each) for each in children(pid))


@pytest.mark.parametrize("module", ["netpath.measure.station", "netpath.measure.client"])
def test_a_measurement(module: str) -> None:
    with lab.running("bridge", f"npt{os.getpid() % 100000}", pods_per_node=1) as made:
        words = ["measure", made.pod("pod1a").label, f"{made.pod('pod2a').label}:7777", "--udp", "--load", "--load-seconds", "30"]
        interrupted([*words, *(["-c", "5"] if module.endswith("client") else ["-c", "5000"])], runs(module))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_comparison(how: signal.Signals) -> None:
    """By a terminal, by a timeout, by the end of the session that it runs in."""
    before = {each.name for each in lab.list_labs()}
    mine: set[str] = set()

    def measuring(pid: int) -> bool:
        there = {each.name for each in lab.list_labs() if each.mode == "ptp" and not each.options.get("echo", True)} - before
        mine.update(there)
        return bool(there) and runs("netpath.probe.sender")(pid)

    interrupted(["lab", "compare", "ptp", "--rounds", "50"], measuring, how)
    assert mine and not mine & {each.name for each in lab.list_labs()}
