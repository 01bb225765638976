"""Which containers and pods run in which namespaces.

Docker is asked through its socket. Pods need no runtime's client: kubelet puts a pod's UID into the cgroup of its processes and
its name into /var/log/pods/NAMESPACE_NAME_UID (kubernetes pkg/kubelet/cm and pkg/kubelet/kuberuntime/helpers.go), whatever the
runtime is.
"""

# Thousands of small files: pathlib doubles the time.
# ruff: noqa: PTH110, PTH116, PTH123, PTH208

from __future__ import annotations

import json
import os
import re
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from netpath.discover.namespaces import Process
from netpath.discover.sockets import command_line
from netpath.model.snapshot import Workload

DOCKER_SOCKET = "/run/docker.sock"
POD_LOGS = "/var/log/pods"
_TIMEOUT = 3.0
_MAX_ANSWER = 64 << 20
_SO_PEERCRED = 17
_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})\b")
_CONTAINER = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?$")


@dataclass(slots=True)
class Read:
    """Workloads, and names for namespaces that iproute2 has none for."""

    workloads: list[Workload] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)


def read(processes: list[Process], own: int, problems: list[str]) -> Read:
    """Containers of every Docker daemon that can be reached, and pods. `own` is the inode of our own namespace."""
    found = Read()
    by_pid = {process.pid: process for process in processes}
    for path in docker_sockets(processes):
        _docker(path, by_pid, found, problems)
    _cgroups(processes, own, found)
    found.workloads.sort(key=lambda one: (one.reference, one.netns, one.id or ""))
    return found


def docker_sockets(processes: Iterable[Process]) -> list[str]:
    """Sockets of Docker daemons: the usual one, those of $DOCKER_HOST and $NETPATH_DOCKER_SOCKETS (colons between), and those that
    running daemons were told to open."""
    found = [DOCKER_SOCKET]
    host = os.environ.get("DOCKER_HOST", "")
    if host.startswith("unix://"):
        found.append(host.removeprefix("unix://"))
    found.extend(path for path in os.environ.get("NETPATH_DOCKER_SOCKETS", "").split(":") if path)
    for process in processes:
        if process.name == "dockerd":
            found.extend(_hosts(command_line(process.pid) or []))
    distinct: dict[str, None] = {}
    for path in found:
        real = os.path.realpath(path)
        if os.path.exists(real):
            distinct[real] = None
    return list(distinct)


def _hosts(words: list[str]) -> Iterable[str]:
    """Values of ``-H``/``--host`` that are Unix sockets."""
    for number, word in enumerate(words):
        value = None
        if word in ("-H", "--host") and number + 1 < len(words):
            value = words[number + 1]
        elif word.startswith("--host="):
            value = word.removeprefix("--host=")
        elif word.startswith("-H") and not word.startswith("-H="):
            value = word.removeprefix("-H")
        elif word.startswith("-H="):
            value = word.removeprefix("-H=")
        if value is not None and value.startswith("unix://"):
            yield value.removeprefix("unix://")


def _docker(path: str, by_pid: Mapping[int, Process], found: Read, problems: list[str]) -> None:
    try:
        containers, daemon = _get(path, "/containers/json")
        node = by_pid[daemon].netns if daemon in by_pid else None
        for container in containers if isinstance(containers, list) else []:
            identity = container.get("Id") if isinstance(container, dict) else None
            if not isinstance(identity, str) or not re.fullmatch(r"[0-9a-zA-Z_.-]+", identity):
                continue
            try:
                details, _ = _get(path, f"/containers/{identity}/json")
            except FileNotFoundError:
                continue  # it ended since
            _container(details, identity, node, by_pid, found)
    except (OSError, ValueError) as error:
        problems.append(f"Docker's containers could not be read from {path}: {getattr(error, 'strerror', None) or error}")


def _container(details: Any, identity: str, node: int | None, by_pid: Mapping[int, Process], found: Read) -> None:
    name = str(_at(details, "Name") or identity[:12]).lstrip("/")
    inode = None
    pid = _at(details, "State", "Pid")
    if isinstance(pid, int) and pid > 0:
        inode = by_pid[pid].netns if pid in by_pid else _inode(f"/proc/{pid}/ns/net")
    if inode is None:
        key = _at(details, "NetworkSettings", "SandboxKey")
        inode = _inode(key) if isinstance(key, str) and key else None
    if inode is None:
        return
    found.workloads.append(
        Workload(f"docker:{name}", name, identity, inode, node=str(node) if node is not None else None, runtime="docker")
    )
    mode = str(_at(details, "HostConfig", "NetworkMode") or "")
    if mode != "host" and not mode.startswith("container:"):
        found.names.setdefault(inode, name)


def _at(item: Any, *keys: str) -> Any:
    for key in keys:
        item = item.get(key) if isinstance(item, dict) else None
    return item


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _get(path: str, target: str) -> tuple[Any, int]:
    """A GET over a Unix socket, and the pid of the process behind it.

    HTTP/1.0, so that the answer is neither chunked nor kept alive.

    Raises OSError (FileNotFoundError for a 404) and ValueError for what is not an HTTP answer with JSON in it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(_TIMEOUT)
        connection.connect(path)
        pid = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, _SO_PEERCRED, 12))[0]
        connection.sendall(f"GET {target} HTTP/1.0\r\nHost: docker\r\nAccept: application/json\r\n\r\n".encode("ascii"))
        parts: list[bytes] = []
        total = 0
        while part := connection.recv(1 << 16):
            parts.append(part)
            total += len(part)
            if total > _MAX_ANSWER:
                raise ValueError("the answer is too long")
    head, separator, body = b"".join(parts).partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if not separator or len(words) < 2 or not words[0].startswith(b"HTTP/"):
        raise ValueError("the answer is not HTTP")
    if words[1] == b"404":
        raise FileNotFoundError(target)
    if words[1] != b"200":
        raise ValueError(f"the daemon answered {words[1].decode('ascii', 'replace')}")
    return json.loads(body), pid


def _cgroups(processes: list[Process], own: int, found: Read) -> None:
    """Pods, and containers that no daemon told of, by the cgroups of processes outside our own namespace."""
    known = {workload.id for workload in found.workloads}
    pods: dict[str, tuple[int, list[str]]] = {}
    containers: dict[str, int] = {}
    names: dict[str, tuple[str, str]] | None = None
    for process in processes:
        if process.netns == own:
            continue
        cgroup = _cgroup(process.pid)
        if cgroup is None:
            continue
        container = _CONTAINER.search(cgroup)
        identity = container.group(1) if container is not None else None
        pod = _POD.search(cgroup)
        if pod is not None:
            if names is None:
                names = _pod_names()
            uid = pod.group(1).replace("_", "-")
            _, ids = pods.setdefault(uid, (process.netns, []))
            if identity is not None and identity not in ids:
                ids.append(identity)
        elif identity is not None and identity not in known:
            containers.setdefault(identity, process.netns)
    for uid, (inode, ids) in pods.items():
        space, name = (names or {}).get(uid, (None, uid))
        reference = f"pod:{space}/{name}" if space is not None else f"container:{ids[0][:12]}" if ids else f"pod:{uid}"
        found.workloads.append(Workload(reference, name, uid, inode, runtime="kubernetes", containers=tuple(ids)))
        found.names.setdefault(inode, name)
    for identity, inode in containers.items():
        found.workloads.append(Workload(f"container:{identity[:12]}", identity[:12], identity, inode, runtime="cgroup"))
        found.names.setdefault(inode, identity[:12])


def _cgroup(pid: int) -> str | None:
    """The deepest cgroup path of a process: of version 2, or else the longest one of version 1."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="backslashreplace") as file:
            paths = [line.rstrip("\n").split(":", 2)[-1] for line in file]
    except OSError:
        return None
    return max(paths, key=len, default=None)


def _pod_names() -> dict[str, tuple[str, str]]:
    """(namespace, name) of pods by UID."""
    found: dict[str, tuple[str, str]] = {}
    try:
        entries = os.listdir(POD_LOGS)
    except OSError:
        return found
    for entry in entries:
        words = entry.split("_")
        if len(words) == 3:
            found[words[2]] = (words[0], words[1])
    return found
