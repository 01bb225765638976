"""The baseline's receiver: a process with a UDP echo and a TCP listener on a node's own address.

`Station` is the parent's side; the process is ``python -m netpath.measure.station FD`` and ends when its parent does.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import subprocess
import sys
from types import TracebackType

from netpath.errors import NetpathError
from netpath.setns import enter_path

_PORTS = struct.Struct("!HH")
READY_SECONDS = 20.0


class Station:
    """A receiver in the namespace at `path`, bound to `address`, for the length of a `with` block. Raises NetpathError."""

    def __init__(self, path: str, address: str) -> None:
        self._path, self._address = path, address
        self._channel: socket.socket | None = None
        self.udp = self.tcp = 0
        """Its ports."""

    def __enter__(self) -> Station:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._channel = ours
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "netpath.measure.station", str(theirs.fileno()), self._path, self._address],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                process_group=0,
            )
        ours.settimeout(READY_SECONDS)
        try:
            answer = ours.recv(_PORTS.size)
        except TimeoutError:
            answer = b""
        except BaseException:
            self.close()
            raise
        if len(answer) != _PORTS.size:
            self._process.kill()
            assert self._process.stderr is not None
            lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            self.close()
            raise NetpathError(
                f"the baseline's receiver on {self._address} did not start: {lines[-1] if lines else 'no reason given'}"
            )
        self.udp, self.tcp = _PORTS.unpack(answer)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

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


def serve(channel: socket.socket, address: str) -> None:
    """Echo UDP, accept and close TCP, until the channel closes."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.socket(family, socket.SOCK_DGRAM) as udp,
        socket.socket(family, socket.SOCK_STREAM) as tcp,
        selectors.DefaultSelector() as selector,
    ):
        for sock in (udp, tcp):
            sock.bind((address, 0))
            sock.setblocking(False)
        tcp.listen(128)
        for sock in (channel, udp, tcp):
            selector.register(sock, selectors.EVENT_READ)
        channel.sendall(_PORTS.pack(udp.getsockname()[1], tcp.getsockname()[1]))
        while True:
            for key, _ in selector.select():
                if key.fileobj is channel:
                    return
                with contextlib.suppress(OSError):
                    if key.fileobj is udp:
                        data, client = udp.recvfrom(65535)
                        udp.sendto(data, client)
                    else:
                        tcp.accept()[0].close()


def main() -> None:
    enter_path(sys.argv[2])
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[3])


if __name__ == "__main__":
    main()
