"""SIGKILL in every phase of a trace: the machine is as it was before."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from netpath.trace import session
from tests import leftovers
from tests.leftovers import State
from tests.netns import Netns
from tests.topology import Overlay, overlay

pytestmark = [pytest.mark.root, pytest.mark.ebpf, pytest.mark.timeout(300)]

SILENT_PORT = 7999
TIMES = 10
PHASES = {
    "discovery": session.DISCOVERY,
    "compilation": session.LOADING,
    "attachment": session.ARMING,
    "injection": session.SENDING,
    "draining": session.DRAINING,
}


@dataclass(frozen=True)
class Scene:
    made: Overlay
    cache: Path

    @property
    def spaces(self) -> tuple[Netns, ...]:
        return (self.made.fabric, *self.made.nodes, *self.made.pods[0], *self.made.pods[1])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    # The socket receives and never answers: a trace that follows the answer waits for it to the end.
    with overlay() as made, made.pods[1][0].socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind((made.address(1, 0), SILENT_PORT))
        result = Scene(made, tmp_path_factory.mktemp("cache"))
        _settle(result)
        yield result


def _settle(scene: Scene) -> None:
    """Until the state of devices is final: the kernel tells that a bridge has its carrier up to a second later."""
    deadline = time.monotonic() + 20
    while any(" state UNKNOWN " in each.ip("-o", "link", "show", "type", "bridge") for each in scene.spaces):
        assert time.monotonic() < deadline, "a bridge's state stays unknown"
        time.sleep(0.05)


def _configuration(scene: Scene) -> dict[str, str]:
    """qdiscs, filters, routes, policy rules, firewall rules and sysctls of every namespace of the overlay."""
    found: dict[str, str] = {}
    for each in scene.spaces:
        found[f"{each.name} qdiscs"] = each.run("tc", "qdisc", "show")
        found[f"{each.name} links"] = each.ip("-o", "link", "show")
        found[f"{each.name} rules"] = each.ip("rule", "show") + each.ip("-6", "rule", "show")
        found[f"{each.name} routes"] = each.ip("route", "show", "table", "all")
        found[f"{each.name} firewall"] = each.run("nft", "list", "ruleset")
        found[f"{each.name} sysctls"] = each.call(_sysctls)
    return found


def _sysctls() -> str:
    lines = []
    for path in sorted(Path("/proc/sys/net").rglob("*")):
        try:
            if path.is_file():
                lines.append(f"{path}={path.read_text().strip()}")
        except OSError:
            continue  # write-only, or without a value
    # Counts of what is there, not settings.
    return "\n".join(line for line in lines if "nf_conntrack_count" not in line and "route/gc_" not in line)


def _look(marker: str) -> State:
    return {**leftovers.here(), "processes": _marked(marker)}


def _marked(marker: str) -> frozenset[Hashable]:
    """Processes that have the marker in their environment: the driver and all that it started."""
    found: set[Hashable] = set()
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                if marker.encode() in (each / "environ").read_bytes():
                    found.add(int(each.name))
            except OSError:
                continue
    return frozenset(found)


def _kill_in(phase: str, scene: Scene, environment: dict[str, str], delay: float) -> None:
    reader, writer = os.pipe()
    source, target = scene.made.pods[0][0].name, scene.made.pods[1][0].name
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.trace.kill_driver", str(writer), f"netns:{source}", f"netns:{target}:{SILENT_PORT}"],
            pass_fds=(writer,),
            env=environment,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    finally:
        os.close(writer)
    with process, open(reader) as phases:  # noqa: PTH123
        assert process.stderr is not None
        for line in phases:
            if line.strip() == PHASES[phase]:
                break
        else:
            process.kill()
            raise AssertionError(f"the trace ended before {phase}: {process.stderr.read().decode()}")
        time.sleep(delay)
        assert process.poll() is None, f"the trace ended during {phase}"
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=10) == -signal.SIGKILL


@pytest.mark.parametrize("phase", PHASES)
def test_a_kill_leaves_nothing(phase: str, scene: Scene) -> None:
    chance = random.Random(phase)
    before = _configuration(scene)
    for attempt in range(TIMES):
        marker = f"NETPATH_TEST_KILL={os.getpid()}-{phase}-{attempt}"
        name, _, value = marker.partition("=")
        cache = scene.cache / f"{attempt}" if phase == "compilation" else scene.cache / "warm"
        environment = {**os.environ, name: value, "XDG_CACHE_HOME": str(cache)}
        there = _look(marker)
        # Attaching takes a few milliseconds in all; the other phases far longer than the delay.
        _kill_in(phase, scene, environment, chance.uniform(0, 0.002 if phase == "attachment" else 0.05))
        left = leftovers.remaining(there, look=lambda marker=marker: _look(marker), seconds=15.0)  # type: ignore[misc]
        assert not left, f"killed in {phase}, attempt {attempt}: {left}"
    now = _configuration(scene)
    assert {kind: text for kind, text in now.items() if text != before[kind]} == {}
