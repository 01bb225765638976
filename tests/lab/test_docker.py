"""The Docker lab: real dockerds that leave nothing behind."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netpath import lab
from netpath.errors import MissingError
from netpath.lab import Lab, guests, state
from netpath.lab.docker_api import Docker
from tests.lab.helpers import Space, alive, inhabitants, leftovers, processes, read, rules
from tests.lab.test_lifecycle import gone
from tests.lab.test_traffic import check_pairs

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]


@pytest.fixture(scope="module", autouse=True)
def _guests() -> None:
    """Fetched once; without a package archive there is nothing to test."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("needs root and apt-get")
    try:
        guests.fetch("docker", guests.DOCKER)
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def docker() -> Iterator[Lab]:
    with lab.running("docker", f"npt{os.urandom(3).hex()}") as made:
        yield made


def exchange(path: str, source_port: int, address: str, port: int) -> str | None:
    """Send a datagram from the namespace at `path`; the address that answers, None if nobody."""
    with Space(path).socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        if source_port:
            sock.bind(("", source_port))
        sock.sendto(b"over docker", (address, port))
        try:
            data, sender = sock.recvfrom(100)
        except (TimeoutError, ConnectionRefusedError):
            return None
        assert data == b"over docker"
        return f"{sender[0]}:{sender[1]}"


def proxies(name: str) -> set[int]:
    return {pid for pid in processes(name) if Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0].endswith("docker-proxy")}


def traces(name: str) -> list[str]:
    """What the lab `name` has left on the machine, control groups included."""
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/netpath-{name}-*")]
    return leftovers(name) + groups


def outside() -> set[str]:
    """Files and folders that Docker's programs are known to write when nobody stops them."""
    places = (
        "/etc/docker",
        "/run/docker",
        "/run/containerd",
        "/opt/containerd",
        "/var/lib/docker",
        "/var/lib/containerd",
        "/run/docker.sock",
    )
    found = {place for place in places if Path(place).exists()}
    return found | {str(path) for folder in ("/run", "/opt", "/etc", "/var/lib") for path in Path(folder).iterdir()}


def test_two_containers_have_the_same_address(docker: Lab) -> None:
    assert {pod.name: (pod.node, pod.address) for pod in docker.pods} == {
        "c1": ("node1", "172.17.0.2"),
        "c2": ("node1", "172.17.0.3"),
        "c3": ("node2", "172.17.0.2"),
        "c4": ("node1", "172.20.0.2"),
    }
    assert len({pod.inode for pod in docker.pods}) == 4
    assert docker.pod("c3").label == "docker:c3"
    for pod in docker.pods:
        (eth0,) = [link for link in read(pod.path, "ip", "-j", "addr") if link["ifname"] == "eth0"]
        assert pod.address in [entry["local"] for entry in eth0["addr_info"]]


def test_the_rules_are_dockerds_own(docker: Lab) -> None:
    tables = rules(docker.node("node1").netns)
    assert "-A DOCKER ! -i docker0 -p udp -m udp --dport 12346 -j DNAT --to-destination 172.17.0.2:7071" in tables["nat"]
    assert "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE" in tables["nat"]
    assert [line for line in tables["nat"] if "--dport 12349" in line and "-d 192.168.50.11/32" in line]
    assert ":FORWARD ACCEPT" in tables["filter"]
    assert rules(docker.node("node2").netns) != tables


def test_the_sockets_answer(docker: Lab) -> None:
    assert len(docker.docker_sockets) == 2
    names = [
        sorted(name for one in Docker(path).ask("GET", "/containers/json") for name in one["Names"])
        for path in docker.docker_sockets
    ]
    assert names == [["/c1", "/c2", "/c4"], ["/c3"]]
    for path, one, pod in ((docker.docker_sockets[0], "c1", docker.pod("c1")), (docker.docker_sockets[1], "c3", docker.pod("c3"))):
        found = Docker(path).ask("GET", f"/containers/{one}/json")
        assert Path(found["NetworkSettings"]["SandboxKey"]).stat().st_ino == pod.inode
        assert Path(f"/proc/{found['State']['Pid']}/ns/net").stat().st_ino == pod.inode


def test_published_ports_between_nodes(docker: Lab) -> None:
    # From a container on one node to the port that a container on the other publishes: the answer is from the port asked.
    assert exchange(docker.pod("c3").path, 0, "192.168.50.11", 12346) == "192.168.50.11:12346"
    assert exchange(docker.pod("c2").path, 0, "192.168.50.12", 12348) == "192.168.50.12:12348"
    assert exchange(docker.pod("c3").path, 0, "192.168.50.11", 12349) == "192.168.50.11:12349"
    assert exchange(docker.node("node2").path, 0, "192.168.50.11", 12346) == "192.168.50.11:12346"
    # Nothing is published there.
    assert exchange(docker.node("node2").path, 0, "192.168.50.11", 12399) is None
    with Space(docker.pod("c3").path).socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.connect(("192.168.50.11", 12345))
        sock.sendall(b"over tcp")
        assert sock.recv(100) == b"over tcp"


def test_the_userland_proxy_answers_where_nat_does_not(docker: Lab) -> None:
    assert len(proxies(docker.name)) == 9  # two address families for each port published on all addresses
    # Loopback, and a sibling on the same bridge: the proxy's, and its answer to the sibling has the bridge's address.
    assert exchange(docker.node("node1").path, 0, "127.0.0.1", 12346) == "127.0.0.1:12346"
    assert exchange(docker.pod("c2").path, 0, "192.168.50.11", 12346) == "172.17.0.1:12346"


def test_without_the_userland_proxy(lab_name: str) -> None:
    made = lab.up("docker", lab_name, userland_proxy=False)
    assert proxies(lab_name) == set()
    node = Space(made.node("node1").netns)
    assert node.run("sysctl", "-n", "net.ipv4.conf.docker0.route_localnet").strip() == "1"
    nat = rules(node.name)["nat"]
    assert "-A DOCKER -p udp -m udp --dport 12346 -j DNAT --to-destination 172.17.0.2:7071" in nat
    assert exchange(made.pod("c3").path, 0, "192.168.50.11", 12346) == "192.168.50.11:12346"
    # Hairpin: a container to the port that it publishes itself.
    assert exchange(made.pod("c1").path, 0, "192.168.50.11", 12346) == "192.168.50.11:12346"


def test_flannel_below_docker(lab_name: str) -> None:
    """docker0 has the node's Flannel subnet and MTU; containers reach each other across nodes by the overlay, without NAT."""
    made = lab.up("flannel-docker", lab_name)
    assert {pod.name: pod.address for pod in made.pods} == {
        "pod1a": "10.244.1.2",
        "pod1b": "10.244.1.3",
        "pod2a": "10.244.2.2",
        "pod2b": "10.244.2.3",
    }
    (bridge,) = [link for link in read(made.node("node2").netns, "ip", "-j", "addr") if link["ifname"] == "docker0"]
    assert ("10.244.2.1", 24) in [(entry["local"], entry["prefixlen"]) for entry in bridge["addr_info"]]
    nat = rules(made.node("node1").netns)["nat"]
    assert not [line for line in nat if "MASQUERADE" in line and "flanneld" not in line]
    (eth0,) = [link for link in read(made.pod("pod1a").path, "ip", "-j", "link") if link["ifname"] == "eth0"]
    assert eth0["mtu"] == 1450
    check_pairs(made)


def test_twenty_times_up_and_down_leaves_nothing(lab_name: str) -> None:
    before = outside()
    for _ in range(20):
        made = lab.up("docker", lab_name)
        inodes = {member.inode for member in (*made.nodes, *made.pods)}
        inside = inhabitants(inodes)
        assert len(inside) > 12  # dockerd, containerd, shims, proxies, containers
        lab.down(lab_name)
        assert traces(lab_name) == []
        assert not alive(inside)
        gone(lab_name)
    new = {path for path in outside() - before if "netpath" not in path}
    # Others may use the machine meanwhile; Docker's places are ours alone to answer for.
    assert not [path for path in new if "docker" in path or "containerd" in path]


def test_killed_at_random_moments_down_removes_everything(lab_name: str) -> None:
    chance = random.Random(3)
    for _ in range(5):
        builder = subprocess.Popen(
            [sys.executable, "-c", "import sys; from netpath import lab; lab.up('docker', sys.argv[1])", lab_name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
        )
        deadline = time.monotonic() + 30
        while state.load(lab_name) is None and time.monotonic() < deadline and builder.poll() is None:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 2.5))
        builder.kill()
        builder.wait()
        lab.down(lab_name)
        assert traces(lab_name) == []
        gone(lab_name)


def test_a_dockerd_that_cannot_start_says_why(lab_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is missing from the cache: one line, and nothing stays."""
    real = guests.program

    def broken(root: Path, name: str) -> Path:
        return Path("/bin/false") if name == "containerd" else real(root, name)

    monkeypatch.setattr(guests, "program", broken)
    with pytest.raises(Exception, match=f"lab: {lab_name}-node1: dockerd ended: ") as caught:
        lab.up("docker", lab_name)
    assert "\n" not in str(caught.value)
    assert traces(lab_name) == []


def test_packages_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MissingError, match="fetching netpath-no-such-package: E: "):
        guests.fetch("nothing", ("netpath-no-such-package",))
    assert [path.name for path in (tmp_path / "netpath/guests").iterdir()] == [".lock"]
