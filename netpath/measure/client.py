"""Sends streams and pings from inside a namespace: ``python -m netpath.measure.client REQUEST``, JSON in, JSON out.

A process of its own because a network namespace is entered for good. Started by `netpath.measure.load`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from netpath.measure.station import SINK
from netpath.setns import enter_path

WARM_UP = 50
TIMEOUT = 2.0
_CHUNK = 1 << 18
_BATCH = 32
"""Datagrams between two looks at the clock."""


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


def main() -> None:
    request = json.loads(sys.argv[1])
    if request["cpu"] is not None:
        os.sched_setaffinity(0, {request["cpu"]})
    enter_path(request["netns"])
    result = pings(request) if request["what"] == "pings" else stream(request)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
