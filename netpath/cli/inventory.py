"""netpath inventory"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from netpath.cli import options

HELP = "List namespaces, workloads, devices, veth pairs, bridges and tunnels, and say which CNI and mode each node runs."


class Output(StrEnum):
    table = "table"
    wide = "wide"
    tree = "tree"
    json = "json"


def run(
    snapshot: options.SnapshotOption = None,
    output: Annotated[Output, typer.Option("-o", "--output", help="How to show the result.")] = Output.table,
) -> int:
    from netpath.model.index import SnapshotIndex
    from netpath.render.out import Progress, result

    if snapshot is not None:
        from netpath.snapshotfile import load

        state = load(snapshot)
    else:
        from netpath.discover import take

        state = take(progress=Progress())
    index = SnapshotIndex(state)
    if output is Output.json:
        from netpath.render.inventory import content
        from netpath.render.json import document

        result(document("Inventory", state.taken_at, options.nodes(state, index), {}, content(index)))
        return 0
    from netpath.render.lists import inventory_text, inventory_tree

    found = options.datapaths(state, index)
    if output is Output.tree:
        result(inventory_tree(index, found, options.screen()))
    else:
        result(inventory_text(index, found, options.screen(), wide=output is Output.wide))
    return 0
