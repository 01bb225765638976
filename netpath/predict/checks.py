"""The checks an arriving IPv4 packet's source must pass: martians and reverse path filtering (net/ipv4/fib_frontend.c)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from shlex import quote

from netpath.model.snapshot import Link
from netpath.predict import addresses as ip
from netpath.predict.host import Host
from netpath.predict.route import Query, lookup


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a packet is discarded: the kernel's reason, in plain words, and what mends it."""

    reason: str
    cause: str
    remedy: str | None = None


def inside(host: Host, command: str) -> str:
    """A command as it is typed to run in a namespace."""
    named = bool(host.namespace.names) or any(path.startswith(("/run/netns/", "/var/run/netns/")) for path in host.namespace.paths)
    if named or not (host.namespace.paths or host.namespace.pids):
        return command if host.name == "host" else f"ip netns exec {quote(host.name)} {command}"
    if host.namespace.paths:
        return f"nsenter --net={quote(host.namespace.paths[0])} {command}"
    return f"nsenter -t {host.namespace.pids[0]} -n {command}"


def setting(host: Host, name: str, value: int) -> str:
    return inside(host, "sysctl -w " + quote(f"{name}={value}"))


def validate_source(host: Host, link: Link, query: Query, oif: int | None) -> Refusal | None:
    """fib_validate_source: None when the source is acceptable. `oif` is where the packet is forwarded to, None for local."""
    assert query.src is not None
    name = link.name.replace(".", "/")
    mode = host.highest(4, link.name, "rp_filter")
    accept_local = host.either(4, link.name, "accept_local")
    local = Refusal(
        "IP_LOCAL_SOURCE",
        f"its source address {query.src} is one of {host.name}'s own",
        setting(host, f"net.ipv4.conf.{name}.accept_local", 1),
    )
    if mode == 0:
        if accept_local:
            return None
        if not (host.custom_local_routes or host.custom_rules):
            return local if query.src in host.held else None
    back = Query(
        family=4,
        dst=query.src,
        src=query.dst,
        iif=oif,
        mark=query.mark if host.either(4, link.name, "src_valid_mark") else 0,
        tos=query.tos,
        any_link=True,
    )
    if host.custom_rules:
        back = replace(back, protocol=query.protocol, sport=query.dport, dport=query.sport)
    found = lookup(host, back)
    filtered = Refusal(
        "IP_RPFILTER",
        f"reverse path filtering on {link.name}: {host.name} would not answer {query.src} through {link.name}",
        setting(host, f"net.ipv4.conf.{name}.rp_filter", 2)
        if mode == 1 and host.conf(4, "all", "rp_filter") != 1
        else setting(host, "net.ipv4.conf.all.rp_filter", 2),
    )
    if found.error is not None or found.route is None:
        return filtered if mode else None
    if found.type not in ("unicast", "local") or (found.type == "local" and not accept_local):
        return replace(local, reason="IP_LOCAL_SOURCE" if found.type == "local" else "IP_INVALID_SOURCE")
    devices = {choice.device for choice in found.choices} | {hop.device for hop in found.route.nexthops}
    if link.ifindex in devices or (found.type == "local" and link.kind == "loopback"):
        return None
    if not host.on_device.get((link.ifindex, 4)):
        return filtered if mode else None
    return filtered if mode == 1 else None


def martian(host: Host, link: Link, src: str, dst: str) -> Refusal | None:
    """Addresses that must not arrive on a wire (ip_route_input_slow), whatever the tables say."""
    if ip.is_multicast(src) or src == "255.255.255.255":
        return Refusal("IP_INVALID_SOURCE", f"{src} can't be a source address")
    if ip.is_zero(src) and dst != "255.255.255.255":
        return Refusal("IP_INVALID_SOURCE", f"{src} can't be a source address")
    if ip.is_zero(dst):
        return Refusal("IP_INVALID_DEST", f"{dst} can't be a destination")
    if link.kind != "loopback" and not host.either(4, link.name, "route_localnet"):
        remedy = setting(host, f"net.ipv4.conf.{link.name.replace('.', '/')}.route_localnet", 1)
        for address in (dst, src):
            if ip.is_loopback(address):
                return Refusal("IP_LOCALNET", f"a loopback address ({address}) came in by {link.name}", remedy)
    return None
