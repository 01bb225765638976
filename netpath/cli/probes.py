"""netpath probes"""

from __future__ import annotations

from netpath.cli import options
from netpath.cli.options import Output

HELP = "Show which kinds of eBPF hook this kernel offers, each tried for real, and what is lost without it."


def run(output: options.OutputOption = Output.table) -> int:
    import platform
    from datetime import UTC, datetime

    from netpath.ebpf.capabilities import survey, used
    from netpath.render.out import result

    kinds = survey()
    if output is Output.json:
        from netpath.render.json import document

        nodes = [{"name": platform.node(), "kernel": platform.release(), "datapaths": []}]
        result(
            document(
                "Probes", datetime.now(UTC).isoformat().replace("+00:00", "Z"), nodes, {}, {"hooks": kinds, "used": used(kinds)}
            )
        )
    else:
        from netpath.render.lists import hooks_text

        result(hooks_text(kinds, used(kinds), options.screen()))
    return 0
