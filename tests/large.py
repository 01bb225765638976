"""A node of a large cluster: a lab whose nodes have 3,000 services, in each of kube-proxy's languages."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from netpath import lab
from netpath.lab import Lab
from netpath.lab.services import Endpoint, Service, iptables_rules, nftables_rules

SERVICES = 3000
LANGUAGES = ("iptables-nft", "iptables-legacy", "nftables")


def services(made: Lab) -> list[Service]:
    """Each with an endpoint on both nodes, behind an address of its own."""
    pods = [made.pod("pod1b"), made.pod("pod2a")]
    endpoints = tuple(Endpoint(pod.name, pod.node, pod.address, 7071) for pod in pods)
    return [Service(f"svc{n}", "udp", "udp", f"10.96.{n // 250}.{n % 250 + 1}", 53, endpoints) for n in range(SERVICES)]


@contextmanager
def large(language: str) -> Iterator[Lab]:
    with lab.running("flannel-vxlan", f"npt{os.urandom(2).hex()}") as made:
        for node in made.nodes:
            if language == "nftables":
                text = nftables_rules(services(made), pod_network="10.244.0.0/16", node=node.name, node_address=node.address)
                words = ["nft", "-f", "-"]
            else:
                text = iptables_rules(services(made), pod_network="10.244.0.0/16", node=node.name)
                words = [f"{language}-restore", "--noflush"]
            subprocess.run(["nsenter", f"--net={node.path}", *words], input=text, text=True, check=True)
        yield made
