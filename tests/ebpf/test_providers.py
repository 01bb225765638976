"""Which provider is taken, and how marks on functions become the marks that were asked for; without a kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from netpath.ebpf import providers
from netpath.ebpf.capabilities import HookKind, used
from netpath.ebpf.providers.functions import BEGIN, END, Functions
from netpath.errors import UsageError
from netpath.model.event import QUEUED, Boundary, Stamp
from netpath.trace.stages import Registered


class Nowhere(Functions):
    """A provider of functions on no kernel."""

    name = title = requirement = loss = "nowhere"

    def _load(self, site: Any) -> int:
        return 0

    def _attach(self, site: Any, program: int) -> int:
        return 0

    @staticmethod
    def attempt(stack: Any) -> str:
        return ""


def stamp(time_ns: int, priority: int, netns: int, hook: str = "prerouting", *, skb: int = 7) -> Stamp:
    return Stamp(time_ns, netns, 4, hook, priority, 1, skb)


@pytest.fixture
def provider(tmp_path: Path) -> tuple[Nowhere, int]:
    """Asked for marks among raw, conntrack, mangle and nat at prerouting, and at a forward hook where nothing is."""
    place = tmp_path / "netns"
    place.touch()
    inode = place.stat().st_ino
    entries = ((-300, "filter"), (-200, "conntrack"), (-150, "filter"), (-100, "nat"))
    registered = Registered({(inode, 4, "prerouting"): entries, (inode, 4, "forward"): ()})
    made = Nowhere(None)  # type: ignore[arg-type]
    made.attach_stages({str(place): registered.boundaries(inode)})
    return made, inode


def test_each_boundary_has_the_first_mark_in_it(provider: tuple[Nowhere, int]) -> None:
    made, netns = provider
    seen = [(1, BEGIN), (2, -200), (3, -199), (4, -100), (5, -99), (6, END), (7, 0)]
    found = made.marks([stamp(time, priority, netns) for time, priority in seen])
    assert [(each.time_ns, each.priority) for each in found] == [(1, -301), (2, -299), (3, -199), (4, -149), (5, -99)]


def test_a_place_where_nothing_is_registered_is_marked_at_each_visit(provider: tuple[Nowhere, int]) -> None:
    """By the tunnel's packet, by its payload, and by the next probe, which may lie where the first one did."""
    made, netns = provider
    payload = [stamp(1, 0, netns, "forward"), stamp(2, 0, netns, "forward")]
    following = Stamp(3, netns, 4, "forward", 0, 2, 7)
    assert [(each.time_ns, each.priority) for each in made.marks([*payload, following])] == [(1, 0), (2, 0), (3, 0)]


def test_a_packet_that_comes_by_again_is_marked_again(provider: tuple[Nowhere, int]) -> None:
    made, netns = provider
    visits = [stamp(time, priority, netns) for time, priority in [(1, BEGIN), (2, -200), (11, BEGIN), (12, -200)]]
    assert [each.time_ns for each in made.marks(visits)] == [1, 2, 11, 12]
    assert [each.time_ns for each in made.marks([stamp(1, -200, netns), stamp(2, -200, netns, skb=8)])] == [1, 2]


def test_other_namespaces_and_queues_are_told_apart(provider: tuple[Nowhere, int]) -> None:
    made, netns = provider
    foreign, queued = stamp(1, -200, netns + 1), Stamp(2, netns + 1, 0, QUEUED, 0, 1, 7)
    assert made.marks([foreign, queued]) == [queued]


def test_a_named_kind_leaves_the_other_family_alone() -> None:
    devices, inside = providers.chosen(["kprobe"])
    assert [each.name for each in devices] == ["btf", "raw"] and [each.name for each in inside] == ["kprobe"]
    devices, inside = providers.chosen(["raw", "fentry", "netfilter"])
    assert [each.name for each in devices] == ["raw"] and [each.name for each in inside] == ["netfilter", "fentry"]
    with pytest.raises(UsageError, match="--hooks tcx"):
        providers.chosen(["btf", "tcx"])


def test_what_is_used_is_the_best_there_is() -> None:
    kinds = [
        HookKind(each.title, each.name in ("raw", "kprobe", "fentry"), "", "", each.name)
        for each in (*providers.DEVICES, *providers.INSIDE)
    ]
    assert used(tuple(kinds)) == ("raw", "fentry")
    assert used(tuple(kinds[:2])) == ("raw",)


def test_boundaries_are_what_they_were_asked_to_be(provider: tuple[Nowhere, int]) -> None:
    """The test's own ground: five boundaries at prerouting, one at forward."""
    made, netns = provider
    assert made._asked[netns, 4, "forward"] == [Boundary(4, "forward", 0, 100)]
    assert len(made._asked[netns, 4, "prerouting"]) == 5
