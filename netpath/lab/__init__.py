"""Labs: container datapaths in network namespaces, for trying, teaching and testing.

Nothing of a lab touches the machine's own namespace. Everything a lab makes is on record under /run/netpath/labs before it is
made, and `down` removes it after any end of the process that built it.

    from netpath import lab

    with lab.running("flannel-vxlan") as made:
        made.pod("pod1a").address
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, get_args, get_type_hints

from netpath.errors import MissingError, NetpathError, UsageError
from netpath.lab import netns, state
from netpath.lab.build import Build, Mode
from netpath.lab.modes import MODES
from netpath.lab.options import ECHO_TCP, ECHO_UDP, Options
from netpath.lab.remove import remove

__all__ = [
    "ECHO_TCP",
    "ECHO_UDP",
    "MODES",
    "Lab",
    "LabNode",
    "LabPod",
    "Mode",
    "Options",
    "down",
    "down_all",
    "find",
    "list_labs",
    "parse_options",
    "run_in",
    "running",
    "up",
]


@dataclass(frozen=True, slots=True)
class LabNode:
    """A node of a lab."""

    name: str
    """Short name: ``node1``."""
    netns: str
    """Name under /run/netns."""
    path: str
    addresses: tuple[str, ...]

    @property
    def address(self) -> str:
        """Its first IPv4 address on the underlay."""
        return self.addresses[0]

    @property
    def label(self) -> str:
        """What to call it on netpath's command line: the namespace's name, or the container's."""
        return f"docker:{self.name}" if self.netns.startswith("/") else self.netns

    @property
    def inode(self) -> int:
        """The namespace's inode. Raises OSError if it is gone."""
        return os.stat(self.path).st_ino  # noqa: PTH116


@dataclass(frozen=True, slots=True)
class LabPod(LabNode):
    """A pod or container of a lab."""

    node: str
    """Short name of its node."""


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab that is there."""

    name: str
    mode: str
    status: str
    """``up``, ``building`` (or its builder died) or ``removing``."""
    nodes: tuple[LabNode, ...]
    pods: tuple[LabPod, ...]
    namespaces: tuple[str, ...]
    """Names under /run/netns, the fabric's among them."""
    options: dict[str, Any]
    docker_sockets: tuple[str, ...]
    services: tuple[dict[str, Any], ...]

    def node(self, name: str) -> LabNode:
        """The node of that short name. Raises KeyError."""
        return {node.name: node for node in self.nodes}[name]

    def pod(self, name: str) -> LabPod:
        """The pod of that short name. Raises KeyError."""
        return {pod.name: pod for pod in self.pods}[name]


def _lab(stored: state.State) -> Lab:
    return Lab(
        name=stored.name,
        mode=stored.mode,
        status=stored.status,
        nodes=tuple(LabNode(node.name, node.netns, str(netns.path_of(node.netns)), node.addresses) for node in stored.nodes),
        pods=tuple(LabPod(pod.name, pod.netns, str(netns.path_of(pod.netns)), pod.addresses, pod.node) for pod in stored.pods),
        namespaces=stored.namespaces,
        options=stored.options,
        docker_sockets=stored.docker_sockets,
        services=stored.services,
    )


def _mode(name: str) -> Mode:
    for mode in MODES:
        if mode.name == name:
            return mode
    raise UsageError(f"lab mode {name!r}: one of {', '.join(mode.name for mode in MODES)}")


def _need_root() -> None:
    if os.geteuid() != 0:
        raise MissingError("lab: making and entering network namespaces needs root (try sudo)")


def up(mode: str = MODES[0].name, name: str | None = None, **options: Any) -> Lab:
    """Build a lab; its echo servers answer when this returns. Options: see `Options`.

    Raises UsageError (unknown mode or option, a lab of that name is there), MissingError (not root, a tool is not installed) and
    NetpathError (the kernel refused); whatever was made is removed before an error leaves this function.
    """
    chosen = _mode(mode)
    try:
        wanted = Options(**options)
    except TypeError as error:
        raise UsageError(f"lab: {str(error).partition(') ')[2] or error}") from None
    wanted.check()
    _need_root()
    if name is None:
        name = f"np{secrets.token_hex(2)}"
    with _explained(name), state.locked(name, wait=False):
        if name in state.names():
            raise UsageError(f"lab {name} is there already (netpath lab down {name})")
        pid = os.getpid()
        plan = chosen.plan(
            state.State(name, mode, builder=state.Process(pid, state.start_time(pid) or 0, "builder"), options=asdict(wanted)),
            wanted,
        )
        for space in plan.namespaces:
            if netns.path_of(space).exists():
                raise UsageError(f"lab {name}: a network namespace called {space} is there and not this lab's; choose another name")
        store = state.Store(plan)
        store.update()
        try:
            with contextlib.ExitStack() as stack:
                build = Build(store, wanted, stack)

                def work() -> None:
                    netns.prepare()
                    chosen.build(build)

                netns.in_thread(work, on_interrupt=build.cancel)
            store.update(status="up")
        except BaseException:
            remove(store.state, hard=chosen.hard_end)
            raise
        return _lab(store.state)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Errors of the system as one line: MissingError if it is a privilege, NetpathError otherwise."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        kind = MissingError if error.errno in (errno.EPERM, errno.EACCES) else NetpathError
        raise kind(f"lab {name}: {where}{error.strerror or error}") from error


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``["services=nftables", "nodes=3", "ipv6=yes"]`` as keyword arguments for `up`. Raises UsageError."""
    hints = get_type_hints(Options)
    known: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in hints:
            raise UsageError(f"lab option {pair!r}: NAME=VALUE with NAME one of {', '.join(hints)}")
        kinds = [kind for kind in (get_args(hints[name]) or (hints[name],)) if kind is not type(None)]
        try:
            known[name] = _BOOLEANS[text.lower()] if bool in kinds else int(text) if int in kinds else text
        except (KeyError, ValueError):
            what = "yes or no" if bool in kinds else "a number"
            raise UsageError(f"lab option {name}: {text!r} is not {what}") from None
    return known


_BOOLEANS = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}


def down(name: str) -> None:
    """Remove a lab and wait until it is gone; processes that run in its namespaces are ended.

    Raises UsageError if there is none of that name, NetpathError if something did not go.
    """
    _need_root()
    with _explained(name), state.locked(name, wait=True):
        stored = state.load(name)
        if stored is None:
            # A builder may have died while it wrote its first word.
            state.forget(name)
            raise UsageError(f"no lab called {name!r}" + (f"; there are {', '.join(state.names())}" if state.names() else ""))
        remove(stored, hard=any(mode.hard_end for mode in MODES if mode.name == stored.mode))


def down_all() -> tuple[str, ...]:
    """Remove every lab of this machine; their names."""
    _need_root()
    gone = []
    for name in state.names():
        with contextlib.suppress(UsageError):
            down(name)
            gone.append(name)
    for name in state.remnants():
        with contextlib.suppress(UsageError), state.locked(name, wait=False):
            if state.load(name) is None:
                state.forget(name)
    return tuple(gone)


def list_labs() -> tuple[Lab, ...]:
    """The labs of this machine, by name."""
    found = (state.load(name) for name in state.names())
    return tuple(_lab(stored) for stored in found if stored is not None)


def find(target: str) -> LabNode:
    """The node or pod that ``pod1a``, ``LAB/pod1a`` or the namespace's own name stands for. UsageError names the candidates."""
    wanted_lab, slash, short = target.rpartition("/")
    candidates = [
        (lab, member)
        for lab in list_labs()
        for member in (*lab.nodes, *lab.pods)
        if (member.name == short and wanted_lab in ("", lab.name)) or (not slash and member.netns == target)
    ]
    if len(candidates) == 1:
        return candidates[0][1]
    if candidates:
        raise UsageError(f"{target}: in several labs: {', '.join(f'{lab.name}/{member.name}' for lab, member in candidates)}")
    labs = list_labs()
    if wanted_lab and wanted_lab not in {lab.name for lab in labs}:
        raise UsageError(f"no lab called {wanted_lab!r}")
    known = [f"{lab.name}/{member.name}" for lab in labs if wanted_lab in ("", lab.name) for member in (*lab.nodes, *lab.pods)]
    raise UsageError(f"no node or pod called {target!r}; there are {', '.join(known[:12]) or 'no labs (netpath lab up)'}")


def run_in(target: str, argv: Sequence[str]) -> int:
    """Run a program in a node or pod, on this terminal, and give its exit code (128 + N if signal N ended it, as a shell does).

    127 or 126 if it can't be found or run. Raises UsageError for an unknown target.
    """
    if not argv:
        raise UsageError("lab exec: no command given")
    place = find(target)
    _need_root()
    from netpath.lab.execute import execute

    return execute(place.path, tuple(argv))


@contextmanager
def running(mode: str = MODES[0].name, name: str | None = None, **options: Any) -> Iterator[Lab]:
    """A lab for the length of a block."""
    made = up(mode, name, **options)
    try:
        yield made
    finally:
        with contextlib.suppress(UsageError):
            down(made.name)
