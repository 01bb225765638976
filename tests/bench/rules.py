"""``python -m tests.bench.rules``: what 3,000 services cost ``netpath path --snapshot``, as a whole process from start to end."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from netpath import discover, lab, snapshotfile
from netpath.model.snapshot import Snapshot
from tests.bench.harness import machine, paired, write
from tests.large import LANGUAGES, large, services


def taken(made: lab.Lab) -> Snapshot:
    """The state of the lab's namespaces alone: whatever else the machine holds would count too."""
    inodes = {Path(f"/run/netns/{name}").stat().st_ino for name in made.namespaces}
    return discover.take(only=inodes)


def path(snapshot: Path, source: str, destination: str) -> Callable[[], float]:
    """Seconds of one process that predicts a path, and is right to."""
    words = [sys.executable, "-m", "netpath", "path", "--snapshot", str(snapshot), source, destination, "--udp", "-o", "json"]

    def measure() -> float:
        started = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        elapsed = time.perf_counter() - started
        assert done.returncode == 0 and '"delivered"' in done.stdout, done.stderr
        return elapsed * 1e9

    return measure


def main() -> int:
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with lab.running("flannel-vxlan") as made:
            plain = folder / "plain.json"
            plain.write_bytes(snapshotfile.dump(taken(made)))
            reference = path(plain, f"netns:{made.name}-pod1a", "10.244.2.2:7071")
        for language in LANGUAGES:
            with large(language) as made:
                last = services(made)[-1]
                file = folder / f"{language}.json"
                file.write_bytes(snapshotfile.dump(taken(made)))
                subject = path(file, f"netns:{made.name}-pod1a", f"{last.cluster_ip}:{last.port}")
            ratio = paired(f"path --snapshot, {language}, ns", ("3,000 services", subject), ("no services", reference))
            results.append(ratio)
            print(ratio.line(), flush=True)
    target = Path(__file__).with_name("rules.json")
    write(target, results)
    print(f"on {machine()}; written to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
