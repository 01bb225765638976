"""tcpdump on all devices of several namespaces at once: the independent witness of what a trace claims."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path as File

from netpath.model import nonce
from netpath.model.path import Path

Sighting = tuple[int, int, str, int]
"""(namespace inode, ifindex, tx or rx, bytes of the outermost IP packet)."""

FIRST = nonce.pack(1, 1, 64)[8:]
"""Bytes that the first probe of a run, of the default size, has in its payload: all but the random nonce."""

_OUTGOING = 4
"""PACKET_OUTGOING."""
_RECORD = struct.Struct("=IIII")
_COOKED = struct.Struct(">HHIHBB8s")
"""LINKTYPE_LINUX_SLL2."""
_NANOSECONDS = 0xA1B23C4D


@dataclass
class Captures:
    """What was captured, readable once the block has ended."""

    seen: list[tuple[int, Sighting, bytes]] = field(default_factory=list)
    """(time in ns, where and how long, the packet from its outermost IP header on)."""

    def of(self, mark: bytes) -> list[Sighting]:
        """Where packets with these bytes in them were seen, in order of time."""
        return [where for _, where, packet in sorted(self.seen, key=lambda entry: entry[0]) if mark in packet]


@contextmanager
def captured(spaces: Mapping[int, str], folder: File) -> Iterator[Captures]:
    """Capture in the namespaces (inode: path) while the block runs."""
    result = Captures()
    files: dict[int, File] = {}
    with ExitStack() as stack:
        processes = []
        for inode, path in spaces.items():
            files[inode] = File(tempfile.mkstemp(dir=folder, suffix=".pcap")[1])
            words = ["nsenter", f"--net={path}", "tcpdump", "-i", "any", "-nn", "-U", "--immediate-mode", "-B", "16384", "-s", "0"]
            words += ["-Z", "root", "-y", "LINUX_SLL2", "--time-stamp-precision=nano", "-w", str(files[inode]), "ip", "or", "ip6"]
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            stack.callback(process.wait, 10)
            stack.callback(process.terminate)
            processes.append(process)
        for process in processes:
            assert process.stderr is not None
            while "listening on" not in (line := process.stderr.readline()):
                assert line, "tcpdump ended"
        yield result
        for process in processes:
            process.terminate()
        for process in processes:
            assert process.stderr is not None
            report = process.stderr.read()
            assert "0 packets dropped by kernel" in report, report
    for inode, name in files.items():
        result.seen += [(time, (inode, *where), packet) for time, where, packet in _read(name.read_bytes())]


def _read(data: bytes) -> Iterator[tuple[int, tuple[int, str, int], bytes]]:
    magic = struct.unpack_from("=I", data)[0] if data else None
    assert magic == _NANOSECONDS, magic
    at = 24
    while at < len(data):
        seconds, nanoseconds, size, _ = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        _, _, ifindex, _, kind, _, _ = _COOKED.unpack_from(data, at)
        packet = data[at + _COOKED.size : at + size]
        at += size
        if not packet:
            continue
        length = struct.unpack_from(">H", packet, 2)[0] if packet[0] >> 4 == 4 else 40 + struct.unpack_from(">H", packet, 4)[0]
        yield seconds * 10**9 + nanoseconds, (ifindex, "tx" if kind == _OUTGOING else "rx", length), packet


def claimed(*paths: Path) -> list[Sighting]:
    """What paths, one after the other, say that a capture must have seen.

    libpcap shows a packet on the loopback device once, as received (pcap-linux.c, linux_check_direction).
    """
    return [
        (hop.netns.inode, hop.device.ifindex, hop.direction, hop.ip_length or 0)
        for path in paths
        for hop in path.hops
        if (hop.device.kind, hop.direction) != ("loopback", "tx")
    ]
