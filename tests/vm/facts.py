"""What a kernel offers, and how large netpath's programs are on it: ``python -m tests.vm.facts`` prints it as JSON."""

from __future__ import annotations

import json
import os
import sys as python
from typing import Any

from netpath.ebpf import sys
from netpath.ebpf.capabilities import survey
from netpath.ebpf.tracer import Tracer
from netpath.errors import NetpathError


def sizes() -> dict[str, dict[str, int | None]]:
    """By hook, the programs that netpath's choice of provider loads here."""
    with Tracer() as tracer:
        tracer.load()
        found = {name: sys.program_size(program) for name, program in sorted(tracer.programs.items())}
    return {name: {"instructions": size.instructions, "verified": size.verified} for name, size in found.items()}


def facts() -> dict[str, Any]:
    """The kernel's release, every hook kind as tried, and the sizes of the programs (or why there are none)."""
    document: dict[str, Any] = {
        "kernel": os.uname().release,
        "hooks": {kind.name: {"available": kind.available, "detail": kind.detail} for kind in survey()},
    }
    try:
        document["programs"] = sizes()
    except NetpathError as error:
        document["programs"], document["refused"] = {}, str(error)
    return document


if __name__ == "__main__":
    json.dump(facts(), python.stdout, indent=1, sort_keys=True)
    python.stdout.write("\n")
