"""With 3,000 services on the nodes the one that is asked for is found, and is right."""

from __future__ import annotations

from pathlib import Path as File

import pytest

from netpath import snapshotfile
from netpath.model.index import SnapshotIndex
from netpath.predict import predict
from tests.large import LANGUAGES, large, services
from tests.trace.nat import as_predicted, rewrites, trace

pytestmark = [pytest.mark.root, pytest.mark.ebpf, pytest.mark.timeout(300)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_one_of_3000_services_is_traced_as_predicted(language: str, tmp_path: File) -> None:
    with large(language) as made:
        last = services(made)[-1]
        done = trace(f"netns:{made.name}-pod1a", f"{last.cluster_ip}:{last.port}", count=1)
        (forward,), _ = as_predicted(done)
        (dnat,) = forward.translations
        assert rewrites(forward) == [("dnat", False)] and dnat.rule is not None and "svc2999" in (dnat.rule.service or ""), dnat
        # Besides there may be a way that a bridge takes while neighbours are of another age, of no share.
        predicted = [path for path in done.trace.prediction.paths if path.share]
        assert len(predicted) == 2
        # The same from the file that this snapshot becomes.
        file = tmp_path / "node.json"
        file.write_bytes(snapshotfile.dump(done.snapshot))
        snapshot = snapshotfile.load(file)
        again = predict(snapshot, done.flow, index=SnapshotIndex(snapshot))
        assert [path.translations for path in again.paths] == [path.translations for path in predicted]
