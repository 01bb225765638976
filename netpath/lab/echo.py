"""The echo server of a lab's pods: one process, sockets in every pod's namespace.

Run as ``python -I echo.py LAB``, stdlib only; the lab's name is there for ps. It reads one JSON line from stdin, the list of
namespaces to serve; opens the sockets; answers ``ready`` on stdout; and serves until it is ended. If stdin closes before the
line came (the builder died), it ends.

UDP: every datagram goes back as it came, from the address it was sent to. TCP: everything goes back, until the client closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
from typing import Any

CLONE_NEWNET = 0x40000000
_CHUNK = 65536
_HIGH_WATER = 4 * _CHUNK
"""Bytes kept for a client that does not read; beyond that we stop reading from it."""

_IP_PKTINFO = 8
_IPV6_RECVPKTINFO = 49
_IPV6_PKTINFO = 50


class Connection:
    """A TCP client."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server, self.sock = server, sock
        self.waiting = bytearray()
        self.ended = False

    def ready(self, mask: int) -> None:
        try:
            if mask & selectors.EVENT_READ and len(self.waiting) < _HIGH_WATER:
                data = self.sock.recv(_CHUNK)
                self.ended = not data
                self.waiting += data
            if self.waiting:
                del self.waiting[: self.sock.send(self.waiting)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
            return
        if self.ended and not self.waiting:
            self.close()
            return
        wanted = selectors.EVENT_WRITE if self.waiting else 0
        if not self.ended and len(self.waiting) < _HIGH_WATER:
            wanted |= selectors.EVENT_READ
        self.server.selector.modify(self.sock, wanted, self.ready)

    def close(self) -> None:
        self.server.selector.unregister(self.sock)
        self.sock.close()


class Server:
    """All sockets of all pods, in one loop."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()

    def udp(self, family: socket.AddressFamily, port: int, host: str = "") -> None:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        sock.bind((host, port))

        def ready(_mask: int) -> None:
            # A bounded burst, so that a flood to one pod does not starve the others.
            for _ in range(64):
                try:
                    data, ancillary, _flags, client = sock.recvmsg(_CHUNK, 256)
                except (BlockingIOError, InterruptedError):
                    return
                except OSError:
                    # An ICMP error about an earlier answer.
                    continue
                with contextlib.suppress(OSError):
                    sock.sendmsg([data], answer_from(ancillary), 0, client)

        self.selector.register(sock, selectors.EVENT_READ, ready)

    def tcp(self, family: socket.AddressFamily, port: int, host: str = "") -> None:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(128)

        def ready(_mask: int) -> None:
            try:
                sock, _client = listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            self.selector.register(sock, selectors.EVENT_READ, Connection(self, sock).ready)

        self.selector.register(listener, selectors.EVENT_READ, ready)

    def serve(self) -> None:
        while True:
            for key, mask in self.selector.select():
                key.data(mask)


def answer_from(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """The control message that makes an answer leave with the address the question was sent to (ip(7), ipv6(7))."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            _index, _local, destination = struct.unpack("=I4s4s", data[:12])
            # Interface 0: the way back is the routing table's choice. ipi_spec_dst is the source.
            return [(level, kind, struct.pack("=I4s4s", 0, destination, bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO:
            address, index = struct.unpack("=16sI", data[:20])
            # A link-local address means nothing without its interface.
            return [(level, kind, struct.pack("=16sI", address, index if address[:2] == b"\xfe\x80" else 0))]
    return []


def main() -> None:
    line = sys.stdin.readline()
    if not line:
        return
    request: list[dict[str, Any]] = json.loads(line)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    server = Server()

    def enter(descriptor: int) -> None:
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    for place in request:
        descriptor = os.open(place["netns"], os.O_RDONLY)
        enter(descriptor)
        os.close(descriptor)
        families = [socket.AF_INET, socket.AF_INET6] if os.path.exists("/proc/net/if_inet6") else [socket.AF_INET]  # noqa: PTH110
        for family in families:
            for port in place["udp"]:
                server.udp(family, port)
            for port in place["tcp"]:
                server.tcp(family, port)
    # Back where we came from: a process must not look like a workload of the last pod.
    enter(home)
    os.close(home)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    server.serve()


if __name__ == "__main__":
    main()
