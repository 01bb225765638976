"""What a lab may need and not find: link kinds that a kernel may lack, components that are fetched."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from netpath.errors import MissingError
from netpath.lab import bird, guests, plugins
from tests.netns import namespaces

NEEDS = {
    "flannel-ipip": "ipip",
    "calico-ipip": "ipip",
    "calico-ipip-crosssubnet": "ipip",
    "kube-ipvs": "ipvs",
    "cni-bridge": "plugins",
    "ptp": "plugins",
    "kubenet": "plugins",
    "gke": "plugins",
    "calico-bgp": "bird",
    "calico-rr": "bird",
    "canal": "plugins",
}
"""Lab modes -> the link kind (or ipvs, the CNI plugins, or BIRD) without which they can't be built."""

IPVSADM = ("ipvsadm", "libnl-3-200", "libnl-genl-3-200", "libpopt0")
"""The packages of the load balancer's own tool."""


def has(kind: str) -> bool:
    """Whether this kernel makes such devices, tried in a namespace of its own."""
    with namespaces(1) as (one,):
        words = ["type", kind]
        if kind == "ipip":
            words += ["local", "192.0.2.1", "remote", "192.0.2.2"]
        elif kind == "vlan":
            one.ip("link", "add", "name", "below0", "type", "bridge")
            words = ["link", "below0", *words, "id", "7"]
        made = subprocess.run(["ip", "-n", one.name, "link", "add", "name", "probe0", *words], capture_output=True, check=False)
        return made.returncode == 0


def has_ipvs() -> bool:
    """Whether the kernel has its load balancer, or loads it when asked."""
    if shutil.which("modprobe") is not None:
        subprocess.run(["modprobe", "--quiet", "ip_vs"], capture_output=True, check=False)
    return Path("/proc/net/ip_vs").exists()


def need(kind: str) -> None:
    if kind in ("plugins", "bird"):
        try:
            guests.fetch(*(("bird", bird.PACKAGES) if kind == "bird" else ("cni-plugins", plugins.PACKAGES)))
        except MissingError as error:
            pytest.skip(str(error))
    elif kind == "ipvs":
        if not has_ipvs():
            pytest.skip("this kernel lacks IPVS")
    elif not has(kind):
        pytest.skip(f"this kernel lacks the link kind {kind}")
