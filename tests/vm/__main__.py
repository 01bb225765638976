"""By hand: the guests' selection on this kernel, or any tests in one guest.

python -m tests.vm native [PYTEST OPTION]...
python -m tests.vm 6.1 [PYTEST ARGUMENT]...     (none: the selection of that kernel)
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.vm.harness import run
from tests.vm.kernels import GuestUnavailable, fetch
from tests.vm.selection import SELECTIONS

_SECONDS = 1800.0


def native(arguments: list[str]) -> int:
    tests = dict.fromkeys(test for selection in SELECTIONS for test in selection.tests)
    left_out = sorted({word for selection in SELECTIONS for word in selection.without})
    command = [sys.executable, "-m", "pytest", *tests, "-k", " and ".join(f"not {word}" for word in left_out), *arguments]
    return subprocess.run(command, check=False).returncode


def guest(series: str, arguments: list[str]) -> int:
    (selection,) = [each for each in SELECTIONS if each.series == series]
    with TemporaryDirectory() as share:
        outcome = run(fetch(series), arguments or selection.arguments, Path(share), seconds=_SECONDS)
    sys.stdout.write(outcome.console)
    return 2 if outcome.exit_code is None else outcome.exit_code


def main() -> int:
    words = sys.argv[1:]
    if words and words[0] == "native":
        return native(words[1:])
    if words and words[0] in {each.series for each in SELECTIONS}:
        try:
            return guest(words[0], words[1:])
        except GuestUnavailable as why:
            sys.exit(f"no guest: {why}")
    sys.exit(__doc__)


if __name__ == "__main__":
    sys.exit(main())
