"""Real BIRDs inside a lab: a routing daemon on every node that speaks BGP, as calico-node's does.

Debian's BIRD 2 is unpacked, never installed (guests.py). Each daemon runs in its node's network namespace, in the foreground, with
its configuration, control socket, pid and log below the lab's own folder. Configuration after confd's templates for calico-node
(projectcalico/node, etc/calico/confd/templates/bird.cfg.template, bird_aggr.cfg.template), in BIRD 2's words.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from netpath.errors import NetpathError
from netpath.lab import guests, netns, state
from netpath.lab.build import Build
from netpath.lab.kernel import Space

PACKAGES = ("bird2", "libssh-gcrypt-4")
"""BIRD, and the library of its RPKI transport, which few machines have."""
AS_NUMBER = 64512
"""Calico's default for the cluster."""

_READY_S = 30.0
"""How long the daemons may take until every block is in every kernel."""
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Speaker:
    """A node's BGP daemon. `peers` are the other ends of its sessions; those in `clients` are told what it learns (RFC 4456)."""

    node: str
    address: str
    block: ipaddress.IPv4Network
    peers: tuple[str, ...]
    clients: tuple[str, ...] = ()


def folder(lab: str) -> Path:
    """Where the daemons' files are."""
    return state.DIRECTORY / lab


def configuration(speaker: Speaker, *, pools: str, log: Path) -> str:
    """A bird.conf: the node's own block as a blackhole, told to all peers; theirs put into the kernel.

    Only blocks of the `pools` are told. Graceful restart, which Calico turns on, is off: a daemon that ends takes its routes along.
    """
    pool = ipaddress.IPv4Network(pools)
    length = speaker.block.prefixlen
    lines = [
        f'log "{log}" {{ info, warning, error, fatal, bug, auth }};',
        f"router id {speaker.address};",
        "protocol device { scan time 2; }",
        f"protocol static {{ ipv4; route {speaker.block} blackhole; }}",
        f"filter calico_export_to_bgp_peers {{ if net ~ [ {pool}{{{length},{length}}} ] then accept; reject; }}",
        # Not learnt: the pods' own /32s are felix's. Metric 0 is what Calico's BIRD 1 leaves.
        "protocol kernel { metric 0; scan time 2; ipv4 { import none; export all; }; merge paths on; }",
        "template bgp calico {",
        f"  local {speaker.address} as {AS_NUMBER};",
        "  direct;",
        "  connect delay time 0; connect retry time 1; error wait time 1,2; hold time 90;",
        "  graceful restart off;",
        "  ipv4 { import all; export filter calico_export_to_bgp_peers; };",
        "}",
    ]
    for peer in speaker.peers:
        kind = "Node" if peer in speaker.clients else "Mesh"
        reflect = f" rr client; rr cluster id {speaker.address};" if peer in speaker.clients else ""
        lines.append(f"protocol bgp {kind}_{peer.replace('.', '_')} from calico {{ neighbor {peer} as {AS_NUMBER};{reflect} }}")
    return "\n".join((*lines, ""))


def mesh(
    addresses: Mapping[str, str], blocks: Mapping[str, ipaddress.IPv4Network], reflector: str | None = None
) -> tuple[Speaker, ...]:
    """Every node peers with every other or, with a `reflector`, with that node only. Nodes' names to addresses and to blocks."""
    made = []
    for node, address in addresses.items():
        others = tuple(other for name, other in addresses.items() if name != node)
        if reflector is None:
            made.append(Speaker(node, address, blocks[node], others))
        elif node == reflector:
            made.append(Speaker(node, address, blocks[node], others, clients=others))
        else:
            made.append(Speaker(node, address, blocks[node], (addresses[reflector],)))
    return tuple(made)


def start(build: Build, speakers: Sequence[Speaker]) -> None:
    """Start a daemon on each of these nodes; every node's kernel has a route to every block when this returns.

    Raises MissingError if BIRD can't be fetched, NetpathError if a daemon ends or the routes don't come.
    """
    root = guests.fetch("bird", PACKAGES)
    folder(build.state.name).mkdir(parents=True)
    running = {speaker.node: _start(build, root, speaker) for speaker in speakers}
    wanted = frozenset(str(speaker.block) for speaker in speakers)
    deadline = time.monotonic() + _READY_S
    for node, process in running.items():
        space = build.space(node)
        while missing := wanted - destinations(space):
            build.check()
            if process.poll() is not None or time.monotonic() > deadline:
                raise NetpathError(f"lab: {space.name}: {_why(build, node, process, missing)}")
            time.sleep(_POLL_S)
    for process in running.values():
        # They outlive us.
        process.returncode = 0


def destinations(space: Space) -> frozenset[str]:
    """The destinations in a namespace's main table, as prefixes."""
    netns.enter(space.descriptor)
    lines = Path("/proc/thread-self/net/route").read_text().splitlines()[1:]
    found = set()
    for fields in (line.split() for line in lines):
        # Both as the machine keeps them in memory (net/ipv4/fib_trie.c, fib_route_seq_show).
        address, mask = (int.from_bytes(int(fields[column], 16).to_bytes(4, sys.byteorder), "big") for column in (1, 7))
        found.add(str(ipaddress.IPv4Network((address, mask.bit_count()))))
    return frozenset(found)


def _start(build: Build, root: Path, speaker: Speaker) -> subprocess.Popen[bytes]:
    """Start one daemon. On record before it is told what to do."""
    lab = build.state
    node = next(node for node in lab.nodes if node.name == speaker.node)
    place = folder(lab.name) / speaker.node
    place.mkdir()
    log = place / "bird.log"
    config = place / "bird.conf"
    config.write_text(configuration(speaker, pools=build.options.pod_network, log=log))
    program = str(guests.program(root, "bird"))
    request = {
        "netns": str(netns.path_of(node.netns)),
        "keep": str(folder(lab.name)),
        "hide": [],
        "argv": [program, "-f", "-c", str(config), "-s", str(place / "bird.ctl"), "-P", str(place / "bird.pid")],
        "env": {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LD_LIBRARY_PATH": guests.libraries(root)},
        "log": str(log),
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("confine.py")), lab.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=output,
            cwd="/",
            start_new_session=True,
        )
    began = state.start_time(process.pid)
    if process.stdin is None or began is None:
        raise NetpathError(f"lab: {node.netns}: BIRD ended at once")
    build.store.update(processes=(*build.state.processes, state.Process(process.pid, began, f"bird {node.name}")))
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.close()
    return process


def _why(build: Build, node: str, process: subprocess.Popen[bytes], missing: Collection[str]) -> str:
    lines = (folder(build.state.name) / node / "bird.log").read_text(errors="replace").split("\n")
    said = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    if process.returncode is not None:
        return f"BIRD ended: {said}"
    return f"no route to {', '.join(sorted(missing))} from BIRD within {_READY_S:.0f} s: {said}"
