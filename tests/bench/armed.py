"""What being armed costs a packet that is traced, and one that is not.

The yardstick is an independent ping-pong in C, both ends pinned to one core, over the full path of a Flannel VXLAN lab; every
figure is a ratio of paired, interleaved rounds in random order, with the A/A ratio beside it.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from netpath import lab
from netpath.ebpf.providers import DEVICES
from netpath.ebpf.tracer import Tracer
from netpath.model import nonce as layout
from tests.bench.harness import Ratio, machine, paired, write

COUNT = 1500
"""Round trips a measurement; its median is one value."""
PORT = 9753
CPU = 1


def build() -> Path:
    target = Path(tempfile.mkdtemp()) / "pingpong"
    source = Path(__file__).with_name("pingpong.c")
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(target), str(source)], check=True)
    return target


def ping_pong(program: Path, made: lab.Lab, payload: bytes) -> float:
    """The median round trip in ns."""
    client, server = made.pod("pod1a"), made.pod("pod2a")
    words = [str(program), client.path, server.path, server.address, str(PORT), str(COUNT), str(CPU), payload.hex()]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return statistics.median(float(line.split()[0]) for line in done.stdout.splitlines())


@contextlib.contextmanager
def armed(made: lab.Lab, nonce: int, provider: str, *, stages: bool) -> Iterator[Tracer]:
    """A tracer on devices alone, or with the netfilter hooks of every namespace of the lab as well; a thread empties its buffer."""
    import threading

    with Tracer(hooks=[provider]) as tracer:
        tracer.load()
        paths = [f"/run/netns/{name}" for name in made.namespaces] if stages else []
        tracer.arm(nonce, count=10, tunnel_ports={8472: "vxlan"}, payload=64, listen_in=paths)
        tracer.self_check()
        ended = threading.Event()

        def drain() -> None:
            while not ended.wait(0.02):
                tracer.discard()

        thread = threading.Thread(target=drain)
        thread.start()
        try:
            yield tracer
        finally:
            ended.set()
            thread.join()


def main() -> int:
    program = build()
    nonce = layout.new_nonce()
    marked, foreign = layout.pack(nonce, 1, 64), bytes(64)
    results: list[Ratio] = []
    with lab.running("flannel-vxlan") as made:

        def plain(payload: bytes) -> Callable[[], float]:
            return lambda: ping_pong(program, made, payload)

        def watched(payload: bytes, provider: str, stages: bool) -> Callable[[], float]:
            def measure() -> float:
                with armed(made, nonce, provider, stages=stages):
                    return ping_pong(program, made, payload)

            return measure

        for provider in DEVICES:
            for name, payload in (("traced packets", marked), ("other packets", foreign)):
                for hooks, stages in (("devices", False), ("devices and local hooks", True)):
                    ratio = paired(
                        f"RTT p50, {name}, {hooks}, {provider.name}",
                        ("armed", watched(payload, provider.name, stages)),
                        ("not running", plain(payload)),
                    )
                    results.append(ratio)
                    print(ratio.line(), flush=True)
    target = Path(__file__).with_name("results.json")
    write(target, results)
    print(f"on {machine()}; written to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
