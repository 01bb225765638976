"""Real dockerds inside a lab: started, asked for containers, and recorded.

Everything that dockerd and its children write is below the lab's folder or in mounts that only they see (confine.py).
"""

from __future__ import annotations

import io
import ipaddress
import json
import mmap
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from netpath.errors import MissingError, NetpathError
from netpath.lab import guests, netns, state
from netpath.lab.build import Build
from netpath.lab.docker_api import Docker
from netpath.lab.options import Options
from netpath.lab.state import Node, Pod, State

_IMAGE = "netpath/busybox"
_START_S = 60.0
"""How long a dockerd may take until it answers."""

_APPLETS = ("sh", "sleep", "ip", "ping", "nc", "wget", "ls", "cat", "ps")


@dataclass(frozen=True, slots=True)
class Container:
    """A container of the lab. `ports`: container port and protocol to host address (or all) and port."""

    name: str
    node: str
    network: str
    ports: tuple[tuple[str, str, int], ...] = ()


def _folder(lab: State) -> Path:
    return state.DIRECTORY / lab.name


def plan(lab: State, options: Options) -> State:
    """Nodes and a fabric; the containers are known when dockerd has made them."""
    nodes = tuple(
        Node(f"node{number}", f"{lab.name}-node{number}", (str(options.node_address(number).ip),))
        for number in range(1, options.nodes + 1)
    )
    return replace(
        lab,
        nodes=nodes,
        namespaces=(*(node.netns for node in nodes), f"{lab.name}-fabric"),
        folders=(str(_folder(lab)),),
        cgroups=tuple(path for node in nodes for path in _control_groups(f"netpath-{lab.name}-{node.name}")),
        docker_sockets=tuple(str(_folder(lab) / node.name / "docker.sock") for node in nodes),
    )


def _tools(folder: Path, root: Path) -> Path:
    """A folder with all that dockerd may start. Without modprobe and apparmor_parser it leaves the machine's kernel alone."""
    tools = folder / "bin"
    tools.mkdir()
    for name in ("containerd", "containerd-shim-runc-v2", "runc", "docker-proxy", "docker"):
        (tools / name).symlink_to(guests.program(root, name))
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    for name in ("iptables", "ip6tables"):
        found = shutil.which(f"{name}-nft", path=search)
        if found is None:
            raise MissingError(f"lab: {name}-nft is not installed (apt-get install iptables)")
        (tools / name).symlink_to(found)
    for name in ("tar", "xz", "unpigz", "ps", "mount", "umount"):
        found = shutil.which(name, path=search)
        if found is not None:
            (tools / name).symlink_to(found)
    return tools


def _image(root: Path) -> bytes:
    """A file system with a static busybox."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in ("bin", "etc", "tmp", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        data = guests.program(root, "busybox").read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.mode, entry.size = 0o755, len(data)
        tar.addfile(entry, io.BytesIO(data))
        for applet in _APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return buffer.getvalue()


def _mentions(binary: Path, word: bytes) -> bool:
    with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(word) >= 0


def _control_groups(group: str) -> tuple[str, ...]:
    """Where runc may make `group`: below the root of each hierarchy, or below the control group of this process (cgroup v1)."""
    own = {line.split(":", 2)[2].strip("/") for line in Path("/proc/self/cgroup").read_text().splitlines()}
    return tuple(f"{parent}/{group}".lstrip("/") for parent in sorted({"", *own}))


def _start(build: Build, node: Node, root: Path, tools: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a dockerd. On record before it is told what to do."""
    lab, folder = build.state, _folder(build.state) / node.name
    folder.mkdir()
    config = folder / "daemon.json"
    # Up to version 24 the daemon keeps a key, in /etc/docker unless its configuration says where. Later ones refuse the setting.
    key = _mentions(guests.program(root, "dockerd"), b"deprecated-key-path")
    config.write_text(json.dumps({"deprecated-key-path": str(folder / "key.json")} if key else {}))
    argv = [
        str(guests.program(root, "dockerd")),
        f"--config-file={config}",
        f"--data-root={folder / 'data'}",
        f"--exec-root={folder / 'exec'}",
        f"--pidfile={folder / 'pid'}",
        f"--host=unix://{folder / 'docker.sock'}",
        f"--cgroup-parent=netpath-{lab.name}-{node.name}",
        "--exec-opt=native.cgroupdriver=cgroupfs",
        f"--userland-proxy={'true' if build.options.userland_proxy else 'false'}",
        f"--userland-proxy-path={tools / 'docker-proxy'}",
        "--oom-score-adjust=0",
        "--log-level=warn",
        *arguments,
    ]
    # `container` tells the daemons that AppArmor is not theirs to configure.
    env = {"PATH": str(tools), "LD_LIBRARY_PATH": guests.libraries(root), "HOME": str(folder), "container": "netpath"}
    request = {
        "netns": str(netns.path_of(node.netns)),
        "keep": str(_folder(lab)),
        # Places that these programs write to whatever they are told: shim sockets, plugin folders, keys.
        "hide": ["/run", "/opt", "/etc/docker", "/var/lib/containerd", "/var/lib/docker"],
        "argv": argv,
        "env": env,
        "log": str(folder / "dockerd.log"),
    }
    with (folder / "dockerd.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("confine.py")), lab.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    began = state.start_time(process.pid)
    if process.stdin is None or began is None:
        raise NetpathError(f"lab: {node.netns}: dockerd ended at once")
    build.store.update(processes=(*build.state.processes, state.Process(process.pid, began, f"dockerd {node.name}")))
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.close()
    return process


def _wait(build: Build, node: Node, process: subprocess.Popen[bytes]) -> Docker:
    """Until the node's dockerd answers."""
    folder = _folder(build.state) / node.name
    docker = Docker(str(folder / "docker.sock"))
    deadline = time.monotonic() + _START_S
    while not docker.answers():
        build.check()
        if process.poll() is not None or time.monotonic() > deadline:
            lines = [line for line in (folder / "dockerd.log").read_text(errors="replace").splitlines() if line.strip()]
            what = "ended" if process.returncode is not None else f"did not answer within {_START_S:.0f} s"
            raise NetpathError(f"lab: {node.netns}: dockerd {what}: {lines[-1] if lines else 'it said nothing'}")
        time.sleep(0.01)
    # It outlives us.
    process.returncode = 0
    return docker


def _options(container: Container, node: Node) -> dict[str, Any]:
    bindings = {
        port: [{"HostIp": host.format(node=node.addresses[0]), "HostPort": str(number)}] for port, host, number in container.ports
    }
    return {
        "Image": _IMAGE,
        "Cmd": ["/bin/busybox", "sleep", "2147483647"],
        "Hostname": container.name,
        "ExposedPorts": {port: {} for port in bindings},
        "HostConfig": {"PortBindings": bindings, "NetworkMode": container.network, "SecurityOpt": ["apparmor=unconfined"]},
    }


def start(build: Build, arguments: Mapping[str, Sequence[str]]) -> dict[str, Docker]:
    """Start a dockerd in every node, all at once, with an image to run; node names to engines. They answer when this returns.

    `arguments` are further command line arguments for each node's.
    """
    root = guests.fetch("docker", guests.DOCKER)
    image = _image(root)
    folder = _folder(build.state)
    folder.mkdir(parents=True)
    # Shared, so that what dockerd mounts here (container namespaces above all) is seen and removed from outside its own mounts.
    netns.mount(str(folder), str(folder), None, netns.MS_BIND)
    netns.mount("", str(folder), None, netns.MS_SHARED)
    tools = _tools(folder, root)
    engines = {node.name: _start(build, node, root, tools, arguments[node.name]) for node in build.state.nodes}
    dockers = {node.name: _wait(build, node, engines[node.name]) for node in build.state.nodes}
    for docker in dockers.values():
        docker.load_image(_IMAGE, image)
    return dockers


def run(build: Build, dockers: Mapping[str, Docker], containers: Sequence[Container]) -> None:
    """Run containers, one after the other, so that their addresses follow from their order."""
    nodes = {node.name: node for node in build.state.nodes}
    pods: list[Pod] = []
    for container in containers:
        build.check()
        found = dockers[container.node].run(container.name, _options(container, nodes[container.node]))
        settings = found["NetworkSettings"]
        address = str(ipaddress.IPv4Address(settings["Networks"][container.network]["IPAddress"]))
        pods.append(Pod(container.name, container.node, settings["SandboxKey"], (address,)))
        build.store.update(pods=tuple(pods))
