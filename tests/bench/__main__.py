"""``python -m tests.bench [NAME ...]``: the benchmarks by name, all of them without one. Each writes results-NAME.json beside this file."""

from __future__ import annotations

import importlib
import sys

NAMES = ("observer", "armed", "residual", "closure", "known", "ratio", "compare")


def main(words: list[str]) -> int:
    unknown = [word for word in words if word not in NAMES]
    if unknown:
        sys.stderr.write(f"no benchmark is called {unknown[0]!r}; there are {', '.join(NAMES)}\n")
        return 2
    for name in words or NAMES:
        code: int = importlib.import_module(f"tests.bench.{name}").main()
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
