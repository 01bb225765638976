"""kube-proxy in IPVS mode over Flannel VXLAN: `flannel-vxlan` with services=ipvs under a name of its own."""

from __future__ import annotations

from dataclasses import replace

from netpath.lab.build import Build, Mode
from netpath.lab.modes.flannel import VXLAN


def _build(build: Build) -> None:
    build.options = replace(build.options, services="ipvs")
    VXLAN.build(build)


KUBE_IPVS = Mode(
    name="kube-ipvs",
    summary="kube-proxy in IPVS mode over Flannel VXLAN: virtual servers and sets; needs a kernel with ip_vs",
    real_parts="the kernel's datapath and load balancer; kube-proxy, flanneld and the bridge plugin are imitated",
    try_commands=("netpath path {lab}-pod1a 10.96.7.7:80 --tcp", "netpath trace {lab}-pod1a 10.96.7.8:5353 --udp"),
    plan=VXLAN.plan,
    build=_build,
)
