"""Runs on this kernel what the guests run on theirs: ``python -m tests.vm``."""

from __future__ import annotations

import subprocess
import sys

from tests.vm.selection import SELECTIONS


def main() -> int:
    tests = dict.fromkeys(test for selection in SELECTIONS for test in selection.tests)
    left_out = sorted({word for selection in SELECTIONS for word in selection.without})
    command = [sys.executable, "-m", "pytest", *tests, "-k", " and ".join(f"not {word}" for word in left_out), *sys.argv[1:]]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
