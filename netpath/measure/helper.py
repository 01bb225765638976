"""Small processes of our own in other namespaces, which end when the one that started them does.

A process because a network namespace is entered for good. Each is ``python -m MODULE FD ...`` with one end of a socket pair as FD.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from netpath.errors import NetpathError

READY_SECONDS = 20.0
END_SECONDS = 2.0


class Helper:
    """A process for the length of a `with` block, and the channel to it."""

    def __init__(self, module: str, words: Sequence[str], title: str) -> None:
        self._module, self._words, self._title = module, words, title
        self._channel: socket.socket | None = None

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._channel = ours
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(theirs.fileno()), *self._words],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                process_group=0,
            )
        ours.settimeout(READY_SECONDS)
        try:
            ready = self._ready()
        except BaseException:
            self.close()
            raise
        if not ready:
            raise NetpathError(f"{self._title} did not start: {self._last_words()}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ready(self) -> bool:
        """Wait for the process to say that it is there; False when it ended instead."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def channel(self) -> socket.socket:
        assert self._channel is not None
        return self._channel

    def receive(self, size: int) -> bytes | None:
        """So many bytes; None when the process ended, or says nothing in time."""
        got = b""
        while len(got) < size:
            try:
                more = self.channel.recv(size - len(got))
            except (TimeoutError, ConnectionError):
                return None
            if not more:
                return None
            got += more
        return got

    def _last_words(self) -> str:
        """Ends it; the last line of what it said went wrong."""
        self._process.kill()
        assert self._process.stderr is not None
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        self.close()
        return lines[-1] if lines else "no reason given"

    def close(self) -> None:
        """End the process; its sockets go with it."""
        self.channel.close()
        try:
            self._process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
