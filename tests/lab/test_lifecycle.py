"""Up, down, and every way to end in between."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from netpath import lab
from netpath.errors import MissingError, NetpathError, UsageError
from netpath.lab import netns, state
from netpath.lab.kernel import Space
from tests.lab.helpers import alive, inhabitants, leftovers, processes, run

pytestmark = pytest.mark.root


def echo_pid(name: str) -> int:
    stored = state.load(name)
    assert stored is not None
    return next(process.pid for process in stored.processes if process.role == "echo")


def test_twenty_times_up_and_down_leaves_nothing(lab_name: str) -> None:
    for _ in range(20):
        began = time.monotonic()
        made = lab.up("flannel-vxlan", lab_name)
        seconds = time.monotonic() - began
        inodes = {member.inode for member in (*made.nodes, *made.pods)}
        assert len(inodes) == 6
        pid = echo_pid(lab_name)
        inside = inhabitants(inodes)
        lab.down(lab_name)
        assert leftovers(lab_name) == []
        assert not alive(inside)
        assert not Path(f"/proc/{pid}").exists()
        # Generous: the machine has other things to do.
        assert seconds < 5


def test_running_removes_the_lab_after_an_error() -> None:
    name = f"npt{os.urandom(3).hex()}"
    with pytest.raises(RuntimeError, match="in the block"), lab.running("bridge", name) as made:
        assert [one.name for one in lab.list_labs() if one.name == name] == [name]
        assert made.status == "up"
        raise RuntimeError("in the block")
    assert leftovers(name) == []


_BUILDER = """
import os, signal, sys
from netpath import lab
from netpath.lab import kernel, netns, echoes, state
count = [0]
def counted(function):
    def wrapper(*args, **kwargs):
        count[0] += 1
        if count[0] == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper
kernel.Space._check = counted(kernel.Space._check)
netns.create = counted(netns.create)
netns.unshare = counted(netns.unshare)
netns.mount = counted(netns.mount)
state.Store.update = counted(state.Store.update)
state.start_time = counted(state.start_time)
lab.up("flannel-vxlan", sys.argv[1])
print(count[0])
"""


def build_and_die(name: str, step: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _BUILDER, name, str(step)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def test_killed_at_any_step_down_removes_everything(lab_name: str) -> None:
    """The builder kills itself with SIGKILL before its Nth step, for some N of each part of the build."""
    whole = build_and_die(lab_name, 0)
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout)
    lab.down(lab_name)
    chosen = {2, 3, 4, 5, steps - 4, steps - 3, steps - 2, steps - 1, steps, *random.Random(7).sample(range(6, steps - 4), 8)}
    for step in sorted(chosen):
        died = build_and_die(lab_name, step)
        assert died.returncode == -signal.SIGKILL, (step, died.stderr)
        recorded = state.load(lab_name)
        inside: set[tuple[int, int]] = set()
        if recorded is None:
            # Before the first change nothing is on record, and nothing is there.
            assert [path for path in leftovers(lab_name) if not path.endswith((".lock", ".new"))] == [], step
            with pytest.raises(UsageError):
                lab.down(lab_name)
        else:
            inside = inhabitants({path.stat().st_ino for path in Path("/run/netns").glob(f"{lab_name}-*")})
            assert lab_name in [one.name for one in lab.list_labs()]
            lab.down(lab_name)
        assert leftovers(lab_name) == [], step
        assert not alive(inside), step
    gone(lab_name)


_REMOVER = """
import os, signal, sys
from netpath import lab
from netpath.lab import netns, state
remove = sys.modules["netpath.lab.remove"]
count = [0]
def counted(function):
    def wrapper(*args, **kwargs):
        count[0] += 1
        if count[0] == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper
for module, name in ((netns, "remove"), (netns, "enter"), (netns, "unmount"), (remove, "end"), (remove, "_inside"), (state, "forget")):
    setattr(module, name, counted(getattr(module, name)))
lab.down(sys.argv[1])
print(count[0])
"""


def remove_and_die(name: str, step: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _REMOVER, name, str(step)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def test_killed_while_removing_the_next_down_removes_the_rest(lab_name: str) -> None:
    lab.up("flannel-udp", lab_name)
    whole = remove_and_die(lab_name, 0)
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout)
    for step in (1, 2, 3, steps // 2, steps - 3, steps - 1, steps):
        lab.up("flannel-udp", lab_name)
        assert remove_and_die(lab_name, step).returncode == -signal.SIGKILL
        lab.down(lab_name)
        assert leftovers(lab_name) == [], step
        gone(lab_name)


def test_killed_at_random_moments(lab_name: str) -> None:
    chance = random.Random(11)
    for _ in range(6):
        builder = subprocess.Popen(
            [sys.executable, "-c", _BUILDER, lab_name, "0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
        )
        deadline = time.monotonic() + 30
        while state.load(lab_name) is None and time.monotonic() < deadline and builder.poll() is None:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.3))
        builder.kill()
        builder.wait()
        lab.down(lab_name)
        assert leftovers(lab_name) == []
        gone(lab_name)


def gone(name: str) -> None:
    """No process has the lab's name. A server that was started and not yet recorded ends by itself when its pipe closes."""
    deadline = time.monotonic() + 5
    while (left := processes(name)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def test_an_interrupted_build_leaves_nothing(lab_name: str) -> None:
    """SIGINT while the worker builds: KeyboardInterrupt comes out, after everything was removed."""
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from netpath import lab
from netpath.lab import kernel
original = kernel.Space.port
def interrupting(self, *args, **kwargs):
    os.kill(os.getpid(), signal.SIGINT)
    return original(self, *args, **kwargs)
kernel.Space.port = interrupting
try:
    lab.up("flannel-vxlan", {lab_name!r})
except KeyboardInterrupt:
    sys.exit(77)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 77, done.stderr
    assert leftovers(lab_name) == []
    gone(lab_name)


def test_a_refused_build_is_one_line_and_leaves_nothing(lab_name: str) -> None:
    # The kernel has no vxlan device of the name that the bridge already has.
    with pytest.raises(NetpathError, match=f"lab: {lab_name}-node1: making cni0: ") as caught:
        lab.up("flannel-vxlan", lab_name, tunnel="cni0")
    assert "\n" not in str(caught.value)
    assert leftovers(lab_name) == []


def test_one_lab_of_a_name(lab_name: str) -> None:
    lab.up("bridge", lab_name)
    with pytest.raises(UsageError, match="is there already"):
        lab.up("bridge", lab_name)
    # The refusal did not hurt the one that is there.
    assert lab.run_in(f"{lab_name}/pod1a", ["true"]) == 0


def test_two_builders_of_one_name(lab_name: str) -> None:
    """While one builds, another is refused; nothing of the first is touched."""
    with state.locked(lab_name, wait=False), pytest.raises(UsageError, match="being built or removed"):
        lab.up("bridge", lab_name)
    assert leftovers(lab_name) == []


def test_a_foreign_namespace_is_never_taken(lab_name: str) -> None:
    run("ip", "netns", "add", f"{lab_name}-node2")
    try:
        inode = Path(f"/run/netns/{lab_name}-node2").stat().st_ino
        with pytest.raises(UsageError, match=f"{lab_name}-node2 is there and not this lab's"):
            lab.up("bridge", lab_name)
        assert Path(f"/run/netns/{lab_name}-node2").stat().st_ino == inode
    finally:
        run("ip", "netns", "del", f"{lab_name}-node2")
    assert leftovers(lab_name) == []


def test_down_ends_what_runs_inside_and_nothing_else(lab_name: str) -> None:
    made = lab.up("bridge", lab_name)
    inside = subprocess.Popen(["nsenter", f"--net={made.pod('pod1a').path}", "sleep", "1000"])
    outside = subprocess.Popen(["sleep", "1000"])
    try:
        inode = made.pod("pod1a").inode
        deadline = time.monotonic() + 5
        while Path(f"/proc/{inside.pid}/ns/net").stat().st_ino != inode and time.monotonic() < deadline:
            time.sleep(0.005)
        lab.down(lab_name)
        assert inside.wait(timeout=5) == -signal.SIGTERM
        assert outside.poll() is None
    finally:
        outside.kill()
        outside.wait()


def test_a_recycled_pid_is_not_ended(lab_name: str) -> None:
    """A process that has the recorded number but started at another time is somebody else."""
    lab.up("bridge", lab_name)
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        path = Path(f"/run/netpath/labs/{lab_name}.json")
        document = json.loads(path.read_text())
        began = state.start_time(stranger.pid)
        assert began is not None
        document["processes"].append({"pid": stranger.pid, "start_time": began - 1, "role": "echo"})
        path.write_text(json.dumps(document))
        lab.down(lab_name)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_unknown_names_modes_and_options(lab_name: str) -> None:
    for call, words in (
        (lambda: lab.down(lab_name), "no lab called"),
        (lambda: lab.up("nonsense", lab_name), "lab mode 'nonsense': one of flannel-vxlan, flannel-hostgw, "),
        (lambda: lab.up("bridge", "../x"), "lab name"),
        (lambda: lab.up("bridge", lab_name, colour="red"), "colour"),
        (lambda: lab.up("bridge", lab_name, pods_per_node=0), "0 pods on a node"),
        (lambda: lab.up("bridge", lab_name, pod_network="10.0.0.0/30"), "pod network"),
        (lambda: lab.up("bridge", lab_name, underlay="fd00::/64"), "underlay"),
        (lambda: lab.up("bridge", lab_name, bridge="a name"), "no name of a device"),
        (lambda: lab.run_in(f"{lab_name}/pod1a", ["true"]), "no lab called"),
        (lambda: lab.run_in("pod-nobody-has", ["true"]), "no node or pod called"),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert leftovers(lab_name) == []


def test_options_from_words() -> None:
    assert lab.parse_options(["services=nftables", "nodes=3", "ipv6=yes", "overlay_mtu=1400", "masquerade=off", "bridge=cbr0"]) == {
        "services": "nftables",
        "nodes": 3,
        "ipv6": True,
        "overlay_mtu": 1400,
        "masquerade": False,
        "bridge": "cbr0",
    }
    for pair, words in (
        ("nodes", "NAME=VALUE"),
        ("colour=red", "one of nodes, pods_per_node"),
        ("nodes=many", "is not a number"),
        ("ipv6=perhaps", "is not yes or no"),
    ):
        with pytest.raises(UsageError, match=words):
            lab.parse_options([pair])


def test_a_kernel_without_the_device_is_named(lab_name: str) -> None:
    """A kind of device that no kernel has: exit code 3 and its name, and nothing stays."""
    real = Space.link
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MissingError, match="makes no netpath-none devices") as caught:
        patch.setattr(Space, "link", lambda self, device, kind, **more: real(self, device, "netpath-none"))
        lab.up("bridge", lab_name)
    assert caught.value.exit_code == 3
    assert leftovers(lab_name) == []


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, NetpathError), (errno.EPERM, MissingError)], ids=["disk full", "no privilege"]
)
def test_an_error_of_the_system_is_one_line(
    lab_name: str, code: int, kind: type[NetpathError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code), "/run/netns/x")

    monkeypatch.setattr(netns, "mount", refuse)
    with pytest.raises(kind) as caught:
        lab.up("bridge", lab_name)
    assert type(caught.value) is kind
    assert str(caught.value) == f"lab {lab_name}: /run/netns/x: {os.strerror(code)}"
    monkeypatch.undo()
    assert leftovers(lab_name) == []


def test_remnants_of_a_builder_that_died_at_once_are_cleared(lab_name: str) -> None:
    folder = Path("/run/netpath/labs")
    for suffix in ("new", "lock"):
        (folder / f"{lab_name}.{suffix}").touch()
    assert lab_name in state.remnants()
    with pytest.raises(UsageError, match="no lab called"):
        lab.down(lab_name)
    assert leftovers(lab_name) == []


def test_list_tells_what_is_there(lab_name: str) -> None:
    made = lab.up("flannel-hostgw", lab_name, pods_per_node=1)
    (listed,) = [one for one in lab.list_labs() if one.name == lab_name]
    assert listed == made
    assert (listed.mode, listed.status) == ("flannel-hostgw", "up")
    assert [pod.name for pod in listed.pods] == ["pod1a", "pod2a"]
    assert listed.pod("pod2a").path == f"/run/netns/{lab_name}-pod2a"
    assert listed.pod("pod2a").node == "node2"
    assert listed.pod("pod2a").inode == Path(f"/run/netns/{lab_name}-pod2a").stat().st_ino


def test_every_mode_says_what_is_real() -> None:
    assert lab.MODES[0].name == "flannel-vxlan"
    for mode in lab.MODES:
        assert mode.real_parts and mode.summary and mode.try_commands
        assert ("kernel's datapath" in mode.real_parts and "imitated" in mode.real_parts) or "dockerd" in mode.real_parts
        assert any("{lab}" in command for command in mode.try_commands)


def test_run_in_passes_the_exit_code_and_enters_the_namespace(lab_name: str) -> None:
    made = lab.up("bridge", lab_name)
    own = Path("/proc/self/ns/net").stat().st_ino
    assert lab.run_in(f"{lab_name}/pod1a", ["sh", "-c", "exit 7"]) == 7
    assert lab.run_in(f"{lab_name}/node1", ["sh", "-c", "kill -9 $$"]) == 137
    assert lab.run_in(f"{lab_name}/node1", ["/nonexistent/program"]) == 127
    assert lab.run_in(f"{lab_name}/node1", ["/etc/passwd"]) == 126
    for target, member in ((f"{lab_name}/pod2b", made.pod("pod2b")), (f"{lab_name}-node2", made.node("node2"))):
        assert lab.run_in(target, ["sh", "-c", f"[ $(stat -Lc %i /proc/self/ns/net) = {member.inode} ]"]) == 0
    assert Path("/proc/self/ns/net").stat().st_ino == own


def test_a_short_name_in_two_labs_is_ambiguous(lab_name: str) -> None:
    with lab.running("bridge", lab_name, pods_per_node=1), lab.running("bridge", f"{lab_name}b", pods_per_node=1):
        with pytest.raises(UsageError) as caught:
            lab.find("pod1a")
        assert f"{lab_name}/pod1a" in str(caught.value) and f"{lab_name}b/pod1a" in str(caught.value)
        assert lab.find(f"{lab_name}b/pod1a").netns == f"{lab_name}b-pod1a"


def test_nothing_changes_in_the_machines_own_namespace(lab_name: str) -> None:
    def own() -> tuple[str, ...]:
        sysctls = (
            "net.ipv4.ip_forward",
            "net.ipv4.conf.all.forwarding",
            "net.ipv6.conf.all.forwarding",
            "net.ipv4.conf.all.rp_filter",
        )
        return (
            run("ip", "-o", "link", "show", "type", "veth"),
            run("ip", "-o", "link", "show", "type", "bridge"),
            run("ip", "-o", "link", "show", "type", "vxlan"),
            run("ip", "route"),
            run("ip", "-6", "route"),
            run("sysctl", "-n", *sysctls),
            run("nft", "list", "ruleset"),
        )

    before = own()
    with lab.running("flannel-vxlan", lab_name, ipv6=True):
        assert own() == before
    assert own() == before
