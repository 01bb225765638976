"""By hand: the guests' selection on this kernel, or any tests in one guest.

python -m tests.vm native [PYTEST OPTION]...
python -m tests.vm 6.1 [PYTEST ARGUMENT]...     (none: the selection of that kernel)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.vm import compatibility, facts, harness
from tests.vm.harness import run
from tests.vm.kernels import GuestUnavailable, fetch
from tests.vm.reporter import SHARE
from tests.vm.selection import SELECTIONS

_SECONDS = 2400.0


def native(arguments: list[str]) -> int:
    tests = dict.fromkeys(test for selection in SELECTIONS for test in selection.tests)
    left_out = sorted({word for selection in SELECTIONS for word in selection.without})
    command = [sys.executable, "-m", "pytest", *tests, "-k", " and ".join(f"not {word}" for word in left_out), *arguments]
    return subprocess.run(command, check=False).returncode


def guest(series: str, arguments: list[str]) -> int:
    (selection,) = [each for each in SELECTIONS if each.series == series]
    with TemporaryDirectory() as share:
        named = any(not word.startswith("-") for word in arguments)
        chosen = arguments if named else [*selection.arguments, *arguments]
        outcome = run(fetch(series), chosen, Path(share), seconds=_SECONDS)
    sys.stdout.write(outcome.console)
    return 2 if outcome.exit_code is None else outcome.exit_code


def record(columns: list[str]) -> int:
    for name in columns or ["native", *(each.series for each in SELECTIONS)]:
        with TemporaryDirectory() as scratch:
            share = Path(scratch)
            if name == "native":
                os.environ[SHARE] = scratch
                native(["-q", "-p", "tests.vm.reporter"])
                told: dict[str, Any] | None = facts.facts()
            else:
                (selection,) = [each for each in SELECTIONS if each.series == name]
                outcome = run(fetch(name), selection.arguments, share, seconds=_SECONDS)
                told = harness.facts(share)
                if told is None:
                    sys.stdout.write(outcome.console)
                    return 1
            assert told is not None
            release = told.pop("kernel")
            tests = harness.verdicts(harness.documents(share))
            where = "native" if name == "native" else "guest"
            compatibility.save(compatibility.column(release), {**told, "where": where, "tests": dict(sorted(tests.items()))})
    compatibility.PAGE.write_text(compatibility.render(compatibility.load()))
    return 0


def main() -> int:
    words = sys.argv[1:]
    if words and words[0] == "record":
        return record(words[1:])
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
