"""The verbs on real namespaces: their documents, their codes, what an interruption leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers
from tests.cli import contract
from tests.cli.command import NETPATH, Done, environment, netpath, one_line, without_progress
from tests.netns import namespaces
from tests.topology import ECHO_PORT, Overlay, overlay

pytestmark = [pytest.mark.root, pytest.mark.ebpf]


@pytest.fixture(scope="module")
def made() -> Iterator[Overlay]:
    with overlay() as found:
        yield found


def ends(made: Overlay, port: int | None = ECHO_PORT) -> tuple[str, str]:
    target = f"netns:{made.pods[1][0].name}"
    return f"netns:{made.pods[0][0].name}", target if port is None else f"{target}:{port}"


@pytest.mark.parametrize("flags", [["--udp"], ["--tcp", "--round-trip"], ["--icmp"]], ids=lambda flags: flags[0])
def test_a_trace_as_json(made: Overlay, flags: list[str]) -> None:
    done = netpath("trace", *ends(made, None if flags == ["--icmp"] else ECHO_PORT), *flags, "-o", "json")
    assert (done.code, done.err) == (0, "")
    contract.check(done.document, contract.TRACE)
    assert ("port" in done.document["request"]) == (flags != ["--icmp"])
    assert ("round_trip_ns" in done.document) == ("--round-trip" in flags)
    assert [hop["index"] for hop in done.document["paths"][0]["hops"]] == list(range(1, 13))


def test_a_drop_as_json(made: Overlay) -> None:
    done = netpath("trace", *ends(made), "--udp", "--ttl", "1", "-o", "json")
    assert done.code == 1
    contract.check(done.document, contract.TRACE)
    assert done.document["outcome"] == "dropped" and done.document["paths"][0]["drop"]["remedy"]


def test_the_other_documents(made: Overlay, tmp_path: Path) -> None:
    for words, shape in (
        (["path", *ends(made), "--udp"], contract.PATH),
        (["path", *ends(made), "--udp", "--ttl", "1"], contract.PATH),
        (["inventory"], contract.INVENTORY),
        (["probes"], contract.PROBES),
    ):
        done = netpath(*words, "-o", "json")
        assert done.code == (1 if "--ttl" in words else 0), done.err
        contract.check(done.document, shape)
        assert done.out.isascii()
    file = tmp_path / "state.json"
    assert netpath("snapshot", "--output-file", str(file)).out == ""
    contract.check(netpath("snapshot").document, contract.SNAPSHOT)
    live, offline = (netpath("path", *ends(made), "--udp", *more) for more in ([], ["--snapshot", str(file)]))
    assert offline.code == 0 and offline.out == live.out


def test_tables_end_with_the_verdict(made: Overlay) -> None:
    done = netpath("trace", *ends(made), "--udp")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "verdict: delivered, as predicted, hop by hop; COMPLETE"
    narrow = netpath("trace", *ends(made), "--udp", env={"COLUMNS": "80"})
    assert max(map(len, narrow.out.splitlines())) <= 80
    assert "\x1b" not in done.out + narrow.out


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--expect", "delivered"], 0),
        (["--expect", "dropped"], 1),
        (["--expect", "dropped", "--ttl", "1"], 0),
        (["--expect", "delivered", "--ttl", "1"], 1),
        (["--expect-max-p99", "1s"], 0),
        (["--expect-max-p99", "1ns"], 1),
        (["--expect-max-p99", "1s", "--ttl", "1"], 1),
    ],
    ids=str,
)
def test_expectations(made: Overlay, flags: list[str], code: int) -> None:
    done = netpath("trace", *ends(made), "--udp", *flags)
    assert (done.code, done.err) == (code, "")


def test_lost_events_are_inconclusive(made: Overlay) -> None:
    """Without a pause between probes nobody empties a buffer of one page."""
    done = netpath("trace", *ends(made), "--udp", "--buffer", "4096", "--interval", "0", "--count", "200", "-o", "json")
    assert done.code == 4
    contract.check(done.document, contract.TRACE)
    found = done.document["completeness"]
    assert found["verdict"] == "PARTIAL" and found["lost_events"] > 0 and found["reasons"]


@pytest.mark.parametrize("size", ["0", "-4096", "2048", "5000", "lots"])
def test_a_buffer_is_a_power_of_two(made: Overlay, size: str) -> None:
    assert "--buffer" in one_line(netpath("trace", *ends(made), "--udp", f"--buffer={size}"), 2)


def test_an_address_in_two_namespaces_is_ambiguous() -> None:
    with namespaces(2) as pair:
        for each in pair:
            each.batch("link add d0 type bridge", "addr add 10.213.7.9/32 dev d0", "link set d0 up")
        line = one_line(netpath("path", "10.213.7.9", "10.213.7.1"), 2)
        assert "ambiguous" in line and all(each.name in line for each in pair)


def test_unknown_names_are_unknown() -> None:
    assert "nobody" in one_line(netpath("trace", "nobody", "10.0.0.1"), 2)


NO_BCC = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "bcc":
            raise ImportError("no bcc here")
sys.meta_path.insert(0, Refuse())
"""


def test_bcc_is_needed_only_to_compile(made: Overlay, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_BCC)
    path = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
    cold = netpath("trace", *ends(made), "--udp", env={"PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert "python3-bpfcc" in one_line(cold, 3)
    warm = {"XDG_CACHE_HOME": str(tmp_path / "kept")}
    assert netpath("trace", *ends(made), "--udp", env=warm).code == 0
    assert netpath("trace", *ends(made), "--udp", env={**warm, "PYTHONPATH": path}).code == 0


def test_a_kernel_without_btf_is_named(made: Overlay, tmp_path: Path) -> None:
    """The path of the kernel's types is a default argument: the command runs with one that leads nowhere."""
    (tmp_path / "sitecustomize.py").write_text(
        "from pathlib import Path\nfrom netpath.ebpf import btf\nbtf.read.__defaults__ = (Path('/sys/kernel/btf/none'),)\n"
    )
    path = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
    line = one_line(netpath("trace", *ends(made), "--udp", env={"PYTHONPATH": path}), 3)
    assert "BTF" in line and "CONFIG_DEBUG_INFO_BTF" in line


def _holds(pid: int, kind: str) -> bool:
    """Whether a process has a descriptor of that kind."""
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if kind in str(each.readlink()):
                return True
        except OSError:
            continue  # closed since
    return False


@pytest.mark.parametrize("kind", ["bpf-map", "bpf-prog", "bpf_link"])
@pytest.mark.parametrize("group", [True, False], ids=["terminal", "kill"])
def test_an_interruption_leaves_nothing(made: Overlay, group: bool, kind: str) -> None:
    """SIGINT when the first of `kind` is there; to the whole group as a terminal sends it, or to netpath alone."""
    before = leftovers.here()
    process = subprocess.Popen(
        [*NETPATH, "trace", *ends(made), "--udp", "--count", "1000", "--interval", "0.05"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd="/",
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not _holds(process.pid, kind):
            assert process.poll() is None and time.monotonic() < deadline
        (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "interrupted" in one_line(Done(process.returncode, out, without_progress(err)), 130)
    assert not leftovers.remaining(before, look=leftovers.here)
