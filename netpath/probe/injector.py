"""The parent's side of the sender process: start it early, tell it where to send from, send, collect answers."""

from __future__ import annotations

import errno
import select
import socket
import subprocess
import sys
import time
from types import TracebackType
from typing import Any

import msgspec

from netpath.errors import MissingError, NetpathError, UsageError
from netpath.probe.messages import Answer, Enter, Entered, Failed, Preload, Send, Sent, Shot

_REPLY: Any = msgspec.json.Decoder(Entered | Sent | Answer | Failed)


class Injector:
    """A sender process, owned by the `with` block. It has one namespace for its life."""

    REPLY_TIMEOUT = 20.0
    """Seconds to wait for a reply; importing scapy on a slow machine is the longest step."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "netpath.probe.sender", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                process_group=0,  # a terminal's interrupt is for its parent, whose end it notices
            )
        self.answers: list[Answer] = []
        self.netns = 0
        """The namespace entered (inode), where answers are expected."""
        self._target = ""

    def __enter__(self) -> Injector:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the sender. It has nothing to put back: its sockets go with it."""
        self._channel.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def preload(self) -> None:
        """Let the sender import scapy now, while the caller does something else."""
        self._channel.send(msgspec.json.encode(Preload()))

    def enter(self, request: Enter) -> Entered:
        """Enter the namespace and open the sockets.

        Raises UsageError for an address, port or device that is not there, MissingError without the privilege,
        NetpathError when the kernel has no route to the destination or the namespace is gone.
        """
        self._target = request.dst
        self._channel.send(msgspec.json.encode(request))
        reply = self._reply()
        if isinstance(reply, Failed):
            raise self._enter_error(reply, request)
        assert isinstance(reply, Entered)
        self.netns = reply.netns
        return reply

    @property
    def pid(self) -> int:
        """The sender process."""
        return self._process.pid

    def send(self, *sequences: int, size: int | None = None, fresh: bool = False) -> tuple[Shot, ...]:
        """Send probes one right after the other, of another payload `size` than entered or each as the first packet of a `fresh`
        flow if asked for.

        A send that the kernel refused is no exception: its errno is in the result.
        """
        self._channel.send(msgspec.json.encode(Send(sequences, size, fresh)))
        reply = self._reply()
        if isinstance(reply, Failed):
            numbers = f"probe {sequences[0]}" if len(sequences) == 1 else f"probes {sequences[0]} to {sequences[-1]}"
            raise NetpathError(f"{numbers} to {self._target} could not be sent: {reply.text}")
        assert isinstance(reply, Sent)
        return reply.shots

    def poll(self) -> None:
        """Take answers that have come in by now into `answers`."""
        while select.select([self._channel], [], [], 0)[0]:
            message = self._receive()
            if isinstance(message, Answer):
                self.answers.append(message)

    def _reply(self) -> Entered | Sent | Failed:
        deadline = time.monotonic() + self.REPLY_TIMEOUT
        while True:
            if not select.select([self._channel], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise NetpathError(f"the sending process did not answer within {self.REPLY_TIMEOUT:.0f} s")
            message = self._receive()
            if not isinstance(message, Answer):
                return message
            self.answers.append(message)

    def _receive(self) -> Entered | Sent | Answer | Failed:
        raw = self._channel.recv(65536)
        if not raw:
            raise NetpathError(f"the sending process ended unexpectedly (exit code {self._process.wait()})")
        message: Entered | Sent | Answer | Failed = _REPLY.decode(raw)
        return message

    @staticmethod
    def _enter_error(failure: Failed, request: Enter) -> NetpathError:
        where = request.netns_path
        if failure.unroutable:
            return UnreachableError(failure.error, f"no probe can be sent from {where} to {request.dst}: {failure.text}")
        if failure.error in (errno.EPERM, errno.EACCES):
            return MissingError(f"cannot send from {where}: {failure.text}; CAP_SYS_ADMIN and CAP_NET_RAW are needed (run as root)")
        if failure.error == errno.ENOENT:
            return NetpathError(f"the namespace {where} is gone; run again with a source that exists")
        if failure.error == errno.EADDRINUSE:
            return UsageError(f"source port {request.sport} is in use in {where}; choose another with --sport")
        if failure.error == errno.EADDRNOTAVAIL:
            return UsageError(f"{request.src} is not an address of {where}")
        if failure.error == errno.ENODEV:
            return UsageError(f"there is no device {request.bound_device!r} in {where}")
        return NetpathError(f"no probe can be sent from {where} to {request.dst}: {failure.text}")


class UnreachableError(NetpathError):
    """The source's own kernel refuses the destination before a packet exists (no route, blackhole, prohibit)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
