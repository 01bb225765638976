"""A receiver of our own: a process in a namespace that echoes UDP, swallows TCP, and counts what it swallows.

`Station` is the parent's side; the process is ``python -m netpath.measure.station FD PATH ADDRESS UDP TCP`` and ends when its
parent does.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import sys
from dataclasses import dataclass

from netpath.errors import NetpathError
from netpath.measure.helper import Helper
from netpath.setns import enter_path

_PORTS = struct.Struct("!HH")
_COUNTS = struct.Struct("!QQQ")
SINK = b"netpath:"
"""How a datagram begins that is counted and not echoed."""
_CHUNK = 1 << 18
_AT_ONCE = 64
"""Datagrams taken before other sockets are looked at."""


@dataclass(frozen=True, slots=True)
class Swallowed:
    """What a station has taken in since it began."""

    datagrams: int
    datagram_bytes: int
    stream_bytes: int


class Station(Helper):
    """A receiver in the namespace at `path`, for the length of a `with` block. Raises NetpathError.

    It is bound to `address` (empty: all of IPv4) and the ports asked for; 0: free ones, which are then in `udp` and `tcp`.
    """

    def __init__(self, path: str, address: str, *, udp: int = 0, tcp: int = 0) -> None:
        super().__init__(
            "netpath.measure.station", [path, address, str(udp), str(tcp)], f"the receiver on {address or 'a workload'}"
        )
        self.udp, self.tcp = udp, tcp

    def _ready(self) -> bool:
        answer = self.receive(_PORTS.size)
        if answer is not None:
            self.udp, self.tcp = _PORTS.unpack(answer)
        return answer is not None

    def swallowed(self) -> Swallowed:
        """What it has counted by now. Raises NetpathError when it has ended."""
        try:
            self.channel.sendall(b"?")
            answer = self.receive(_COUNTS.size)
        except ConnectionError:
            answer = None
        if answer is None:
            raise NetpathError("the receiver ended unexpectedly")
        return Swallowed(*_COUNTS.unpack(answer))


class Server:
    """The process's own side."""

    def __init__(self, channel: socket.socket, address: str, udp: int, tcp: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.channel = channel
        self.selector = selectors.DefaultSelector()
        self.datagrams = self.datagram_bytes = self.stream_bytes = 0
        self.udp = socket.socket(family, socket.SOCK_DGRAM)
        self.tcp = socket.socket(family, socket.SOCK_STREAM)
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.buffer = bytearray(_CHUNK)
        for sock, port in ((self.udp, udp), (self.tcp, tcp)):
            sock.bind((address, port))
            sock.setblocking(False)
        self.tcp.listen(128)
        for sock in (channel, self.udp, self.tcp):
            self.selector.register(sock, selectors.EVENT_READ)
        channel.sendall(_PORTS.pack(self.udp.getsockname()[1], self.tcp.getsockname()[1]))

    def serve(self) -> None:
        """Until the channel closes."""
        while True:
            for key, _ in self.selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self.channel:
                    if not self.channel.recv(1):
                        return
                    self.channel.sendall(_COUNTS.pack(self.datagrams, self.datagram_bytes, self.stream_bytes))
                elif sock is self.udp:
                    self._datagrams()
                elif sock is self.tcp:
                    with contextlib.suppress(OSError):
                        client = self.tcp.accept()[0]
                        client.setblocking(False)
                        self.selector.register(client, selectors.EVENT_READ)
                else:
                    self._stream(sock)

    def _datagrams(self) -> None:
        with contextlib.suppress(OSError):
            for _ in range(_AT_ONCE):
                data, client = self.udp.recvfrom(65535)
                if data.startswith(SINK):
                    self.datagrams += 1
                    self.datagram_bytes += len(data)
                else:
                    self.udp.sendto(data, client)

    def _stream(self, sock: socket.socket) -> None:
        try:
            got = sock.recv_into(self.buffer)
        except BlockingIOError:
            return
        except OSError:
            got = 0
        self.stream_bytes += got
        if not got:
            self.selector.unregister(sock)
            sock.close()


def main() -> None:
    descriptor, path, address, udp, tcp = sys.argv[1:]
    enter_path(path)
    with contextlib.suppress(ConnectionError):  # the parent is gone
        Server(socket.socket(fileno=int(descriptor)), address, int(udp), int(tcp)).serve()


if __name__ == "__main__":
    main()
