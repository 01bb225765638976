"""Link kinds that a kernel may lack."""

from __future__ import annotations

import subprocess

import pytest

from tests.netns import namespaces

NEEDS = {
    "flannel-ipip": "ipip",
    "calico-ipip": "ipip",
    "calico-ipip-crosssubnet": "ipip",
}
"""Lab modes -> the link kind without which they can't be built."""


def has(kind: str) -> bool:
    """Whether this kernel makes such devices, tried in a namespace of its own."""
    with namespaces(1) as (one,):
        words = ["ip", "-n", one.name, "link", "add", "name", "probe0"]
        extra = ["link", "lo", "type", kind, "id", "7"] if kind == "vlan" else ["type", kind]
        if kind == "ipip":
            extra += ["local", "192.0.2.1", "remote", "192.0.2.2"]
        made = subprocess.run([*words, *extra], capture_output=True, check=False)
        return made.returncode == 0


def need(kind: str) -> None:
    if not has(kind):
        pytest.skip(f"this kernel lacks the link kind {kind}")
