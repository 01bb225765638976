"""Two VXLAN devices of one port and VNI on a node, one for each family of the underlay, as dual-stack Flannel has them."""

from __future__ import annotations

import pytest

from netpath import lab
from netpath.trace.request import TraceRequest
from netpath.trace.session import run

pytestmark = [pytest.mark.root, pytest.mark.ebpf]


def test_each_family_is_unwrapped_by_its_own_device() -> None:
    with lab.running("flannel-vxlan", "nptdual", ipv6=True) as made:
        pod = made.pod("pod2a")
        four, six = (next(each for each in pod.addresses if (":" in each) is wanted) for wanted in (False, True))
        at = f"netns:{pod.netns}@"
        for destination, device, added in ((f"{at}{four}:7777", "flannel.1", 50), (f"{at}[{six}]:7777", "flannel-v6.1", 70)):
            result = run(TraceRequest(source=f"netns:{made.pod('pod1a').netns}", destination=destination, protocol="udp", count=2))
            (path,) = result.trace.paths
            assert {hop.status for hop in path.hops} == {"observed"}, destination
            assert [hop.device.name for hop in path.hops if hop.device.kind == "vxlan"] == [device, device]
            assert [stage.bytes for stage in path.stages if stage.stage == "encap"] == [added]
            assert not result.trace.diverged
