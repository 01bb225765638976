"""Wrong usage, missing privileges, broken files: one clear line, the contract's exit code, no traceback."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from netpath import snapshotfile
from netpath.model.snapshot import Snapshot
from tests.cli.command import NETPATH, ROOT, Done, as_nobody, environment, netpath, one_line
from tests.predict.build import Build

VERBS = ("inventory", "path", "trace", "probes", "snapshot", "lab", "lab up", "lab down", "lab list", "lab exec")


def two_pods() -> Snapshot:
    """Two pods of one address behind two nodes, and a third pod."""
    net = Build()
    node = net.ns("node", forward=True)
    for number, (name, address) in enumerate((("web", "10.1.0.2"), ("twin", "10.1.0.2"), ("db", "10.1.1.2"))):
        pod = net.ns(name)
        net.wire(pod, "eth0", node, f"veth{number}")
        pod.addr("eth0", f"{address}/24")
        pod.route("0.0.0.0/0", dev="eth0")
    node.route("10.1.1.0/24", dev="veth2").addr("veth2", "10.1.1.1/24")
    return net.snapshot()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("state") / "state.json"
    path.write_bytes(snapshotfile.encode(two_pods()))
    for each in (path, *path.parents):
        if str(each).startswith("/tmp/"):
            each.chmod(each.stat().st_mode | 0o055 | (0o004 if each.is_file() else 0))
    return str(path)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    done = netpath(*verb.split(), "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: netpath {verb} ")
    assert max(map(len, done.out.splitlines())) <= 80


def test_without_a_verb_the_help_is_shown() -> None:
    done = netpath()
    assert done.code == 2 and done.out.startswith("Usage: netpath [OPTIONS]") and not done.err
    assert len(done.out.splitlines()) > 10
    assert netpath("lab").out.startswith("Usage: netpath lab")


def test_the_version() -> None:
    from netpath import __version__

    assert netpath("--version").out == f"netpath {__version__}\n"


def _median(command: list[str]) -> float:
    times = []
    for _ in range(7):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def test_help_is_quick() -> None:
    """At most six times Python's own start; noise of the machine gets several chances."""
    script = Path(sys.executable).with_name("netpath")
    command = [str(script)] if script.exists() else list(NETPATH)
    ratios = []
    for _ in range(5):
        ratios.append(_median([*command, "--help"]) / _median([sys.executable, "-c", "pass"]))
        if ratios[-1] <= 6:
            return
    raise AssertionError(f"netpath --help takes {min(ratios):.1f} times python -c pass")


@pytest.mark.parametrize(
    ("words", "mentioned"),
    [
        (["nonsense"], "nonsense"),
        (["path"], "SRC"),
        (["path", "web"], "DST"),
        (["path", "web", "db", "--nonsense"], "--nonsense"),
        (["path", "web", "db", "--ttl", "many"], "--ttl"),
        (["path", "web", "db", "--ttl", "0"], "--ttl"),
        (["path", "web", "db", "-o", "xml"], "xml"),
        (["path", "web", "db", "--udp", "--tcp"], "exclude"),
        (["path", "web", "db", "--udp"], "--udp needs a port"),
        (["path", "web", "db:80", "--icmp"], "ICMP has no ports"),
        (["path", "web", "db:99999"], "99999"),
        (["path", "web", "db:80", "--udp", "--size", "3"], "--size"),
        (["path", "web", "db", "--expect", "luck"], "luck"),
        (["path", "nobody", "db"], "nobody"),
        (["path", "netns:nobody", "db"], "nobody"),
        (["path", "10.9.9.9", "db"], "10.9.9.9"),
        (["path", "pid:x", "db"], "pid"),
        (["path", "", "db"], "not an endpoint"),
        (["path", "web\x1b[31m\nnetpath: ok", "db"], "not an endpoint"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], mentioned: str, state: str) -> None:
    more = ["--snapshot", state] if words[0] == "path" else []
    assert mentioned in one_line(netpath(*words, *more), 2)


def test_an_ambiguous_address_lists_the_candidates(state: str) -> None:
    line = one_line(netpath("path", "10.1.0.2", "db", "--snapshot", state), 2)
    assert "ambiguous" in line and "netns:web@10.1.0.2" in line and "netns:twin@10.1.0.2" in line


def test_bytes_that_are_no_text_are_an_argument_like_any_other(state: str) -> None:
    done = subprocess.run(
        [*NETPATH, "path", b"\xff\x9b31m", "db", "--snapshot", state], capture_output=True, env=environment(), check=False
    )
    assert "\\udcff" in one_line(Done(done.returncode, done.stdout.decode(), done.stderr.decode()), 2)


@pytest.mark.parametrize(
    ("content", "mentioned"),
    [
        (None, "No such file"),
        (b"", "no JSON"),
        (b"\x00\xff garbage", "no JSON"),
        (b"{}", "no document of netpath"),
        (b'{"apiVersion": "netpath/v9", "kind": "Snapshot"}', "netpath/v9"),
        (b'{"apiVersion": "netpath/v1alpha1", "kind": "Trace"}', "kind is Trace"),
        (b'{"apiVersion": "netpath/v1alpha1", "kind": "Snapshot", "snapshot": {"schema": 999}}', "newer netpath"),
        (b'{"apiVersion": "netpath/v1alpha1", "kind": "Snapshot", "snapshot": {"namespaces": 7}}', "not a valid snapshot"),
        (b"[" * 200_000, "no JSON"),
        (b"\x1f\x8b garbage", ""),
    ],
)
@pytest.mark.parametrize("verb", [["inventory"], ["path", "web", "db"]], ids=["inventory", "path"])
def test_a_bad_snapshot_is_named(verb: list[str], content: bytes | None, mentioned: str, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    if content is not None:
        path.write_bytes(content)
    line = one_line(netpath(*verb, "--snapshot", str(path)), 2)
    assert str(path) in line and mentioned in line


@pytest.mark.root
def test_a_file_that_may_not_be_read_or_written(tmp_path: Path) -> None:
    assert "Permission denied" in one_line(as_nobody("inventory", "--snapshot", "/etc/shadow"), 2)
    line = one_line(netpath("snapshot", "--script", "--output-file", str(tmp_path / "no" / "file")), 2)
    assert "No such file" in line


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "collect.sh"
    file.write_text("what was there before")
    link = tmp_path / "link"
    link.symlink_to(file)
    words = ["snapshot", "--script", "--output-file", str(link)]
    full = subprocess.run(
        ["prlimit", "--fsize=1000", *NETPATH, *words], capture_output=True, text=True, env=environment(), check=False
    )
    assert "File too large" in one_line(Done(full.returncode, full.stdout, full.stderr), 2)
    assert file.read_text() == "what was there before" and sorted(tmp_path.iterdir()) == [file, link]
    file.chmod(0o600)
    assert netpath(*words).code == 0
    assert file.read_text() == netpath("snapshot", "--script").out and link.is_symlink() and file.stat().st_mode & 0o777 == 0o600
    assert netpath("snapshot", "--script", "--output-file", "/dev/stdout").out == file.read_text()


@pytest.mark.root
@pytest.mark.parametrize(
    "words",
    [
        ["inventory"],
        ["path", "host", "10.0.0.1"],
        ["trace", "host", "10.0.0.1"],
        ["probes"],
        ["snapshot"],
        ["lab", "up"],
    ],
    ids=" ".join,
)
def test_without_root_the_privilege_is_named(words: list[str], tmp_path: Path) -> None:
    line = one_line(as_nobody(*words, env={"XDG_CACHE_HOME": None, "HOME": "/nonexistent"}), 3)
    assert "root" in line or "CAP_" in line


@pytest.mark.root
def test_a_snapshot_needs_no_root(state: str) -> None:
    done = as_nobody("inventory", "--snapshot", state)
    assert (done.code, done.err) == (0, "") and "web" in done.out
    done = as_nobody("path", "web", "10.1.1.2", "--snapshot", state)
    assert done.code in (0, 1, 4) and not done.err and "forward path" in done.out


def _run_broken(tmp_path: Path, body: str, *words: str) -> Done:
    """The real command, in an interpreter where something is broken before it starts."""
    (tmp_path / "sitecustomize.py").write_text(body)
    return netpath(*words, env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "XDG_CACHE_HOME": str(tmp_path / "cache")})


def test_an_unexpected_error_is_one_line_and_debug_shows_where(tmp_path: Path, state: str) -> None:
    body = "import netpath.snapshotfile as broken\ndef load(path):\n    raise ZeroDivisionError('boom\\n\\x1b[31m')\nbroken.load = load\n"
    line = one_line(_run_broken(tmp_path, body, "inventory", "--snapshot", state), 1)
    assert "ZeroDivisionError" in line and "--debug" in line
    done = _run_broken(tmp_path, body, "inventory", "--snapshot", state, "--debug")
    assert (
        done.code == 1 and "Traceback" in done.err and done.err.splitlines()[-1].startswith("netpath: unexpected ZeroDivisionError")
    )


def test_debug_shows_where_a_usage_error_came_from(tmp_path: Path) -> None:
    done = netpath("--debug", "inventory", "--snapshot", str(tmp_path / "none"))
    assert done.code == 2 and "Traceback" in done.err


def test_a_closed_pipe_ends_quietly(state: str) -> None:
    words = " ".join(NETPATH)
    for command in (f"{words} inventory -o json --snapshot {state}", f"{words} lab list", f"{words} snapshot --script"):
        done = subprocess.run(["sh", "-c", f"{command} | head -c 1"], capture_output=True, env=environment(), check=False, cwd="/")
        assert done.returncode == 0 and done.stderr == b"", done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        gone = subprocess.run([*NETPATH, "--version"], stdout=closed, stderr=subprocess.PIPE, env=environment(), check=False)
    assert gone.returncode == 128 + signal.SIGPIPE and gone.stderr == b""


def test_a_full_disk_is_said() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*NETPATH, "--version"], stdout=full, stderr=subprocess.PIPE, env=environment(), check=False)
    assert "No space left" in one_line(Done(done.returncode, "", done.stderr.decode()), 1)


def test_the_flags_of_a_command_in_a_lab_are_its_own() -> None:
    from netpath.cli.main import _take_switches

    assert _take_switches(["--debug", "lab", "exec", "pod1a", "ls", "--no-color"]) == ["lab", "exec", "pod1a", "ls", "--no-color"]
    assert _take_switches(["lab", "exec", "--debug", "pod1a", "--", "x", "--debug"]) == [
        "lab",
        "exec",
        "pod1a",
        "--",
        "x",
        "--debug",
    ]
    assert _take_switches(["path", "a", "b", "--no-color"]) == ["path", "a", "b"]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_any_terminal_encoding_will_do(encoding: str, state: str) -> None:
    for output in ("table", "wide", "tree", "json"):
        done = subprocess.run(
            [*NETPATH, "inventory", "-o", output, "--snapshot", state],
            capture_output=True,
            env=environment({"PYTHONIOENCODING": encoding}),
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        if output == "json":
            assert done.stdout.isascii() and json.loads(done.stdout)["kind"] == "Inventory"
