"""The settings under /proc/sys/net that change where packets go, for the namespace of the calling thread.

Those of single devices come with the dump of links (`netpath.discover.links`); here are the rest.
"""

from __future__ import annotations

import os

from netpath.discover.links import IPV4_CONF, IPV6_CONF

_GENERAL = (
    "net.ipv4.ip_forward", "net.ipv4.ip_default_ttl", "net.ipv4.fib_multipath_hash_policy", "net.ipv4.fib_multipath_use_neigh",
    "net.ipv4.fwmark_reflect", "net.ipv4.ip_local_port_range", "net.ipv4.ip_nonlocal_bind", "net.ipv4.icmp_echo_ignore_all",
    "net.ipv4.ip_forward_use_pmtu", "net.ipv4.ip_no_pmtu_disc", "net.ipv4.nexthop_compat_mode", "net.ipv4.tcp_l3mdev_accept",
    "net.ipv4.udp_l3mdev_accept", "net.ipv6.fib_multipath_hash_policy", "net.ipv6.ip_nonlocal_bind", "net.ipv6.fwmark_reflect",
    "net.ipv6.icmp.echo_ignore_all", "net.ipv6.bindv6only", "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables", "net.bridge.bridge-nf-call-arptables", "net.bridge.bridge-nf-filter-vlan-tagged",
    "net.bridge.bridge-nf-pass-vlan-input-dev", "net.netfilter.nf_conntrack_max", "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_tcp_be_liberal", "net.netfilter.nf_conntrack_tcp_loose",
)  # fmt: skip
_FILES = tuple(
    (name, "/proc/sys/" + name.replace(".", "/"))
    for name in (
        *_GENERAL,
        *(f"net.ipv4.conf.{scope}.{setting}" for scope in ("all", "default") for setting in IPV4_CONF),
        *(f"net.ipv6.conf.{scope}.{setting}" for scope in ("all", "default") for setting in IPV6_CONF),
    )
)


def read() -> dict[str, str]:
    """Names and values; a setting that this kernel lacks is left out."""
    found: dict[str, str] = {}
    for name, path in _FILES:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            found[name] = os.read(descriptor, 4096).decode("ascii", "backslashreplace").strip()
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return found
