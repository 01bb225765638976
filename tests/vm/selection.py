"""Which tests run on which kernel, in guests and (``python -m tests.vm``) natively: one list drives both."""

from __future__ import annotations

from dataclasses import dataclass

_EVERY_KERNEL = (
    "tests/trace/test_precision.py",
    "tests/trace/test_hooks.py::test_every_kind_sees_the_same[kprobe]",
    "tests/trace/test_live.py::test_every_hop_is_observed_as_predicted[4-udp]",
    "tests/lab/test_ipip.py::test_calico_ipip_pod_to_pod",
    "tests/lab/test_ipvs.py::test_a_pod_is_balanced_and_answered",
)
_FENTRY = "tests/trace/test_hooks.py::test_every_kind_sees_the_same[fentry]"


@dataclass(frozen=True)
class Selection:
    """What one kernel runs."""

    series: str
    tests: tuple[str, ...]
    """Files, or tests by their pytest ids."""
    without: tuple[str, ...] = ()
    """Words of ``-k`` that leave tests out."""
    seconds: float = 900.0
    """What its whole run may take, the boot included."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """For pytest."""
        return (*self.tests, *(("-k", " and ".join(f"not {word}" for word in self.without)) if self.without else ()))


SELECTIONS = (
    # 50 pods and captures on every device say nothing about a kernel, and take minutes here; nor do more of the same.
    Selection(
        "6.1",
        (*_EVERY_KERNEL[:2], _FENTRY, "tests/trace/test_live.py", "tests/lab/test_ipip.py", "tests/lab/test_ipvs.py"),
        without=("50_pods", "tcpdump", "icmp", "6-tcp", "same_addresses", "unrelated"),
        seconds=1300,
    ),
    Selection("5.10", (*_EVERY_KERNEL, "tests/trace/test_hooks.py::test_arrivals_that_no_socket_tells[icmp-kprobe]")),
    Selection("6.12", (*_EVERY_KERNEL, _FENTRY, "tests/trace/test_hooks.py::test_every_kind_sees_the_same[netfilter]")),
)
