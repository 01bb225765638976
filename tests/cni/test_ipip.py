"""Flannel over IPIP, told from Calico's tunl0 and from a tunnel that is nobody's."""

from __future__ import annotations

import pytest

from netpath.model.snapshot import IpTunnel
from tests.cni.test_recognise import Scene, _kinds, _link, _route

MASQ = '-A POSTROUTING -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully'


def scene(name: str, *, local: str | None = "192.168.0.11", rules: tuple[str, ...] = ()) -> Scene:
    made = Scene(rules=list(rules))
    tunnel = made.add(_link(20, name, "ipip", link_type="ipip", mtu=1480, tunnel=IpTunnel(local)), "10.244.1.0/32")
    made.routes.append(_route("10.244.2.0/24", tunnel, "192.168.0.12", onlink=True))
    bridge = made.add(_link(21, "cni0", "bridge"), "10.244.1.1/24")
    made.pod("10.244.1.2", bridge=bridge)
    return made


@pytest.mark.parametrize(("name", "rules"), [("flannel.ipip", ()), ("flannel.ipip", (MASQ,)), ("renamed0", (MASQ,))])
def test_flannel_over_ipip(name: str, rules: tuple[str, ...]) -> None:
    assert ("flannel", "ipip") in _kinds(scene(name, rules=rules).recognise())


def test_a_tunnel_of_somebody_elses_is_not_flannels() -> None:
    for made in (scene("office0"), scene("tunl0", local=None, rules=(MASQ,))):
        assert ("flannel", "ipip") not in _kinds(made.recognise())
