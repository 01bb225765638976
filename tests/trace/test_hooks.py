"""Each kind of hook that this kernel has, forced in turn: it sees the same hops, the same rewrite and the same stages."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from netpath.ebpf.capabilities import survey
from netpath.ebpf.providers import DEVICES, INSIDE
from netpath.errors import MissingError, UsageError
from netpath.model.path import Path
from netpath.trace.request import TraceRequest
from netpath.trace.session import run
from tests.topology import ECHO_PORT, Overlay, Shape, overlay

pytestmark = [pytest.mark.root, pytest.mark.ebpf]

SERVICE, PORT = "10.111.0.7", 53
TRANSLATING = "other conntrack nat route filter route nat other encap conntrack nat route nat other"
"""What the sending node does with a packet for the service, from its bridge to its tunnel and out."""


@pytest.fixture(scope="module")
def made() -> Iterator[Overlay]:
    """An overlay whose first node translates a service's address to the far pod's, and filters what it forwards."""
    with overlay(Shape()) as found:
        node = found.nodes[0]
        with contextlib.suppress(FileNotFoundError):
            node.sysctl("net.bridge.bridge-nf-call-iptables", 0)
        far = found.address(1, 0)
        node.run(
            "iptables", "-t", "nat", "-A", "PREROUTING", "-d", SERVICE, "-p", "udp", "-j", "DNAT", "--to", f"{far}:{ECHO_PORT}"
        )
        node.run("iptables", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
        yield found


def traced(made: Overlay, *hooks: str, protocol: str = "udp", to: str | None = None) -> Path:
    source = f"netns:{made.pods[0][0].name}"
    done = run(TraceRequest(source, to or f"{SERVICE}:{PORT}", protocol, count=2, timeout=5.0, hooks=hooks)).trace
    assert (done.outcome, done.completeness.verdict, done.diverged) == ("delivered", "COMPLETE", False), done.completeness
    # Before 5.13 no tracepoint tells when a queueing discipline takes a packet; nothing here has one.
    assert not [lost for lost in done.completeness.missing_hooks if "qdisc_enqueue" not in lost], done.completeness
    (path,) = [path for path in done.paths if path.direction == "forward"]
    assert {hop.status for hop in path.hops} == {"observed"}
    return path


@pytest.fixture(scope="module")
def usual(made: Overlay) -> Path:
    """Seen by what netpath takes here of itself."""
    return traced(made)


def here() -> set[str]:
    return {kind.option for kind in survey() if kind.option and kind.available}


def told(path: Path) -> tuple[object, ...]:
    return (
        [(hop.netns.name, hop.device.name, hop.direction, hop.length) for hop in path.hops],
        [(each.hop, each.kind, each.before.dst, each.after.dst, each.rule and each.rule.text) for each in path.translations],
        [(stage.stage, stage.from_hop, stage.to_hop) for stage in path.stages],
    )


@pytest.mark.parametrize("name", [each.name for each in (*DEVICES, *INSIDE)])
def test_every_kind_sees_the_same(made: Overlay, usual: Path, name: str) -> None:
    if name not in here():
        pytest.skip(f"this kernel has no {name} hooks")
    path = traced(made, name)
    assert told(path) == told(usual)
    assert " ".join(stage.stage for stage in path.stages if stage.to_hop in (4, 5)) == TRANSLATING
    assert [(each.kind, each.before.dst, each.after.dst) for each in path.translations] == [
        ("dnat", f"{SERVICE}:{PORT}", f"{made.address(1, 0)}:{ECHO_PORT}")
    ]
    assert path.delivery is not None and path.delivery.to == "socket"


@pytest.mark.parametrize("name", [each.name for each in INSIDE])
@pytest.mark.parametrize("protocol", ["icmp", "tcp"])
def test_arrivals_that_no_socket_tells(made: Overlay, name: str, protocol: str) -> None:
    if name not in here():
        pytest.skip(f"this kernel has no {name} hooks")
    port = f":{ECHO_PORT}" if protocol == "tcp" else ""
    path = traced(made, name, protocol=protocol, to=f"netns:{made.pods[1][0].name}{port}")
    assert path.outcome == "delivered"


def test_a_kind_that_this_kernel_lacks_is_refused(made: Overlay) -> None:
    for lacking in {each.name for each in INSIDE} - here():
        with pytest.raises(MissingError, match=f"--hooks {lacking}: .* does not work on this kernel .*; it needs"):
            traced(made, lacking)


def test_a_kind_that_there_is_not_is_one_line() -> None:
    with pytest.raises(UsageError, match="--hooks ftrace: no such kind of hook; there are btf, raw, netfilter, fentry, kprobe"):
        run(TraceRequest("host", "127.0.0.1", hooks=("ftrace",)))


def test_without_the_kernels_types_nothing_is_guessed(made: Overlay) -> None:
    """BTF hidden: one line that says what is missing, and exit code 3, whatever was kept of it before."""
    ends = [f"netns:{made.pods[0][0].name}", f"netns:{made.pods[1][0].name}:{ECHO_PORT}"]
    hidden = 'mount -t tmpfs none /sys/kernel/btf && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", hidden, "sh", sys.executable, "-m", "netpath", "trace", *ends, "--udp"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 3 and done.stdout == ""
    assert "/sys/kernel/btf/vmlinux" in line and "CONFIG_DEBUG_INFO_BTF" in line
