"""Everything of one namespace, read by a thread that is in it."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TypeVar

from netpath.discover import conntrack, ipvs, links, programs, routing, rulesets, sockets, sysctls
from netpath.discover.namespaces import Found, descriptor_of
from netpath.discover.nl import NETLINK_ROUTE, NETLINK_XFRM, Netlink, attribute, attributes, number
from netpath.model.snapshot import Link, Namespace

T = TypeVar("T")
D = TypeVar("D")

_RTM_GETNSID = 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_XFRM_MSG_GETSPDINFO = 0x25
_XFRMA_SPD_INFO = 1
_ABSENT = (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)


@dataclass(slots=True)
class Read:
    """A namespace before its links' peers and its sockets' owners are known."""

    namespace: Namespace
    held: list[sockets.Held] = field(default_factory=list)
    conntrack: list[bytes] | None = None


def read(found: Found, others: Mapping[int, Found], *, with_conntrack: bool) -> Read:
    """Read the namespace that the calling thread has entered. Raises OSError when not even its devices can be read."""
    problems: list[str] = []

    def attempt(what: str, function: Callable[[], T], default: D) -> T | D:
        """A part that may be missing from this kernel, or unreadable."""
        try:
            return function()
        except OSError as error:
            if error.errno not in _ABSENT:
                problems.append(f"{what} could not be read: {error.strerror or error}")
            return default
        except (ValueError, struct.error) as error:
            problems.append(f"{what} could not be read: the kernel's answer is not understood: {error}")
            return default

    with Netlink(NETLINK_ROUTE) as route:
        device_read = links.read(route)
        by_index = {link.ifindex: link for link in device_read.links}
        nsids = attempt("the numbering of other namespaces", lambda: _nsids(route, device_read.links, others), ())
        bridged = any(link.kind == "bridge" for link in device_read.links)
        vlans = attempt("bridge VLANs", lambda: links.read_vlans(route), {}) if bridged else {}
        offload = attempt("checksum offload", lambda: links.checksum_offload(device_read.raw_names), {})
        attached = programs.read(route, device_read.links, device_read.xdp, problems)
        names = {link.ifindex: link.name for link in device_read.links}
        settings = sysctls.read()
        settings.update(device_read.sysctls)
        held = attempt("sockets", lambda: sockets.read(names), None)
        namespace = Namespace(
            inode=found.inode,
            name="",
            pids=tuple(found.pids),
            paths=tuple(found.paths),
            nsids=nsids,
            links=tuple(
                replace(
                    link,
                    tx_checksum_offload=offload.get(link.ifindex),
                    vlans=vlans.get(link.ifindex, ()),
                    programs=attached.get(link.ifindex, ()),
                )
                for link in device_read.links
            ),
            addresses=attempt("addresses", lambda: routing.read_addresses(route), ()),
            routes=(
                *attempt("IPv4 routes", lambda: routing.read_routes(route, socket.AF_INET), ()),
                *attempt("IPv6 routes", lambda: routing.read_routes(route, socket.AF_INET6), ()),
            ),
            rules=(
                *attempt("IPv4 policy rules", lambda: routing.read_rules(route, socket.AF_INET), ()),
                *attempt("IPv6 policy rules", lambda: routing.read_rules(route, socket.AF_INET6), ()),
            ),
            nexthops=attempt("nexthop objects", lambda: routing.read_nexthops(route), ()),
            neighbours=attempt("neighbours", lambda: routing.read_neighbours(route, by_index), ()),
            fdb=attempt("forwarding entries", lambda: routing.read_fdb(route), ()),
            netfilter=rulesets.read(problems),
            sockets=() if held is not None else None,
            sysctls=dict(sorted(settings.items())),
            xfrm_policies=attempt("XFRM policies", _xfrm_policies, None),
            ipvs=attempt("IPVS virtual servers", ipvs.read, None),
        )
    raw = attempt("conntrack entries", conntrack.dump, None) if with_conntrack else None
    return Read(replace(namespace, problems=tuple(problems)), held or [], raw)


def _nsids(route: Netlink, devices: list[Link], others: Mapping[int, Found]) -> tuple[tuple[int, int], ...]:
    """How this namespace numbers the others, as far as its devices ask.

    The kernel answers only "which number has this namespace", so each candidate has to be shown to it; it stops when every number
    that a device bears is known. The dump of devices has made those numbers, if they did not exist (net/core/rtnetlink.c,
    rtnl_fill_link_netnsid).
    """
    wanted = {link.lower_nsid for link in devices if link.lower_nsid is not None}
    known: dict[int, int] = {}
    candidates = list(others.values())
    while wanted - known.keys() and candidates:
        chunk, candidates = candidates[:64], candidates[64:]
        with ExitStack() as stack:
            shown: list[tuple[int, int]] = []
            for other in chunk:
                descriptor = stack.enter_context(descriptor_of(other))
                if descriptor is not None:
                    shown.append((other.inode, descriptor))
            requests = [struct.pack("=Bxxx", 0) + attribute(_NETNSA_FD, struct.pack("=I", descriptor)) for _, descriptor in shown]
            for (inode, _), answer in zip(shown, route.ask(_RTM_GETNSID, requests), strict=True):
                if isinstance(answer, int):
                    continue
                nsid = struct.unpack("=i", attributes(answer[1], 4).get(_NETNSA_NSID, b"\xff\xff\xff\xff"))[0]
                if nsid >= 0:
                    known[nsid] = inode
    return tuple(sorted((nsid, inode) for nsid, inode in known.items() if nsid in wanted))


def _xfrm_policies() -> int:
    """How many policies there are: counting them costs the kernel nothing, dumping them would."""
    try:
        with Netlink(NETLINK_XFRM) as xfrm:
            (answer,) = xfrm.ask(_XFRM_MSG_GETSPDINFO, [struct.pack("=I", 0xFFFFFFFF)])
    except OSError as error:
        if error.errno in (*_ABSENT, errno.EINVAL):
            return 0  # this kernel has no IPsec
        raise
    if isinstance(answer, int):
        raise OSError(answer, "XFRM_MSG_GETSPDINFO failed")
    info = attributes(answer[1], 4).get(_XFRMA_SPD_INFO, b"")
    return sum(number(info[offset : offset + 4]) for offset in (0, 4, 8))
