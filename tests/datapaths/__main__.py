"""``python -m tests.datapaths [MODE ...]``: try each datapath and write what was seen into docs/datapaths/README.md.

A mode that this machine can't build keeps its row.
"""

from __future__ import annotations

import sys
import time

from netpath.errors import MissingError
from netpath.lab.modes import MODES
from tests.datapaths import page
from tests.datapaths.cover import cover


def main(words: list[str]) -> int:
    found = page.rows()
    for mode in words or [mode.name for mode in MODES]:
        began = time.monotonic()
        try:
            found[mode] = cover(mode).row()
        except MissingError as error:
            print(f"{mode}: kept as it was: {error}", file=sys.stderr)  # noqa: T201
            continue
        print(f"{mode}: {time.monotonic() - began:.1f} s: {' | '.join(found[mode])}", file=sys.stderr)  # noqa: T201
    page.write(found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
