"""A receiver of our own: a process in a namespace that echoes UDP, swallows TCP, and counts what it swallows.

`Station` is the parent's side; the process is ``python -m netpath.measure.station FD PATH ADDRESS UDP TCP`` and ends when its
parent does.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType

from netpath.errors import NetpathError
from netpath.setns import enter_path

_PORTS = struct.Struct("!HH")
_COUNTS = struct.Struct("!QQQ")
SINK = b"netpath:"
"""How a datagram begins that is counted and not echoed."""
READY_SECONDS = 20.0
_CHUNK = 1 << 18
_AT_ONCE = 64
"""Datagrams taken before other sockets are looked at."""


@dataclass(frozen=True, slots=True)
class Swallowed:
    """What a station has taken in since it began."""

    datagrams: int
    datagram_bytes: int
    stream_bytes: int


class Station:
    """A receiver in the namespace at `path`, for the length of a `with` block. Raises NetpathError.

    It is bound to `address` (empty: all of IPv4) and the ports asked for; 0: free ones, which are then in `udp` and `tcp`.
    """

    def __init__(self, path: str, address: str, *, udp: int = 0, tcp: int = 0) -> None:
        self._path, self._address = path, address
        self._channel: socket.socket | None = None
        self.udp, self.tcp = udp, tcp

    def __enter__(self) -> Station:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._channel = ours
        with theirs:
            words = [str(theirs.fileno()), self._path, self._address, str(self.udp), str(self.tcp)]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "netpath.measure.station", *words],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                process_group=0,
            )
        ours.settimeout(READY_SECONDS)
        try:
            answer = self._receive(_PORTS.size)
        except BaseException:
            self.close()
            raise
        if answer is None:
            self._process.kill()
            assert self._process.stderr is not None
            lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            self.close()
            raise NetpathError(
                f"the receiver on {self._address or 'a workload'} did not start: {lines[-1] if lines else 'no reason given'}"
            )
        self.udp, self.tcp = _PORTS.unpack(answer)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def swallowed(self) -> Swallowed:
        """What it has counted by now."""
        assert self._channel is not None
        self._channel.sendall(b"?")
        answer = self._receive(_COUNTS.size)
        if answer is None:
            raise NetpathError("the receiver ended unexpectedly")
        return Swallowed(*_COUNTS.unpack(answer))

    def _receive(self, size: int) -> bytes | None:
        assert self._channel is not None
        got = b""
        while len(got) < size:
            try:
                more = self._channel.recv(size - len(got))
            except (TimeoutError, ConnectionError):
                return None
            if not more:
                return None
            got += more
        return got

    def close(self) -> None:
        """End the process; its sockets go with it."""
        assert self._channel is not None
        self._channel.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()


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
