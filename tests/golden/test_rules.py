"""Which rule did it: the translations and refusals of recorded flows, named by the rules of the recorded rulesets."""

from __future__ import annotations

from typing import Any

import pytest

from netpath.model.path import Path, Prediction
from netpath.predict import predict, predict_reply
from tests import recordings
from tests.golden import expect
from tests.golden.test_recordings import snapshot_of_case


def _flow(case: str, name: str) -> dict[str, Any]:
    return next(flow for flow in recordings.flows(case) if flow["name"] == name)


def _predicted(case: str, name: str) -> tuple[Prediction, list[Prediction]]:
    """The way there, and for each of its paths the way back."""
    flow = _flow(case, name)
    state = expect.before(snapshot_of_case(case), flow)
    question = expect.question(state, flow)
    there = predict(state, question)
    return there, [predict_reply(state, question, path) for path in there.paths]


def _done(path: Path) -> list[tuple[str, bool, str | None, str | None]]:
    """Kind, reverse, chain and target of each translation."""
    return [
        (
            item.kind,
            item.reverse,
            item.rule.chain if item.rule else None,
            item.rule.text.partition(" -j ")[2] if item.rule else None,
        )
        for item in path.translations
    ]


def test_docker_to_a_published_port_rewrites_twice() -> None:
    """Source on the way out, destination on the way in; the answer undoes both. The articles say three."""
    there, back = _predicted("docker", "xnode")
    dnat = ("DOCKER", "DNAT --to-destination 172.17.0.2:7071")
    assert _done(there.paths[0]) == [("masquerade", False, "POSTROUTING", "MASQUERADE"), ("dnat", False, *dnat)]
    assert _done(back[0].paths[0]) == [("dnat", True, *dnat), ("masquerade", True, "POSTROUTING", "MASQUERADE")]


@pytest.mark.parametrize(
    ("name", "target"), [("neighpub", "172.17.0.2"), ("loopback", "172.17.0.2"), ("isolatedpub", "172.20.0.2")]
)
def test_docker_proxy_in_the_way(name: str, target: str) -> None:
    there, back = _predicted("docker", name)
    (item,) = there.paths[0].translations
    assert item.kind == "proxy" and item.rule is not None and f"-container-ip {target}" in item.rule.text
    assert item.after.dst == f"{target}:7071" and item.after.src.endswith(":*")
    (returned,) = back[0].paths[0].translations
    assert (returned.kind, returned.reverse) == ("proxy", True)
    crossings = [stage for stage in there.paths[0].stages if stage.stage == "userspace"]
    assert len(crossings) == 1 and crossings[0].detail["process"] == "docker-proxy"


def test_docker_keeps_its_networks_apart() -> None:
    there, _ = _predicted("docker", "isolated")
    drop = there.paths[0].drop
    assert drop is not None and drop.rule is not None
    assert (drop.rule.table, drop.rule.chain) == ("filter", "DOCKER-ISOLATION-STAGE-2")
    assert drop.rule.text.endswith("-j DROP")


def test_a_service_is_named_and_its_endpoints_share() -> None:
    there, _ = _predicted("flannel-vxlan-kubeproxy-nft", "clusterip")
    assert [path.share for path in there.paths] == [0.5, 0.5]
    assert {path.translations[0].after.dst for path in there.paths} == {"10.244.2.2:7071", "10.244.1.3:7071"}
    for path in there.paths:
        (item,) = path.translations
        assert item.rule is not None and item.rule.service == "default/echo:udp"
        assert item.rule.chain is not None and item.rule.chain.startswith("KUBE-SEP-")


def test_a_node_port_is_masqueraded_by_its_mark() -> None:
    there, _ = _predicted("flannel-vxlan-kubeproxy-nft", "nodeport")
    for path in there.paths:
        assert [item.kind for item in path.translations] == ["dnat", "masquerade"]
        rule = path.translations[1].rule
        assert rule is not None and rule.chain == "KUBE-POSTROUTING"
        assert rule.comment == "kubernetes service traffic requiring SNAT"


def test_external_traffic_policy_local_keeps_the_client() -> None:
    there, _ = _predicted("flannel-vxlan-kubeproxy-nft", "local")
    (path,) = there.paths
    assert [item.kind for item in path.translations] == ["dnat"]
    assert path.translations[0].after.src.startswith("192.168.50.12:")


def test_a_service_without_endpoints_refuses() -> None:
    there, back = _predicted("flannel-vxlan-kubeproxy-nft", "noep")
    drop = there.paths[0].drop
    assert drop is not None and drop.rule is not None
    assert drop.rule.comment == "default/noep:udp has no endpoints" and "icmp-port-unreachable" in drop.cause
    assert drop.remedy == "give default/noep:udp an endpoint: check its selector and whether its pods are ready"
    assert back[0].paths == ()


def test_a_host_port_back_to_its_own_pod() -> None:
    there, _ = _predicted("cni-bridge-portmap-firewall", "hairpin")
    assert [(kind, chain) for kind, _, chain, _ in _done(there.paths[0])] == [
        ("dnat", "CNI-DN-7d5cc646f93ebf2d5472e"),
        ("masquerade", "CNI-HOSTPORT-MASQ"),
    ]


@pytest.mark.parametrize("case", ["calico-bgp", "calico-vxlan"])
def test_an_unused_address_of_a_block_ends_in_its_blackhole(case: str) -> None:
    there, _ = _predicted(case, "blackhole")
    drop = there.paths[0].drop
    assert drop is not None and "blackhole 10.42.17.64/26" in drop.cause
    assert drop.netns is not None and drop.netns.name == "fcn1"


@pytest.mark.parametrize(
    ("case", "size", "kind"), [("flannel-udp", 28, "relay"), ("weave-sleeve", 62, "sleeve"), ("calico-vxlan", 50, "vxlan")]
)
def test_bytes_on_the_wire(case: str, size: int, kind: str) -> None:
    there, _ = _predicted(case, "xnode")
    stages = {stage.stage: stage for stage in there.paths[0].stages if stage.stage in ("encap", "decap")}
    assert (stages["encap"].bytes, stages["decap"].bytes) == (size, -size)
    assert stages["encap"].detail["kind"] == kind
    crossings = sum(stage.stage == "userspace" for stage in there.paths[0].stages)
    assert crossings == (0 if kind == "vxlan" else 2)
