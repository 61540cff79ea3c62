from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.core.linear_probe import LinearProbe
from kdbench.core.record import ProbeRecord
from kdbench.core.trial import PROTOCOL
from kdbench.results import Store
from kdbench.results.serialize import dumps_checksummed, load_checksummed
from tests.results.test_store import DATA, RECIPE, TRIAL

TARGET = replace(DATA, label="target", content="c1")
PROBE = LinearProbe(TRIAL, "f" * 64, TARGET, replace(RECIPE, label="authors"), True, 1, 0.05, "fp32")
DONE = ProbeRecord(PROTOCOL, PROBE, "done", None, 61.5, 71.5, 1.0, 2.0, {}, "2026-01-01T00:00:00Z")
FAILED = replace(DONE, probe=replace(PROBE, views=2), status="failed", reason="why", top1=None, top5=None)


def test_a_saved_probe_is_read_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.probe_records() == []
    for record in (DONE, FAILED):
        store.write_probe(record)
    assert sorted(store.probe_records(), key=lambda record: record.status) == [DONE, FAILED]
    assert store.completed_probes() == {PROBE.fingerprint}  # the other runs again
    assert {path.name for path in store.probes.iterdir()} == {f"{record.probe.id}.json" for record in (DONE, FAILED)}
    assert store.find_probe(PROBE.fingerprint) == DONE
    assert store.find_probe("another") is None
    assert store.finished_at() == {record.probe.fingerprint: record.finished for record in (DONE, FAILED)}


def test_records_of_another_protocol_and_damaged_ones_are_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.write_probe(replace(DONE, protocol=PROTOCOL + 1))
    store.write_probe(FAILED)
    assert store.probe_records() == [FAILED]
    path = store.probes / f"{FAILED.probe.id}.json"
    content = load_checksummed(path)
    path.write_bytes(dumps_checksummed({**content, "id": "another"}))
    assert store.probe_records() == []
    assert "do not belong to its id" in caplog.text
    assert path.exists()
    path.write_bytes(dumps_checksummed(content).replace(b'"seed": 7', b'"seed": 3'))
    assert store.probe_records() == []
    assert "its checksum does not agree" in caplog.text
    assert not path.exists()
    assert (tmp_path / "damaged" / path.name).exists()


def test_a_probe_depends_on_what_may_change_its_result_and_on_no_label() -> None:
    relabeled = replace(PROBE, data=replace(TARGET, label="another name"), recipe=replace(PROBE.recipe, label="x"))
    assert relabeled.fingerprint == PROBE.fingerprint
    changed = [
        replace(PROBE, weights="0" * 64),
        replace(PROBE, bn_train_mode=False),
        replace(PROBE, views=2),
        replace(PROBE, precision="bf16"),
        replace(PROBE, lr=0.01),
        replace(PROBE, data=replace(TARGET, content="c2")),
        replace(PROBE, source=replace(TRIAL, seed=1)),
        replace(PROBE, recipe=replace(PROBE.recipe, epochs=8)),
    ]
    assert len({probe.fingerprint for probe in (PROBE, *changed)}) == 9
    assert PROBE.id.startswith("target.authors.toy-n=9.big-small.one-k=3-+kd.s7.")
