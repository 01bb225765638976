"""netpath snapshot"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from netpath.errors import UsageError

HELP = "Write the node's state as one JSON document: a bug report, a test fixture, the input of --snapshot."


def run(
    output_file: Annotated[
        str | None, typer.Option("--output-file", "-f", metavar="FILE", help="Write there instead of to stdout.")
    ] = None,
    from_dump: Annotated[
        str | None,
        typer.Option("--from-dump", metavar="DIR", help="Read plain command output (a folder or tar) instead of this machine."),
    ] = None,
    script: Annotated[
        bool, typer.Option("--script", help="Print a shell script that collects such a dump on a bare node.")
    ] = False,
) -> int:
    from netpath.render.json import ascii_json
    from netpath.render.out import Progress, result, warning

    if script:
        if from_dump is not None:
            raise UsageError("--script and --from-dump exclude each other")
        from netpath.discover.dump import script as collect

        text = collect()
    else:
        from netpath.snapshotfile import encode

        if from_dump is not None:
            from netpath.discover.dump import read

            state = read(from_dump)
        else:
            from netpath.discover import take

            state = take(progress=Progress())
        for problem in state.problems:
            warning(problem)
        text = encode(state).decode()
    if output_file is None:
        result(text if script else ascii_json(text))
        return 0
    try:
        _write(Path(output_file), text)
    except OSError as error:
        raise UsageError(f"{output_file}: {error.strerror}") from error
    return 0


def _write(path: Path, text: str) -> None:
    """All of it or nothing: a full disk or a kill leaves what was there before. Pipes and devices are written to as they are."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    target = path.resolve()  # a link stays one
    descriptor, made = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask())
            file.write(text)
        Path(made).replace(target)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found
