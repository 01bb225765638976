"""Sends streams and pings from inside a namespace, as often as it is asked to.

`Sender` is the parent's side; the process is ``python -m netpath.measure.client FD PATH``, answers each line of JSON with one, and
ends when its parent does. It stays because to start it anew takes longer than most of what it is asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netpath.errors import NetpathError
from netpath.measure.helper import READY_SECONDS, Helper
from netpath.measure.station import SINK
from netpath.setns import enter_path

WARM_UP = 50
TIMEOUT = 2.0
_CHUNK = 1 << 18
_BATCH = 32
"""Datagrams between two looks at the clock."""
_READY = b"\n"


class Sender(Helper):
    """A sender in the namespace at `path`, for the length of a `with` block. Raises NetpathError."""

    def __init__(self, path: str) -> None:
        super().__init__("netpath.measure.client", [path], "the load's sender")
        self.path = path

    def _ready(self) -> bool:
        return self.receive(len(_READY)) == _READY

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What came of a request that takes at most `seconds`, if it says so, and else a while. Raises NetpathError with its reason."""
        self.channel.settimeout(READY_SECONDS + request.get("seconds", 0.0))
        answer = b""
        try:
            self.channel.sendall(json.dumps(request).encode() + b"\n")
            while not answer.endswith(b"\n"):
                more = self.channel.recv(1 << 16)
                if not more:
                    break
                answer += more
        except (TimeoutError, ConnectionError):
            answer = b""
        if not answer.endswith(b"\n"):
            raise NetpathError("the load's sender ended unexpectedly")
        result: dict[str, Any] = json.loads(answer)
        if "error" in result:
            raise NetpathError(f"the load's sender to {request['address']}:{request['port']} failed: {result['error']}")
        return result


def busy_ns() -> int:
    """CPU time that all cores have spent on anything since boot: /proc/stat, but for idle and iowait; counted in ticks."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    # user nice system idle iowait irq softirq steal guest guest_nice; guests are in user and nice already.
    ticks = sum(fields[:3]) + sum(fields[5:7])
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def pings(request: dict[str, Any]) -> dict[str, Any]:
    """UDP round trips one after the other, in ns; one that is not answered is left out and counted."""
    payload = bytes(request["size"])
    times: list[int] = []
    lost = 0
    with _socket(request, socket.SOCK_DGRAM) as sock:
        for number in range(-WARM_UP, request["count"]):
            before = time.perf_counter_ns()
            try:
                sock.send(payload)
                sock.recv(65535)
            except (TimeoutError, ConnectionError):
                lost += 1
                if lost > 3:
                    break
                continue
            if number >= 0:
                times.append(time.perf_counter_ns() - before)
    return {"times_ns": times, "lost": lost}


def stream(request: dict[str, Any]) -> dict[str, Any]:
    """A stream for so many seconds, at most at `rate` datagrams a second if that is given."""
    tcp = request["protocol"] == "tcp"
    payload = bytes(_CHUNK) if tcp else SINK + bytes(max(0, request["size"] - len(SINK)))
    rate = request.get("rate")
    sent = 0
    with _socket(request, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
        busy, began = busy_ns(), time.perf_counter()
        end = began + request["seconds"]
        while (now := time.perf_counter()) < end:
            if tcp:
                sent += sock.send(payload)
                continue
            for _ in range(_BATCH):
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    sock.send(payload)
                    sent += 1
            if rate is not None:
                time.sleep(max(0.0, began + sent / rate - now))
        elapsed, busy = time.perf_counter() - began, busy_ns() - busy
    return {"sent": sent, "seconds": elapsed, "busy_ns": busy}


def _socket(request: dict[str, Any], kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in request["address"] else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.settimeout(TIMEOUT)
    sock.connect((request["address"], request["port"]))
    return sock


def answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        os.sched_setaffinity(0, {request["cpu"]})
        return pings(request) if request["what"] == "pings" else stream(request)
    except OSError as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    descriptor, path = sys.argv[1:]
    enter_path(path)
    with contextlib.suppress(ConnectionError), socket.socket(fileno=int(descriptor)) as channel, channel.makefile("rw") as lines:
        lines.write(_READY.decode())
        lines.flush()
        for line in lines:  # until the parent is gone
            lines.write(json.dumps(answer(json.loads(line))) + "\n")
            lines.flush()


if __name__ == "__main__":
    main()
