"""netpath path"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netpath.cli import options
from netpath.cli.options import Output
from netpath.errors import EXIT_FINDING, EXIT_INCONCLUSIVE, EXIT_OK

if TYPE_CHECKING:
    from netpath.model.path import Prediction

HELP = "Show the predicted path, hop by hop, with encapsulation, NAT and MTU. Sends nothing."


def run(
    source: options.Source,
    destination: options.Destination,
    udp: options.Udp = False,
    tcp: options.Tcp = False,
    icmp: options.Icmp = False,
    sport: options.Sport = None,
    size: options.Size = 64,
    df: options.Df = False,
    ttl: options.Ttl = 64,
    snapshot: options.SnapshotOption = None,
    expect: options.Expect = None,
    output: options.OutputOption = Output.table,
) -> int:
    from netpath.model.index import SnapshotIndex
    from netpath.predict import predict
    from netpath.render.out import Progress, result
    from netpath.trace.request import TraceRequest
    from netpath.trace.session import aim, chosen_protocol

    asked = TraceRequest(source, destination, options.protocol(udp, tcp, icmp), sport, size, df, ttl)
    protocol = chosen_protocol(asked)
    if snapshot is not None:
        from netpath.snapshotfile import load

        state = load(snapshot)
    else:
        from netpath.discover import take

        state = take(progress=Progress())
    index = SnapshotIndex(state)
    origin, target, flow = aim(asked, protocol, state)
    prediction = predict(state, flow, index=index)
    if output is Output.json:
        from netpath.render.json import document

        content = {"outcome": prediction.outcome, "paths": prediction.paths, "path_mtu": prediction.path_mtu}
        result(document("Path", state.taken_at, options.nodes(state, index), options.request(origin, target, flow), content))
    else:
        from netpath.render.hops import prediction_text

        result(prediction_text(prediction, options.screen(), wide=output is Output.wide))
    return exit_code(prediction, expect.value if expect else None)


def exit_code(prediction: Prediction, expected: str | None) -> int:
    """The contract's code for a prediction: 4 when it is uncertain, 1 when something is to be looked at."""
    if prediction.outcome == "uncertain":
        return EXIT_INCONCLUSIVE
    if expected is not None:
        return EXIT_OK if prediction.outcome == expected else EXIT_FINDING
    return EXIT_OK if prediction.outcome == "delivered" else EXIT_FINDING
