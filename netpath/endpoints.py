"""What the user means by SRC and DST: the grammar, and the look-up in a Snapshot. No sockets, no clock."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from netpath.errors import UsageError
from netpath.model.snapshot import Address, Namespace, Snapshot, Workload

Role = Literal["source", "destination"]

SCHEMES = ("netns", "pid", "docker", "container", "pod", "svc")
_SHORTEST_ID = 4
"""Characters of a container's id that are enough to name it."""
_MAX_CANDIDATES = 8
_VIRTUAL = frozenset({"dummy", "loopback"})
"""Kinds of device on which several nodes may hold one address on purpose (service addresses, anycast)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of the asked flow. `netns` None: nobody in the snapshot holds the address (or several nodes do on purpose).

    `address` None: not asked for one; the kernel's source address choice decides.
    """

    netns: int | None
    address: str | None
    port: int | None
    workload: str | None
    text: str


@dataclass(frozen=True, slots=True)
class _Written:
    """An endpoint taken apart."""

    scheme: str | None
    name: str
    address: str | None
    port: int | None


def has_port(text: str) -> bool:
    """Whether an endpoint is written with a port. Raises UsageError for what is no endpoint."""
    return _parse(text).port is not None


def resolve(text: str, snapshot: Snapshot, role: Role = "source") -> Endpoint:
    """The endpoint that `text` means. A source must be in the snapshot; a destination may be any address.

    Raises UsageError: not an endpoint, unknown, or ambiguous (then with the candidates).
    """
    written = _parse(text)
    if role == "source" and written.port is not None:
        raise UsageError(f"{text!r}: a source takes no port (use --sport)")
    if written.scheme == "svc":
        return _service(written, snapshot, role, text)
    if not written.name and written.scheme is None:
        return _by_address(written, snapshot, role, text)
    namespace, workload = _named(written, snapshot, text)
    if written.address is not None:
        if not any(each.address == written.address for each in namespace.addresses):
            held = ", ".join(each.address for each in _usable(namespace)) or "none"
            raise UsageError(f"{text!r}: {_title(namespace)} does not hold {written.address}; its addresses: {held}")
        address: str | None = written.address
    elif role == "source":
        address = None
    else:
        address = primary_address(namespace)
        if address is None:
            raise UsageError(f"{text!r}: {_title(namespace)} has no address but its loopback's; give one with @ADDRESS")
    return Endpoint(namespace.inode, address, written.port, workload or _workload(snapshot, namespace), text)


# The grammar


def _parse(text: str) -> _Written:
    if not text or text != text.strip() or any(ord(letter) < 32 for letter in text):
        raise UsageError(f"{text!r} is not an endpoint")
    if text.startswith("["):
        return _Written(None, "", *_address_and_port(text, text))
    plain = _address(text)
    if plain is not None:
        return _Written(None, "", plain, None)
    head, colon, tail = text.rpartition(":")
    if colon and (plain := _address(head)) is not None and ":" not in plain:
        return _Written(None, "", plain, _port(tail, text))
    if "%" in text and _address(text.partition("%")[0].strip("[")) is not None:
        raise UsageError(f"{text!r}: an address with a zone is not an endpoint; write it as NAME@ADDRESS")
    scheme: str | None = None
    rest = text
    first, colon, behind = text.partition(":")
    if colon and first in SCHEMES:
        scheme, rest = first, behind
    elif re.fullmatch(r"@?[0-9.]+(:\d+)?|@.*", text) and "." in text:
        raise UsageError(f"{text!r} is not an address")
    name, at, behind = rest.rpartition("@")
    address: str | None = None
    port: int | None = None
    if at:
        address, port = _address_and_port(behind, text)
    else:
        name = rest
        before, colon, tail = rest.rpartition(":")
        if colon and re.fullmatch(r"[0-9]+", tail):
            name, port = before, _port(tail, text)
    if not name or (scheme is None and ":" in name):
        raise UsageError(f"{text!r} is not an endpoint: ADDRESS, NAME, or one of {', '.join(f'{each}:' for each in SCHEMES)}")
    return _Written(scheme, name, address, port)


def _address_and_port(text: str, whole: str) -> tuple[str, int | None]:
    """``v4``, ``v4:port``, ``v6``, ``[v6]`` or ``[v6]:port``."""
    port = None
    if text.startswith("["):
        inside, bracket, tail = text[1:].partition("]")
        address = _address(inside)
        if not bracket or address is None or ":" not in address or (tail and not tail.startswith(":")):
            raise UsageError(f"{whole!r} is not an address; IPv6 with a port is written [ADDRESS]:PORT")
        if tail:
            port = _port(tail[1:], whole)
        return address, port
    address = _address(text)
    if address is None:
        head, colon, tail = text.rpartition(":")
        address = _address(head)
        if not colon or address is None or ":" in address:
            raise UsageError(f"{whole!r}: {text!r} is not an address")
        port = _port(tail, whole)
    return address, port


def _address(text: str) -> str | None:
    """The address in the kernel's notation, None when it is none."""
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if "%" in text else str(parsed)


def _port(text: str, whole: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise UsageError(f"{whole!r}: {text!r} is not a port (1 to 65535)")
    return int(text)


# The look-up


def _by_address(written: _Written, snapshot: Snapshot, role: Role, text: str) -> Endpoint:
    address = written.address
    assert address is not None
    parsed = ipaddress.ip_address(address)
    if role == "destination" and (parsed.is_loopback or parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified):
        # Everyone holds such an address: the sender's routing says whose is meant.
        return Endpoint(None, address, written.port, None, text)
    holders = [namespace for namespace in snapshot.namespaces if _holding(namespace, address)]
    if not holders:
        if role == "destination":
            return Endpoint(None, address, written.port, None, text)
        raise UsageError(f"{text!r}: no network namespace here holds {address}; the source must be one of this machine's")
    if len(holders) > 1:
        if role == "destination" and all(_virtual(namespace, address) for namespace in holders):
            return Endpoint(None, address, written.port, None, text)
        port = "" if written.port is None else f":{written.port}"
        inner = f"[{address}]" if port and ":" in address else address
        candidates = [f"{_reference(snapshot, namespace)}@{inner}{port}" for namespace in holders]
        raise UsageError(f"{address} is ambiguous, {len(holders)} network namespaces hold it: {_listed(candidates)}")
    return Endpoint(holders[0].inode, address, written.port, _workload(snapshot, holders[0]), text)


def _holding(namespace: Namespace, address: str) -> list[Address]:
    return [each for each in namespace.addresses if each.address == address]


def _virtual(namespace: Namespace, address: str) -> bool:
    kinds = {link.ifindex: link.kind for link in namespace.links}
    return all(kinds.get(each.device) in _VIRTUAL for each in _holding(namespace, address))


def _named(written: _Written, snapshot: Snapshot, text: str) -> tuple[Namespace, str | None]:
    """The namespace that a name means, and the workload when it is a workload's name."""
    name = written.name
    workloads: list[Workload] = []
    namespaces: list[Namespace] = []
    if written.scheme == "netns":
        namespaces = [each for each in snapshot.namespaces if name in (*each.names, each.name, str(each.inode))]
    elif written.scheme == "pid":
        if not re.fullmatch(r"[0-9]{1,10}", name):
            raise UsageError(f"{text!r}: {name!r} is not a process id")
        namespaces = [each for each in snapshot.namespaces if int(name) in each.pids]
        if not namespaces:
            raise UsageError(f"{text!r}: no network namespace that was read has a process {name}")
    elif written.scheme == "docker":
        workloads = _containers(snapshot, name, "docker")
    elif written.scheme == "container":
        workloads = _containers(snapshot, name, None)
    elif written.scheme == "pod":
        workloads = _pods(snapshot, name)
    else:
        workloads = [*_pods(snapshot, name), *_containers(snapshot, name, None)]
        namespaces = [each for each in snapshot.namespaces if name in (*each.names, each.name)]
    by_inode = {each.inode: each for each in snapshot.namespaces}
    found: dict[int, tuple[Namespace, str | None]] = {}
    for workload in workloads:
        if workload.netns in by_inode:
            found.setdefault(workload.netns, (by_inode[workload.netns], workload.reference))
    for namespace in namespaces:
        found.setdefault(namespace.inode, (namespace, None))
    if not found:
        if workloads:
            raise UsageError(f"{text!r}: the network namespace of {workloads[0].reference} was not read")
        raise UsageError(f"{text!r}: {_unknown(written, snapshot)}")
    if len(found) > 1:
        rest = _rest(written)
        # Two containers may even have the same name (on two daemons): then only the namespace tells them apart.
        references = [reference or f"netns:{namespace.name}" for namespace, reference in found.values()]
        candidates = [
            (reference if references.count(reference) == 1 else f"netns:{namespace.inode}") + rest
            for (namespace, _), reference in zip(found.values(), references, strict=True)
        ]
        raise UsageError(f"{text!r} is ambiguous: {_listed(candidates)}")
    return next(iter(found.values()))


def _rest(written: _Written) -> str:
    port = "" if written.port is None else f":{written.port}"
    if written.address is None:
        return port
    return f"@[{written.address}]{port}" if port and ":" in written.address else f"@{written.address}{port}"


def _containers(snapshot: Snapshot, name: str, runtime: str | None) -> list[Workload]:
    of_runtime = [each for each in snapshot.workloads if runtime is None or each.runtime == runtime]
    exact = [each for each in of_runtime if each.name == name and not each.reference.startswith("pod:")]
    if exact or len(name) < _SHORTEST_ID or not re.fullmatch(r"[0-9a-f-]+", name):
        return exact
    return [
        each for each in of_runtime if any(one.startswith(name) for one in (each.id or "", *each.containers) if one)
    ]  # fmt: skip


def _pods(snapshot: Snapshot, name: str) -> list[Workload]:
    pods = [each for each in snapshot.workloads if each.reference.startswith("pod:")]
    return [each for each in pods if name == each.reference.removeprefix("pod:") or ("/" not in name and each.name == name)]


def _unknown(written: _Written, snapshot: Snapshot) -> str:
    known = {
        *(each.name for each in snapshot.namespaces),
        *(each.name for each in snapshot.workloads),
        *(each.reference.partition(":")[2] for each in snapshot.workloads),
    }
    from difflib import get_close_matches

    close = get_close_matches(written.name, sorted(known), 3)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    if written.scheme is None and written.name == "host":
        return "the node's own namespace is not in this snapshot; name one with netns:NAME"
    kind = {"netns": "network namespace", "docker": "Docker container", "container": "container", "pod": "pod"}.get(
        written.scheme or "", "pod, container or network namespace"
    )
    return f"no {kind} is called {written.name}{hint}"


def _title(namespace: Namespace) -> str:
    return namespace.name


def _reference(snapshot: Snapshot, namespace: Namespace) -> str:
    """How to write this namespace so that nothing else can be meant."""
    workload = _workload(snapshot, namespace)
    if workload is not None and sum(each.reference == workload for each in snapshot.workloads) == 1:
        return workload
    if sum(namespace.name in (*each.names, each.name) for each in snapshot.namespaces) == 1:
        return namespace.name if namespace.name.startswith("netns:") else f"netns:{namespace.name}"
    return f"netns:{namespace.inode}"


def _workload(snapshot: Snapshot, namespace: Namespace) -> str | None:
    # A container that shares its node's namespace (node is where its daemon runs) does not give its name to the node.
    return next(
        (each.reference for each in snapshot.workloads if each.netns == namespace.inode and each.node != namespace.name), None
    )


def _listed(candidates: Iterable[str]) -> str:
    every = sorted(set(candidates))
    shown = ", ".join(every[:_MAX_CANDIDATES])
    return shown if len(every) <= _MAX_CANDIDATES else f"{shown} and {len(every) - _MAX_CANDIDATES} more"


def _usable(namespace: Namespace) -> list[Address]:
    """Addresses that others can send to, the best first: of the default route's device, then by ifindex, IPv4 before IPv6."""
    loopbacks = {link.ifindex for link in namespace.links if link.kind == "loopback"}
    defaults = [
        hop.device
        for route in sorted(namespace.routes, key=lambda route: route.metric)
        if route.destination in ("0.0.0.0/0", "::/0") and route.type == "unicast" and route.table == 254
        for hop in route.nexthops
    ]
    usable = [
        each
        for each in namespace.addresses
        if each.scope == "global" and not {"tentative", "dadfailed", "deprecated"} & set(each.flags)
        and not ipaddress.ip_address(each.address).is_loopback
    ]  # fmt: skip
    return sorted(
        usable,
        key=lambda each: (
            each.family,
            each.device in loopbacks,
            each.device not in defaults,
            each.device,
            "secondary" in each.flags,
        ),
    )


def primary_address(namespace: Namespace) -> str | None:
    """The address that a name stands for when it is a destination; None when there is none but loopback and link-local ones."""
    return next((each.address for each in _usable(namespace)), None)


# Services


def _service(written: _Written, snapshot: Snapshot, role: Role, text: str) -> Endpoint:
    if role == "source":
        raise UsageError(f"{text!r}: a service can only be a destination")
    if written.name.count("/") != 1:
        raise UsageError(f"{text!r}: a service is written svc:NAMESPACE/NAME")
    found = sorted({address for name, address in _services(snapshot) if name == written.name})
    if written.address is not None:
        found = [address for address in found if address == written.address]
    if not found:
        raise UsageError(
            f"{text!r} needs service data: neither the snapshot nor its rulesets name such a service; give its ClusterIP instead"
        )
    if len({(":" in address) for address in found}) < len(found):
        raise UsageError(f"{text!r} is ambiguous: {_listed(f'svc:{written.name}@{address}' for address in found)}")
    address = min(found, key=lambda address: ":" in address)
    return Endpoint(None, address, written.port, None, text)


_CLUSTER_IP = re.compile(
    r"^(?:\[\d+:\d+\] )?-A KUBE-(?:SERVICES|REJECT\S*) .*-d ([0-9a-f.:]+)/(?:32|128) "
    r'.*--comment "([^\s":]+/[^\s":]+)(?::\S*)? (?:cluster IP|has no endpoints)"',
    re.MULTILINE,
)
_SERVICE_CHAIN = re.compile(r"service-[A-Z0-9]+-([^/]+/[^/]+)/")


def _services(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """(NAMESPACE/NAME, ClusterIP) of the services that objects kept in the snapshot, or kube-proxy's rules, tell of."""
    for path, text in snapshot.files.items():
        if path.rpartition("/")[2] == "services.json":
            yield from _service_objects(text)
    for namespace in snapshot.namespaces:
        if namespace.netfilter is None:
            continue
        for ruleset in namespace.netfilter.xtables:
            for match in _CLUSTER_IP.finditer(ruleset.text):
                known = _address(match.group(1))
                if known is not None:
                    yield match.group(2), known
        if namespace.netfilter.nft and "kube-proxy" in namespace.netfilter.nft:
            yield from _nft_services(namespace.netfilter.nft)


def _service_objects(text: str) -> Iterator[tuple[str, str]]:
    for item in _items(_json(text)):
        # As the API serves it, or with the metadata's keys beside spec.
        metadata, spec = item.get("metadata", item), item.get("spec")
        if not isinstance(metadata, dict) or not isinstance(spec, dict):
            continue
        addresses = spec.get("clusterIPs") or [spec.get("clusterIP")]
        for address in addresses if isinstance(addresses, list) else []:
            known = _address(address) if isinstance(address, str) else None
            if known is not None:
                yield f"{metadata.get('namespace', 'default')}/{metadata.get('name')}", known


def _nft_services(text: str) -> Iterator[tuple[str, str]]:
    """Elements of the map service-ips: [address . protocol . port] : goto service-HASH-NAMESPACE/NAME/PROTOCOL/PORT."""
    document = _json(text)
    for entry in _items(document.get("nftables") if isinstance(document, dict) else None):
        table = entry.get("map")
        if not isinstance(table, dict) or table.get("name") != "service-ips":
            continue
        for pair in table.get("elem") or []:
            if not isinstance(pair, list) or len(pair) != 2:
                continue
            key, verdict = pair
            match = _SERVICE_CHAIN.search(json.dumps(verdict))
            concat = key.get("concat") if isinstance(key, dict) else None
            known = _address(concat[0]) if isinstance(concat, list) and concat and isinstance(concat[0], str) else None
            if match is not None and known is not None:
                yield match.group(1), known


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _items(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        value = value.get("items")
    for item in value if isinstance(value, list) else []:
        if isinstance(item, dict):
            yield item
