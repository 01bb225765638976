"""Runs one trace and writes each phase, as it begins, to the descriptor it is given: ``kill_driver.py FD SRC DST``."""

from __future__ import annotations

import os
import sys

from netpath.trace.request import TraceRequest
from netpath.trace.session import run


def main() -> None:
    pipe, source, destination = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    request = TraceRequest(source, destination, "udp", count=50, interval=0.01, timeout=5.0, round_trip=True)
    run(request, progress=lambda text: void(os.write(pipe, f"{text}\n".encode())))


def void(written: int) -> None:
    pass


if __name__ == "__main__":
    main()
