from __future__ import annotations

from netpath.model.path import DeviceRef, Hop, NetnsRef, Path
from netpath.model.snapshot import DeviceId
from netpath.trace.align import HopKey, align, closest


def hop(netns: int, ifindex: int, direction: str, kind: str = "veth") -> Hop:
    device = DeviceRef(f"d{ifindex}", ifindex, kind)
    return Hop(0, "predicted", None, NetnsRef(netns, "n"), None, device, direction, 106, 92, 1500, ())


def key(netns: int, ifindex: int, direction: str) -> HopKey:
    return DeviceId(netns, ifindex), direction


PREDICTED = [hop(1, 2, "tx"), hop(2, 3, "rx"), hop(2, 4, "rx", "bridge"), hop(2, 5, "tx", "vxlan"), hop(2, 2, "tx")]
SEEN = [key(item.netns.inode, item.device.ifindex, item.direction) for item in PREDICTED]


def statuses(*lines: object) -> list[str]:
    return [line.status for line in lines]  # type: ignore[attr-defined]


def test_all_as_predicted() -> None:
    assert statuses(*align(PREDICTED, SEEN)) == ["observed"] * 5


def test_a_hop_that_was_not_seen_is_missing_and_keeps_its_place() -> None:
    assert statuses(*align(PREDICTED, [SEEN[0], SEEN[1], SEEN[3], SEEN[4]])) == [
        "observed",
        "observed",
        "missing",
        "observed",
        "observed",
    ]


def test_a_detour_is_unexpected_where_it_happened() -> None:
    detour = [*SEEN[:3], key(2, 9, "tx")]
    assert statuses(*align(PREDICTED, detour)) == ["observed"] * 3 + ["missing"] * 2 + ["unexpected"]


def test_the_same_device_in_the_other_direction_is_another_hop() -> None:
    assert statuses(*align(PREDICTED[:1], [key(1, 2, "rx")])) == ["missing", "unexpected"]


def test_what_no_hook_reports_is_unprobed_not_missing() -> None:
    vlan = [hop(1, 2, "rx"), hop(1, 7, "rx", "vlan")]
    assert statuses(*align(vlan, [key(1, 2, "rx")])) == ["observed", "unprobed"]
    assert statuses(*align(PREDICTED, [], watched=("rx",))) == ["unprobed", "missing", "missing", "unprobed", "unprobed"]


def test_the_closest_path_of_a_multipath_prediction() -> None:
    left = Path("forward", 0.5, "delivered", tuple(PREDICTED))
    right = Path("forward", 0.5, "delivered", (*PREDICTED[:4], hop(2, 8, "tx")))
    assert closest([left, right], [*SEEN[:4], key(2, 8, "tx")], "delivered") is right
    assert closest([left, right], SEEN, "delivered") is left
    assert closest([], SEEN, "delivered") is None
