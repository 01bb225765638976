"""The snapshot as a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpath.errors import UsageError
from netpath.model import snapshot as model
from netpath.snapshotfile import decode, encode, load


def example() -> model.Snapshot:
    link = model.Link(
        2, "eth0", "veth", "02:00:00:00:00:01", 1450, ("LOWER_UP", "UP"), peer=model.DeviceId(7, 3),
        vxlan=model.Vxlan(1, 8472), bridge=model.Bridge(), port=model.BridgePort(), tunnel=model.IpTunnel("10.0.0.1"),
        vlans=(model.BridgeVlan(1, True, True),), programs=(model.Program("xdp", 4, "p"),),
    )  # fmt: skip
    namespace = model.Namespace(
        5, "pöd", ("pöd",), ("/run/netns/pöd",), (1, 2), ((0, 7),), (link,), (model.Address(2, 4, "10.0.0.1", 24),),
        (model.Route(4, 254, "0.0.0.0/0", nexthops=(model.NextHop(2, "10.0.0.2", flags=("onlink",)),)),),
        (model.Rule(4, 100, source_ports=(1, 2)),), (model.NextHopObject(3, group=((1, 2),)),),
        (model.Neighbour(2, 4, "10.0.0.2", None, "FAILED"),), (model.FdbEntry(2, "02:00:00:00:00:09"),),
        model.Netfilter((model.Xtables(4, "nft", "*filter\nCOMMIT\n"),), "{}", None, ("x",)),
        (model.ConntrackEntry(4, "udp", model.FlowTuple("a", "b", 1, 2), model.FlowTuple("b", "a", 2, 1)),),
        (model.Socket("udp", "::", 53),), {"net.ipv4.ip_forward": "1"}, 0, ("odd",),
    )  # fmt: skip
    return model.Snapshot(
        (namespace, model.Namespace(7, "b", netfilter=None)), taken_at="2026-01-02T03:04:05.678Z", tool="netpath", hostname="h",
        kernel="6.18", workloads=(model.Workload("docker:web", "web", "3f", 5, containers=("a",)),), files={"/etc/x": "y\n"},
    )  # fmt: skip


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_bytes(encode(example()))
    assert load(file) == example()


def test_equal_snapshots_give_equal_bytes() -> None:
    (first, second), one = example().namespaces, example()
    shuffled = replace(one, namespaces=(replace(first, sysctls={"b": "2", "a": "1"}), second))
    ordered = replace(one, namespaces=(replace(first, sysctls={"a": "1", "b": "2"}), second))
    assert encode(shuffled) == encode(ordered)


def test_the_document_carries_the_common_keys() -> None:
    document = json.loads(encode(example()))
    assert list(document)[:2] == ["apiVersion", "kind"] or set(document) >= {"apiVersion", "kind"}
    assert document["apiVersion"] == "netpath/v1alpha1" and document["kind"] == "Snapshot"
    assert document["startedAt"] == "2026-01-02T03:04:05.678Z" and document["request"] == {}
    assert document["nodes"] == [{"name": "h", "kernel": "6.18", "datapaths": []}]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"apiVersion": "netpath/v9"}, "apiVersion is netpath/v9"),
        ({"kind": "Trace"}, "kind is Trace"),
        ({"snapshot": {"schema": 99}}, "newer netpath"),
        ({"snapshot": {"schema": "1"}}, "not a number"),
        ({"snapshot": None}, "no object"),
        ({"snapshot": {}}, "namespaces"),
        ({"snapshot": {"namespaces": [{"inode": "5", "name": "x"}]}}, "inode"),
    ],
)
def test_foreign_documents_are_refused_in_one_line(tmp_path: Path, change: dict[str, object], expected: str) -> None:
    file = tmp_path / "s.json"
    file.write_text(json.dumps({**json.loads(encode(example())), **change}))
    with pytest.raises(UsageError) as raised:
        load(file)
    assert str(file) in str(raised.value) and expected in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": 1}', b"[" * 100_000])
def test_rubbish_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "s.json"
    file.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        load(file)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_file_and_an_empty_folder_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "none")
    with pytest.raises(UsageError, match="not a dump"):
        load(tmp_path)


def test_unknown_keys_of_a_later_minor_version_are_passed_over() -> None:
    document = json.loads(encode(example()))
    document["snapshot"]["later"] = 1
    assert decode(json.dumps(document).encode()) == example()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_is_a_usage_error_or_a_snapshot(data: st.DataObject) -> None:
    content = bytearray(encode(example()))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(decode(bytes(content)), model.Snapshot)
    except UsageError as error:
        assert "\n" not in str(error)
