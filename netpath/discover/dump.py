"""A node that netpath can't run on, read from plain command output: docs/snapshot.md describes the files.

A dump is a folder, or a tar of one, with a folder per network namespace; `script` is the shell script that makes one. Namespaces of
several machines may lie side by side. Whatever is missing, cut off or rubbish becomes a problem line and a thinner snapshot.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from netpath.discover import iproute
from netpath.discover.archive import read_archive
from netpath.errors import UsageError
from netpath.model.index import SnapshotIndex
from netpath.model.snapshot import (
    DeviceId,
    Link,
    Namespace,
    Netfilter,
    Snapshot,
    Socket,
    Workload,
    Xtables,
)

MARKER = "link.json"
"""A folder that holds this file is a namespace."""
MAX_KEPT_FILE = 256 << 10
"""Bytes of a configuration file that are kept in the snapshot."""
INODE_STEP = 1 << 40
"""Namespace inodes of the second and later machines are moved by multiples of this when they clash (every machine's first
namespace has the same one); the kernel's own are below 2^32."""

_XTABLES = (
    ("iptables-nft.save", 4, "nft"),
    ("iptables-legacy.save", 4, "legacy"),
    ("ip6tables-nft.save", 6, "nft"),
    ("ip6tables-legacy.save", 6, "legacy"),
)
_KEPT = re.compile(
    r"(subnet\.env|cni\.json|.+\.conf|.+\.conflist|cni-.+\.json|docker-network-.+\.json|daemon\.json|weave-status\.txt"
    r"|ipam-host-local\.txt|services\.json|endpointslices\.json|net-conf\.json)"
)


def script() -> str:
    """The POSIX shell script that collects a dump on a bare node."""
    return resources.files("netpath.discover").joinpath("collect.sh").read_text(encoding="utf-8")


def read(path: str | os.PathLike[str]) -> Snapshot:
    """The snapshot of a dump folder or tar. UsageError when there is no dump at `path`; damage inside it is in `problems`."""
    archive = read_archive(path)
    nodes = _nodes(archive.files, Path(path))
    if not nodes:
        raise UsageError(f"{path}: not a dump: no folder in it holds a {MARKER}")
    problems = list(archive.problems)
    namespaces: list[Namespace] = []
    workloads: list[Workload] = []
    kept: dict[str, str] = {}
    meta: dict[str, str] = {}
    used: set[int] = set()
    for node in nodes:
        prefix = f"{node.name}/" if len(nodes) > 1 else ""
        read_node = _read_node(node, prefix)
        step = 0
        while any(namespace.inode + step in used for namespace in read_node.namespaces):
            step += INODE_STEP
        moved = [_moved(namespace, step) for namespace in read_node.namespaces]
        used.update(namespace.inode for namespace in moved)
        namespaces.extend(moved)
        workloads.extend(replace(workload, netns=workload.netns + step) for workload in read_node.workloads)
        kept.update(read_node.kept)
        problems.extend(prefix + line for line in read_node.problems)
        for key, value in read_node.meta.items():
            meta.setdefault(key, value)
    snapshot = Snapshot(
        namespaces=tuple(sorted(namespaces, key=lambda namespace: (namespace.name, namespace.inode))),
        taken_at=meta.get("taken_at", ""),
        tool=meta.get("tool", "dump"),
        hostname=meta.get("hostname", ""),
        kernel=meta.get("kernel", ""),
        workloads=tuple(sorted(workloads, key=lambda workload: (workload.reference, workload.netns))),
        problems=tuple(problems),
        files=dict(sorted(kept.items())),
    )
    index = SnapshotIndex(snapshot)
    return replace(snapshot, workloads=tuple(replace(each, node=index.node_of(each.netns)) for each in snapshot.workloads))


def is_dump(path: str | os.PathLike[str]) -> bool:
    """Whether `path` looks like something for `read` rather than a JSON document: a folder or a file with a tar's suffix."""
    place = Path(path)
    return place.is_dir() or bool(re.search(r"\.(tar|tgz|txz|tbz2?)$|\.tar\.\w+$", place.name))


# What lies where


@dataclass(slots=True)
class _Folder:
    """The files of one namespace as text, by name."""

    name: str
    files: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Node:
    """One machine: the folders beside one netns.tsv, and the files there."""

    name: str
    files: dict[str, str] = field(default_factory=dict)
    folders: dict[str, _Folder] = field(default_factory=dict)


@dataclass(slots=True)
class _Read:
    namespaces: list[Namespace] = field(default_factory=list)
    workloads: list[Workload] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    meta: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def _nodes(files: Mapping[str, bytes], path: Path) -> list[_Node]:
    title = re.sub(r"\.(tar(\.\w+)?|tgz|txz|tbz2?)$", "", path.resolve().name) or "dump"
    found: dict[str, _Node] = {}
    namespaces: dict[str, tuple[_Node, _Folder]] = {}
    for inside in sorted(files):
        folder, _, name = inside.rpartition("/")
        if name != MARKER:
            continue
        above, _, own = folder.rpartition("/")
        key = "\0" if not folder else above
        node = found.setdefault(key, _Node(above.rpartition("/")[2] or title))
        namespaces[folder] = node, node.folders.setdefault(own or title, _Folder(own or title))
    for inside, content in files.items():
        folder, _, name = inside.rpartition("/")
        if folder in namespaces:
            namespaces[folder][1].files[name] = content.decode("utf-8", "replace")
        elif folder in found:
            found[folder].files[name] = content.decode("utf-8", "replace")
    return [found[key] for key in sorted(found)]


@dataclass(slots=True)
class _Row:
    """A line of netns.tsv."""

    name: str
    inode: int
    file: str | None


def _rows(text: str | None, problems: list[str]) -> dict[str, _Row]:
    found: dict[str, _Row] = {}
    if text is None:
        problems.append("netns.tsv is missing: namespaces are told apart by inode.txt alone")
        return found
    for line in text.splitlines():
        fields = line.rstrip("\r").split("\t")
        if not line.strip() or fields[:2] == ["name", "inode"]:
            continue
        inode = _inode(fields[1]) if len(fields) > 1 else None
        if inode is None or not fields[0]:
            problems.append(f"netns.tsv: a line that is not name, inode and file: {line[:80]!r}")
            continue
        found[fields[0]] = _Row(fields[0], inode, fields[2] if len(fields) > 2 and fields[2] else None)
    return found


def _inode(text: str | None) -> int | None:
    word = (text or "").strip()
    return int(word) if word.isascii() and word.isdecimal() and 0 < len(word) < 11 and int(word) > 0 else None


def _read_node(node: _Node, prefix: str) -> _Read:
    found = _Read()
    rows = _rows(node.files.get("netns.tsv"), found.problems)
    found.meta, notes = _meta(node.files.get("collect.tsv"))
    found.problems.extend(notes)
    found.problems.extend(
        f"{name}: netns.tsv names it, but its folder is not in the dump" for name in rows if name not in node.folders
    )
    by_inode: dict[int, Namespace] = {}
    by_name: dict[str, int] = {}
    made_up = 0
    assumed = 0
    for name, folder in sorted(node.folders.items()):
        row = rows.get(name)
        inode = row.inode if row is not None else _inode(folder.files.get("inode.txt"))
        if inode is None:
            made_up += 1
            inode = made_up
            found.problems.append(f"{name}: its inode is not in the dump; {inode} stands for it")
        by_name[name] = inode
        namespace = _read_folder(folder, prefix, inode, row, _rt_tables(node.files.get("rt_tables", "")))
        assumed += "rule6.json" not in folder.files
        if inode in by_inode:
            found.problems.append(f"{name}: the same namespace as {by_inode[inode].name}; only that one is kept")
            by_inode[inode] = replace(by_inode[inode], names=(*by_inode[inode].names, *namespace.names))
            continue
        by_inode[inode] = namespace
    if assumed:
        found.problems.append("no rule6.json in this dump: the kernel's default IPv6 policy rules are assumed")
    found.namespaces = _with_peers(list(by_inode.values()), _nsids(node, by_name, found.problems), found.problems)
    for name, folder in sorted(node.folders.items()):
        found.workloads.extend(_workloads(folder, by_name[name], rows, found.problems))
        for file, text in sorted(folder.files.items()):
            if _KEPT.fullmatch(file):
                _keep(found, f"{prefix}{name}/{file}", text)
    for file, text in sorted(node.files.items()):
        if _KEPT.fullmatch(file):
            _keep(found, f"{prefix}{file}", text)
    return found


def _keep(found: _Read, key: str, text: str) -> None:
    if len(text) <= MAX_KEPT_FILE:
        found.kept[key] = text
    else:
        found.problems.append(f"{key}: longer than the {MAX_KEPT_FILE} characters that are kept of a file; left out")


def _meta(text: str | None) -> tuple[dict[str, str], list[str]]:
    """What collect.sh says of itself: lines ``key TAB value``; a ``note`` is something it could not read."""
    meta: dict[str, str] = {}
    notes: list[str] = []
    for line in (text or "").splitlines():
        key, tab, value = line.partition("\t")
        if tab and key == "note":
            notes.append(value[:300])
        elif tab:
            meta.setdefault(key, value[:300])
    return meta, notes[:200]


def _moved(namespace: Namespace, step: int) -> Namespace:
    """The namespace under another inode, for a dump of several machines whose inodes clash."""
    if step == 0:
        return namespace
    links = tuple(
        link if link.peer is None else replace(link, peer=DeviceId(link.peer.netns + step, link.peer.ifindex))
        for link in namespace.links
    )
    nsids = tuple((nsid, inode + step) for nsid, inode in namespace.nsids)
    return replace(namespace, inode=namespace.inode + step, links=links, nsids=nsids)


# One namespace


def _read_folder(folder: _Folder, prefix: str, inode: int, row: _Row | None, tables: Mapping[str, int]) -> Namespace:
    problems: list[str] = []
    files = folder.files

    def text(name: str) -> str:
        """A file that every namespace of a dump has; its absence is told."""
        if name not in files:
            problems.append(f"{name} is missing")
        return files.get(name, "")

    name = prefix + _true_name(folder.name, inode, row)
    own = _inode(files.get("inode.txt"))
    if own is not None and own != inode:
        problems.append(f"inode.txt says {own}, netns.tsv {inode}; netns.tsv is taken")
    links = iproute.links(text("link.json"), problems)
    names = iproute.Names({link.name: link.ifindex for link in links})
    names.tables.update(tables)
    vlans = iproute.vlans(files.get("vlan.json", ""), names, problems)
    programs = iproute.programs(files.get("bpf.json", ""), names, problems)
    checksums = iproute.tx_checksums(files.get("ethtool.txt", ""), names)
    links = tuple(
        replace(
            link,
            tx_checksum_offload=checksums.get(link.ifindex),
            vlans=vlans.get(link.ifindex, ()),
            programs=(*link.programs, *programs.get(link.ifindex, ())),
        )
        for link in links
    )
    addresses = iproute.addresses(text("addr.json"), names, problems)
    routes = (
        *iproute.routes(text("route.json"), 4, names, problems, "route.json"),
        *iproute.routes(text("route6.json"), 6, names, problems, "route6.json"),
    )
    rules = iproute.rules(text("rule.json"), 4, names, problems, "rule.json") if "rule.json" in files else iproute.default_rules(4)
    if "rule.json" not in files:
        problems.append("rule.json is missing: the kernel's default policy rules are assumed")
    rules6 = (
        iproute.rules(files["rule6.json"], 6, names, problems, "rule6.json") if "rule6.json" in files else iproute.default_rules(6)
    )
    proxies = iproute.neighbours(files.get("neigh-proxy.json", ""), names, problems, "neigh-proxy.json", proxy=True)
    conntrack = iproute.conntrack(files["conntrack.txt"], problems) if "conntrack.txt" in files else None
    return Namespace(
        inode=inode,
        name=name,
        names=(name,),
        paths=(row.file,) if row is not None and row.file is not None else (),
        pids=_pids(files.get("pids.txt", "")),
        links=links,
        addresses=addresses,
        routes=routes,
        rules=(*rules, *rules6),
        nexthops=iproute.nexthops(files.get("nexthop.json", ""), names, problems),
        neighbours=(*iproute.neighbours(text("neigh.json"), names, problems), *proxies),
        fdb=iproute.fdb(text("fdb.json"), names, problems),
        netfilter=_netfilter(files, problems),
        conntrack=conntrack,
        sockets=_sockets(files, problems),
        sysctls=iproute.sysctls(text("sysctl.txt"), problems),
        xfrm_policies=_xfrm(files.get("xfrm.txt")),
        problems=tuple(problems),
    )


def _true_name(folder: str, inode: int, row: _Row | None) -> str:
    """iproute2's own name where the folder's had to be tidied to be one, and the usual one of a namespace without."""
    if row is not None and row.file is not None:
        parent, _, name = row.file.rpartition("/")
        if parent in ("/run/netns", "/var/run/netns") and name:
            return name
    return f"netns:{inode}" if folder == f"netns-{inode}" else folder


def _rt_tables(text: str) -> dict[str, int]:
    """/etc/iproute2/rt_tables: number, name."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) == 2 and re.fullmatch(r"0x[0-9a-fA-F]{1,8}|\d{1,10}", words[0]):
            found[words[1]] = int(words[0], 0)
    return found


def _pids(text: str) -> tuple[int, ...]:
    found = (line.split()[0] for line in text.splitlines() if line.split())
    return tuple(sorted(int(word) for word in found if word.isascii() and word.isdecimal() and len(word) < 11))


def _xfrm(text: str | None) -> int | None:
    """The number of policies that ``ip xfrm policy`` printed: those lines of it that begin with a selector."""
    return None if text is None else sum(line.startswith("src ") for line in text.splitlines())


def _netfilter(files: Mapping[str, str], problems: list[str]) -> Netfilter:
    xtables: list[Xtables] = []
    unread: list[str] = []
    for name, family, backend in _XTABLES:
        if name not in files:
            # A dump leaves out an IPv6 file that would be empty, so its absence says nothing; IPv4's does.
            if family == 4:
                unread.append(f"{name} is missing")
            continue
        text = files[name]
        if not text.strip():
            continue
        damage = _xtables_damage(text)
        if damage is not None:
            unread.append(f"{name}: {damage}")
        xtables.append(Xtables(family, backend, text))
    nft: str | None = files.get("nft.json")
    if nft is None:
        unread.append("nft.json is missing")
    elif nft.strip():
        try:
            document = json.loads(nft)
            if not isinstance(document, dict) or not isinstance(document.get("nftables"), list):
                raise ValueError("no nftables in it")
        except (ValueError, RecursionError) as error:
            unread.append(f"nft.json: not the document of nft -j: {' '.join(str(error).split())[:120]}")
            nft = None
    problems.extend(unread)
    return Netfilter(tuple(xtables), nft or None, files.get("ipset.save") or None, tuple(unread))


def _xtables_damage(text: str) -> str | None:
    """What is wrong with an iptables-save as a whole: every table ends with COMMIT."""
    table = None
    for line in text.splitlines():
        if line.startswith("*"):
            if table is not None:
                return f"table {table} ends without COMMIT"
            table = line[1:].strip()
        elif line.strip() == "COMMIT":
            table = None
    return None if table is None else f"cut off inside table {table[:40]}"


def _sockets(files: Mapping[str, str], problems: list[str]) -> tuple[Socket, ...] | None:
    """Sockets with the command lines of docker-proxies, whose targets stand only there. None: not in the dump."""
    if "ss.txt" not in files:
        return None
    found = list(iproute.sockets(files["ss.txt"], problems))
    for line in files.get("docker-proxy.txt", "").splitlines():
        options = _options(line)
        if options is None:
            continue
        protocol, address, port = options.get("proto"), options.get("host-ip", "0.0.0.0"), options.get("host-port", "")
        if protocol not in ("udp", "tcp") or not port.isdecimal() or not port.isascii() or not 0 < int(port[:6]) < 65536:
            problems.append(f"docker-proxy.txt: not a docker-proxy's command line: {line[:80]!r}")
            continue
        try:
            iproute.family_of(address)
        except iproute.Bad as error:
            problems.append(f"docker-proxy.txt: {error}")
            continue
        match = [
            number
            for number, entry in enumerate(found)
            if (entry.protocol, entry.address, entry.port) == (protocol, address, int(port)) and entry.command is None
        ]
        command = line.strip()
        if match:
            found[match[0]] = replace(found[match[0]], command=command)
        else:
            # The sockets of a dump may be those of IPv4 alone (ss -4); the process that is there holds one.
            found.append(Socket(protocol, address, int(port), process="docker-proxy", command=command, v6only=":" in address))
    return tuple(found)


def _options(line: str) -> dict[str, str] | None:
    """``-name value`` pairs of a command line; None for an empty line."""
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    if not words:
        return None
    return {words[i].lstrip("-"): words[i + 1] for i in range(1, len(words) - 1) if words[i].startswith("-")}


# Namespaces of each other


def _nsids(node: _Node, by_name: Mapping[str, int], problems: list[str]) -> dict[int, dict[int, int]]:
    """How each namespace numbers the others: inode -> nsid -> inode."""
    found: dict[int, dict[int, int]] = {inode: {} for inode in by_name.values()}
    text = node.files.get("nsid.json")
    if text is not None:
        try:
            document = json.loads(text)
            table = document if isinstance(document, dict) else {}
        except (ValueError, RecursionError):
            problems.append("nsid.json: not whole JSON; nsid.txt is used")
            table = {}
        for name, others in table.items():
            if name in by_name and isinstance(others, dict):
                for other, nsid in others.items():
                    if other in by_name and isinstance(nsid, int) and nsid >= 0:
                        found[by_name[name]][nsid] = by_name[other]
    for name, folder in node.folders.items():
        for nsid, other in _listed_nsids(folder.files.get("nsid.txt", "")):
            if other in by_name:
                found[by_name[name]].setdefault(nsid, by_name[other])
    return found


_NSID = re.compile(r"^nsid (\d{1,9}) .*\(iproute2 netns name: (.*)\)")


def _listed_nsids(text: str) -> Iterable[tuple[int, str]]:
    """Lines of ``ip netns list-id`` that carry a name."""
    for line in text.splitlines():
        match = _NSID.match(line)
        if match:
            yield int(match.group(1)), match.group(2)


def _with_peers(namespaces: list[Namespace], nsids: dict[int, dict[int, int]], problems: list[str]) -> list[Namespace]:
    """Every link's peer as (namespace, ifindex), and the namespaces' numbering of each other."""
    indices = {namespace.inode: {link.ifindex: link for link in namespace.links} for namespace in namespaces}
    _guess_nsids(namespaces, indices, nsids)
    found: list[Namespace] = []
    for namespace in namespaces:
        known = nsids.get(namespace.inode, {})
        links: list[Link] = []
        for link in namespace.links:
            peer = None
            if link.lower is not None:
                inode = namespace.inode if link.lower_nsid is None else known.get(link.lower_nsid)
                if inode is not None and link.lower in indices.get(inode, {}):
                    peer = DeviceId(inode, link.lower)
                elif link.kind == "veth" and inode is None:
                    problems.append(
                        f"{namespace.name}: the namespace that {link.name}'s peer is in is not in the dump (nsid {link.lower_nsid})"
                    )
            links.append(replace(link, peer=peer))
        found.append(replace(namespace, links=tuple(links), nsids=tuple(sorted(known.items()))))
    return found


def _guess_nsids(namespaces: list[Namespace], indices: Mapping[int, Mapping[int, Link]], nsids: dict[int, dict[int, int]]) -> None:
    """Fills in nsids that the dump does not resolve, where only one namespace can be meant.

    A veth's ends name each other's ifindex, so the namespace behind an nsid must hold, for every veth that points there, one that
    points back. Each number found rules namespaces out for others, so this repeats until nothing more follows.
    """
    changed = True
    while changed:
        changed = False
        for namespace in namespaces:
            known = nsids.setdefault(namespace.inode, {})
            open_ids = {
                link.lower_nsid
                for link in namespace.links
                if link.kind == "veth" and link.lower is not None and link.lower_nsid is not None and link.lower_nsid not in known
            }
            for nsid in sorted(open_ids):
                ends = [
                    (link.ifindex, link.lower) for link in namespace.links if link.lower_nsid == nsid and link.lower is not None
                ]
                candidates = [
                    other.inode
                    for other in namespaces
                    if other.inode != namespace.inode
                    and other.inode not in known.values()
                    and all(
                        _points_back(indices[other.inode].get(lower), index, namespace.inode, nsids.get(other.inode, {}))
                        for index, lower in ends
                    )
                ]
                if len(candidates) == 1:
                    known[nsid] = candidates[0]
                    changed = True


def _points_back(link: Link | None, ifindex: int, inode: int, nsids: Mapping[int, int]) -> bool:
    if link is None or link.kind != "veth" or link.lower != ifindex or link.lower_nsid is None:
        return False
    return nsids.get(link.lower_nsid, inode) == inode


# Workloads


def _workloads(folder: _Folder, inode: int, rows: Mapping[str, _Row], problems: list[str]) -> Iterable[Workload]:
    """Containers of docker-inspect.json and sandboxes of crictl-inspectp.json. They run in the namespace whose folder it is, unless
    their sandbox is another one's file."""
    text = folder.files.get("docker-inspect.json")
    if text is not None:
        items, damage = iproute.json_items(text)
        if damage is not None:
            problems.append(f"{folder.name}/docker-inspect.json: {damage}")
        for item in items:
            name, number = item.get("Name"), item.get("Id")
            if not isinstance(name, str) or not name.strip("/"):
                problems.append(f"{folder.name}/docker-inspect.json: a container without a name")
                continue
            name = name.strip("/")
            netns = _sandbox(_at(item, "NetworkSettings", "SandboxKey"), rows, inode)
            yield Workload(f"docker:{name}", name, number if isinstance(number, str) else None, netns, runtime="docker")
    text = folder.files.get("crictl-inspectp.json")
    if text is not None:
        items, damage = iproute.json_items(text)
        if damage is not None:
            problems.append(f"{folder.name}/crictl-inspectp.json: {damage}")
        for item in items:
            name, space, number = (
                _at(item, "status", *keys) for keys in (("metadata", "name"), ("metadata", "namespace"), ("id",))
            )
            if not isinstance(name, str) or not isinstance(space, str):
                problems.append(f"{folder.name}/crictl-inspectp.json: a sandbox without a name")
                continue
            yield Workload(f"pod:{space}/{name}", name, number if isinstance(number, str) else None, inode, runtime="cri")


def _at(item: Any, *keys: str) -> Any:
    for key in keys:
        item = item.get(key) if isinstance(item, dict) else None
    return item


def _sandbox(key: Any, rows: Mapping[str, _Row], default: int) -> int:
    """The namespace of a sandbox file; dumps may have had their folders renamed, so its last part decides."""
    if isinstance(key, str) and key.strip("/"):
        base = key.rpartition("/")[2]
        for row in rows.values():
            if row.file is not None and row.file.rpartition("/")[2] == base:
                return row.inode
    return default
