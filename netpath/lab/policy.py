"""Network policy as felix writes it: chains that begin with cali-, and sets of addresses.

felix does not run. The chains of filter, raw and mangle, their order, marks and comments are those of felix/rules (static.go,
dispatch.go, endpoints.go, policy.go; Calico 3.26, iptables backend "NFT"). Left out are the nat table and what host endpoints with
a policy would have.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from netpath.lab.kernel import Space

PORT = 7070
"""The one port that the protected pod serves."""
NAME = "default/knp.default.only-clients"
"""The policy, as felix names a Kubernetes NetworkPolicy."""

_ACCEPT = "0x10000"
_PASS = "0x20000"
_FROM_WORKLOAD = "0x40000"
_HOST_ACCEPTED = '-m comment --comment "Host endpoint policy accepted packet."'
_PROFILES = ("kns.default", "ksa.default.default")
"""Profiles of a pod's namespace and of its service account; both allow all."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod of the node, by its device there. `protected`: the policy selects it."""

    device: str
    protected: bool = False


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def set_name(selector: str) -> str:
    """The ipset of a selector's addresses (felix/ipsets, 31 characters at most: cali40, s for selector, a hash)."""
    return f"cali40s:{_digest(selector)[:22]}"


CLIENTS = set_name("role == 'client'")


def sets(clients: Sequence[str]) -> str:
    """The set of pods that may ask, for ipset restore."""
    return "\n".join((f"create {CLIENTS} hash:net family inet maxelem 1048576", *(f"add {CLIENTS} {each}" for each in clients), ""))


class _Table:
    """A table as it is fed to iptables-restore: chains of felix's own, and its rules in the kernel's."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._chains: list[str] = []
        self._lines: list[str] = []

    def chain(self, name: str, *bodies: str) -> None:
        self._chains.append(name)
        self.rules(name, *bodies)

    def rules(self, chain: str, *bodies: str) -> None:
        """Rules with a comment each that begins with cali: and is a hash over the chain so far, as felix tells its own rules by."""
        before = chain
        for body in bodies:
            before = _digest(f"{before} {body}")
            self._lines.append(f'-A {chain} -m comment --comment "cali:{before[:16]}" {body}')

    def text(self) -> str:
        return "\n".join((f"*{self._name}", *(f":{name} - [0:0]" for name in self._chains), *self._lines, "COMMIT", ""))


def _marked(mark: str, action: str) -> str:
    return f"-m mark --mark {mark}/{mark} -j {action}"


def rules(workloads: Sequence[Workload]) -> str:
    """A node's chains, for iptables-restore."""
    return _raw().text() + _mangle().text() + _filter(workloads).text()


def _raw() -> _Table:
    """What a pod sends must come in by the device that answers to its source would take."""
    table = _Table("raw")
    table.rules("PREROUTING", "-j cali-PREROUTING")
    table.rules("OUTPUT", "-j cali-OUTPUT")
    table.chain(
        "cali-PREROUTING",
        "-j MARK --set-xmark 0x0/0xf0000",
        f"-i cali+ -j MARK --set-xmark {_FROM_WORKLOAD}/{_FROM_WORKLOAD}",
        _marked(_FROM_WORKLOAD, "cali-rpf-skip"),
        f"-m mark --mark {_FROM_WORKLOAD}/{_FROM_WORKLOAD} -m rpfilter --validmark --invert -j DROP",
        f"-m mark --mark 0x0/{_FROM_WORKLOAD} -j cali-from-host-endpoint",
        _marked(_ACCEPT, "ACCEPT"),
    )
    table.chain("cali-OUTPUT", "-j MARK --set-xmark 0x0/0xf0000", "-j cali-to-host-endpoint", _marked(_ACCEPT, "ACCEPT"))
    for empty in ("cali-rpf-skip", "cali-from-host-endpoint", "cali-to-host-endpoint"):
        table.chain(empty)
    return table


def _mangle() -> _Table:
    table = _Table("mangle")
    table.rules("PREROUTING", "-j cali-PREROUTING")
    table.rules("POSTROUTING", "-j cali-POSTROUTING")
    table.chain(
        "cali-PREROUTING",
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        _marked(_ACCEPT, "ACCEPT"),
        "-j cali-from-host-endpoint",
        f"{_HOST_ACCEPTED} {_marked(_ACCEPT, 'ACCEPT')}",
    )
    table.chain(
        "cali-POSTROUTING",
        _marked(_ACCEPT, "RETURN"),
        "-j MARK --set-xmark 0x0/0xf0000",
        "-m conntrack --ctstate DNAT -j cali-to-host-endpoint",
        f"{_HOST_ACCEPTED} {_marked(_ACCEPT, 'RETURN')}",
    )
    for empty in ("cali-from-host-endpoint", "cali-to-host-endpoint"):
        table.chain(empty)
    return table


def _filter(workloads: Sequence[Workload]) -> _Table:
    table = _Table("filter")
    chain = table.chain
    accepted, returned = _marked(_ACCEPT, "ACCEPT"), _marked(_ACCEPT, "RETURN")
    table.rules("INPUT", "-j cali-INPUT")
    table.rules(
        "FORWARD",
        "-j cali-FORWARD",
        f'-m comment --comment "Policy explicitly accepted packet." {accepted}',
        f"-j MARK --set-xmark {_ACCEPT}/{_ACCEPT}",
    )
    table.rules("OUTPUT", "-j cali-OUTPUT")
    chain(
        "cali-FORWARD",
        "-j MARK --set-xmark 0x0/0xe0000",
        f"-m mark --mark 0x0/{_ACCEPT} -j cali-from-hep-forward",
        "-i cali+ -j cali-from-wl-dispatch",
        "-o cali+ -j cali-to-wl-dispatch",
        "-j cali-to-hep-forward",
        "-j cali-cidr-block",
    )
    host = f"{_HOST_ACCEPTED} {accepted}"
    chain(
        "cali-INPUT",
        "-i cali+ -g cali-wl-to-host",
        accepted,
        "-j MARK --set-xmark 0x0/0xf0000",
        "-j cali-from-host-endpoint",
        host,
    )
    chain(
        "cali-OUTPUT",
        accepted,
        "-o cali+ -j RETURN",
        "-j MARK --set-xmark 0x0/0xf0000",
        "-m conntrack ! --ctstate DNAT -j cali-to-host-endpoint",
        host,
    )
    for empty in (
        "cali-cidr-block",
        "cali-from-hep-forward",
        "cali-to-hep-forward",
        "cali-from-host-endpoint",
        "cali-to-host-endpoint",
    ):
        chain(empty)
    chain(
        "cali-wl-to-host",
        "-j cali-from-wl-dispatch",
        '-m comment --comment "Configured DefaultEndpointToHostAction" -j ACCEPT',
    )
    unknown = '-m comment --comment "Unknown interface" -j DROP'
    chain("cali-from-wl-dispatch", *(f"-i {each.device} -g cali-fw-{each.device}" for each in workloads), unknown)
    chain("cali-to-wl-dispatch", *(f"-o {each.device} -g cali-tw-{each.device}" for each in workloads), unknown)
    policy = f"cali-pi-_{_digest(NAME)[:19]}"
    tracked = ("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-m conntrack --ctstate INVALID -j DROP")
    for each in workloads:
        chain(
            f"cali-fw-{each.device}",
            *tracked,
            f"-j MARK --set-xmark 0x0/{_ACCEPT}",
            '-p udp -m comment --comment "Drop VXLAN encapped packets originating in workloads" -m multiport --dports 4789 -j DROP',
            '-p ipencap -m comment --comment "Drop IPinIP encapped packets originating in workloads" -j DROP',
            *_profiles("cali-pro-"),
        )
        chain(
            f"cali-tw-{each.device}",
            *tracked,
            f"-j MARK --set-xmark 0x0/{_ACCEPT}",
            *(_policies(policy) if each.protected else ()),
            *_profiles("cali-pri-"),
        )
    for number, profile in enumerate(_PROFILES):
        for prefix, way in (("cali-pri-", "ingress"), ("cali-pro-", "egress")):
            # The namespace's profile allows all; the service account's says nothing.
            allow = (f'-m comment --comment "Profile {profile} {way}" -j MARK --set-xmark {_ACCEPT}/{_ACCEPT}', returned)
            chain(_profile(prefix, profile), *(allow if number == 0 else ()))
    if any(each.protected for each in workloads):
        bodies = []
        for protocol in ("tcp", "udp"):
            match = f"-m set --match-set {CLIENTS} src -m multiport --dports {PORT}"
            note = f'-m comment --comment "Policy {NAME} ingress"'
            bodies += [f"-p {protocol} {note} {match} -j MARK --set-xmark {_ACCEPT}/{_ACCEPT}", returned]
        chain(policy, *bodies)
    return table


def make(space: Space, workloads: Sequence[Workload], clients: Sequence[str]) -> None:
    """Write sets and chains into a node. Raises MissingError without ipset or iptables-nft."""
    space.run("ipset", "restore", stdin=sets(clients))
    space.run("iptables-nft-restore", "--noflush", stdin=rules(workloads))


def _policies(chain: str) -> tuple[str, ...]:
    return (
        f'-m comment --comment "Start of policies" -j MARK --set-xmark 0x0/{_PASS}',
        f"-m mark --mark 0x0/{_PASS} -j {chain}",
        f'-m comment --comment "Return if policy accepted" -m mark --mark {_ACCEPT}/{_ACCEPT} -j RETURN',
        f'-m comment --comment "Drop if no policies passed packet" -m mark --mark 0x0/{_PASS} -j DROP',
    )


def _profiles(prefix: str) -> tuple[str, ...]:
    calls = []
    for profile in _PROFILES:
        calls.append(f"-j {_profile(prefix, profile)}")
        calls.append(f'-m comment --comment "Return if profile accepted" -m mark --mark {_ACCEPT}/{_ACCEPT} -j RETURN')
    return (*calls, '-m comment --comment "Drop if no profiles matched" -j DROP')


def _profile(prefix: str, name: str) -> str:
    """A profile's chain; names that are too long for a chain are hashed (felix/rules/policy.go, ProfileChainName)."""
    return prefix + (name if len(prefix + name) <= 28 else f"_{_digest(name)[:18]}")
