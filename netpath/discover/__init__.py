"""Reading a running machine into a Snapshot.

Namespaces are found in bind mounts and processes, and read by threads that enter them and end; the main thread never moves.
The kernel is asked over netlink, in our own flat reading of it (`netpath.discover.nl` says why), the rulesets by their own tools.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from netpath import __version__
from netpath.discover import conntrack, namespaces, sockets, workloads
from netpath.discover import namespace as one
from netpath.model.packet import Flow
from netpath.model.snapshot import DeviceId, Link, Namespace, Snapshot, Workload

_READERS = 4
"""Threads that read: more than cores, because each waits for the kernel and for ruleset tools part of the time."""
_FILES = (
    ("/run/flannel", "*.env"),
    ("/etc/cni/net.d", "*.conf"),
    ("/etc/cni/net.d", "*.conflist"),
)
_MAX_FILE = 256 << 10

Progress = Callable[[str], None]


def take(*, only: Collection[int] | None = None, conntrack_for: Flow | None = None, progress: Progress | None = None) -> Snapshot:
    """The state of every network namespace that can be seen, or of those with the inodes in `only`.

    With `conntrack_for`, the conntrack entries that involve that flow's addresses are in it. `progress` is called with a line of
    text, from the calling thread. What can't be read, or vanishes meanwhile, is in the problems of the snapshot or the namespace.

    Raises MissingError without the privileges that entering namespaces needs.
    """
    namespaces.require_privileges()
    taken_at = datetime.now(UTC)
    found = namespaces.survey()
    chosen = {inode: each for inode, each in sorted(found.namespaces.items()) if only is None or inode in only}
    if progress is not None:
        progress(f"reading {len(chosen)} network namespaces")
    problems = list(found.problems)
    if only is not None:
        problems.extend(f"no network namespace has the inode {inode}" for inode in sorted(set(only) - chosen.keys()))
    reads: dict[int, one.Read] = {}
    with ThreadPoolExecutor(_READERS, "netpath-discover") as pool:
        pending = {
            inode: pool.submit(_read, each, found.namespaces, with_conntrack=conntrack_for is not None)
            for inode, each in chosen.items()
        }
        running = workloads.read(found.processes, found.own, problems)
        for inode, future in pending.items():
            try:
                reads[inode] = future.result()
            except namespaces.Vanished:
                problems.append(f"the network namespace {_title(chosen[inode])} vanished while it was to be read")
            except OSError as error:
                problems.append(f"the network namespace {_title(chosen[inode])} could not be read: {error.strerror or error}")
            except (ValueError, struct.error) as error:
                problems.append(f"the network namespace {_title(chosen[inode])}: the kernel's answer is not understood: {error}")
    owners = sockets.owners((inode for read in reads.values() for _, inode in read.held), found.processes)
    entries = {}
    if conntrack_for is not None:
        entries = conntrack.of_flow({inode: read.conntrack or [] for inode, read in reads.items()}, conntrack_for)
    names = {inode: _name(each, running, found.own) for inode, each in found.namespaces.items()}
    complete: list[Namespace] = []
    for inode, read in reads.items():
        names_of = sorted(chosen[inode].names)
        if inode in running.names:
            names_of.append(running.names[inode])
        complete.append(
            replace(
                read.namespace,
                name=names[inode],
                names=tuple(dict.fromkeys(names_of or [names[inode]])),
                conntrack=entries.get(inode) if read.conntrack is not None else None,
                sockets=sockets.with_owners(read.held, owners) if read.namespace.sockets is not None else None,
            )
        )
    return Snapshot(
        namespaces=tuple(sorted(_with_peers(complete), key=lambda each: (each.name, each.inode))),
        taken_at=taken_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        tool=f"netpath {__version__}",
        hostname=socket.gethostname(),
        kernel=os.uname().release,
        workloads=tuple(_with_node(each, names) for each in running.workloads if each.netns in reads),
        problems=tuple(problems),
        files=_files(),
    )


def with_conntrack(snapshot: Snapshot, flow: Flow) -> Snapshot:
    """A snapshot just taken, with the conntrack entries of a flow that it had to be taken for to be known.

    Raises MissingError as `take` does; namespaces that are gone since keep what they had, and a problem line says so.
    """
    namespaces.require_privileges()
    raw: dict[int, list[bytes]] = {}
    problems: list[str] = []
    with ThreadPoolExecutor(_READERS, "netpath-conntrack") as pool:
        pending = {
            each.inode: (each, pool.submit(_conntrack, namespaces.Found(each.inode, paths=list(each.paths))))
            for each in snapshot.namespaces
        }
        for inode, (each, future) in pending.items():
            try:
                raw[inode] = future.result()
            except namespaces.Vanished:
                problems.append(f"the network namespace {each.name} vanished before its conntrack entries were read")
            except OSError as error:
                problems.append(f"conntrack entries of {each.name} could not be read: {error.strerror or error}")
    entries = conntrack.of_flow(raw, flow)
    return replace(
        snapshot,
        namespaces=tuple(replace(each, conntrack=entries.get(each.inode, each.conntrack)) for each in snapshot.namespaces),
        problems=(*snapshot.problems, *problems),
    )


def _conntrack(namespace: namespaces.Found) -> list[bytes]:
    namespaces.enter(namespace)
    return conntrack.dump()


def _read(namespace: namespaces.Found, others: dict[int, namespaces.Found], *, with_conntrack: bool) -> one.Read:
    """In a thread of the pool, which moves from namespace to namespace and ends with the reading."""
    namespaces.enter(namespace)
    return one.read(namespace, others, with_conntrack=with_conntrack)


def _title(namespace: namespaces.Found) -> str:
    return min(namespace.names) if namespace.names else f"netns:{namespace.inode}"


def _name(namespace: namespaces.Found, running: workloads.Read, own: int) -> str:
    if namespace.names:
        return min(namespace.names)
    if namespace.inode == own:
        return "host"
    return running.names.get(namespace.inode) or f"netns:{namespace.inode}"


def _with_node(workload: Workload, names: dict[int, str]) -> Workload:
    """The daemon's namespace by name instead of inode."""
    return workload if workload.node is None else replace(workload, node=names.get(int(workload.node)))


def _with_peers(found: list[Namespace]) -> list[Namespace]:
    """The namespaces with the lower device of each link as (namespace, ifindex).

    A number that the kernel could not resolve is resolved by the other end where only one namespace can be meant: the ends of a
    veth pair name each other's index.
    """
    by_inode = {each.inode: {link.ifindex: link for link in each.links} for each in found}
    nsids = {each.inode: dict(each.nsids) for each in found}

    def peer(inode: int, link: Link) -> DeviceId | None:
        if link.lower is None:
            return None
        other = inode if link.lower_nsid is None else nsids[inode].get(link.lower_nsid)
        if other is not None:
            back = by_inode.get(other, {}).get(link.lower)
            if back is not None and (link.kind not in _PAIRS or back.lower == link.ifindex):
                return DeviceId(other, link.lower)
        if link.kind not in _PAIRS or (other is not None and link.lower_nsid is not None):
            return None
        candidates = [
            candidate
            for candidate, links in by_inode.items()
            if candidate != inode and _points_back(links.get(link.lower), link, inode, nsids[candidate])
        ]
        return DeviceId(candidates[0], link.lower) if len(candidates) == 1 else None

    return [
        replace(each, links=tuple(replace(link, peer=peer(each.inode, link)) if link.lower else link for link in each.links))
        for each in found
    ]


_PAIRS = frozenset({"veth", "netkit"})


def _points_back(other: Link | None, link: Link, inode: int, nsids: dict[int, int]) -> bool:
    if other is None or other.kind != link.kind or other.lower != link.ifindex:
        return False
    return other.lower_nsid is None or nsids.get(other.lower_nsid, inode) == inode


def _files() -> dict[str, str]:
    """Small files in which a CNI says what it is."""
    found: dict[str, str] = {}
    for folder, pattern in _FILES:
        for path in sorted(Path(folder).glob(pattern)):
            try:
                if path.stat().st_size <= _MAX_FILE:
                    found[str(path)] = path.read_text(encoding="utf-8", errors="backslashreplace")
            except OSError:
                continue
    return dict(sorted(found.items()))
