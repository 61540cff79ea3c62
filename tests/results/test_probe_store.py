from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.core.trial import PROTOCOL
from kdbench.results import ProbeStore
from kdbench.results.serialize import dumps_checksummed, load_checksummed
from tests.report.factory import trained
from tests.report.test_linear_probes import TINY, moved


def test_what_is_saved_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ProbeStore(tmp_path)
    assert store.records() == []
    done = moved(trained("icd"), 61.5)
    failed = moved(trained("kd"), None, to=TINY, status="failed", reason="why")
    for record in (done, failed):
        store.save(record)
    assert sorted(store.records(), key=lambda record: record.status) == [done, failed]
    assert store.completed() == {done.probe.fingerprint}  # the other runs again
    assert {path.name for path in store.folder.iterdir()} == {f"{r.probe.id}.json" for r in (done, failed)}

    store.save(replace(done, protocol=PROTOCOL + 1))
    assert store.records() == [failed]
    path = store.folder / f"{failed.probe.id}.json"
    content = load_checksummed(path)
    path.write_bytes(dumps_checksummed({**content, "id": "another"}))
    assert store.records() == []
    assert "do not belong to its id" in caplog.text
    assert path.exists()
    path.write_bytes(dumps_checksummed(content).replace(b'"seed": 0', b'"seed": 3'))
    assert store.records() == []
    assert "its checksum does not agree" in caplog.text
    assert not path.exists()
    assert (tmp_path / "damaged" / path.name).exists()


def test_a_transfer_depends_on_what_may_change_it() -> None:
    one = moved(trained("icd"), 61.5).probe
    same = replace(one, data=replace(one.data, label="another name"), recipe=replace(one.recipe, label="x"))
    assert same.fingerprint == one.fingerprint
    others = [
        replace(one, weights="0" * 64),
        replace(one, bn_train_mode=False),
        replace(one, views=2),
        replace(one, precision="bf16"),
        replace(one, lr=0.01),
        replace(one, data=TINY),
        replace(one, source=replace(one.source, seed=1)),
        replace(one, recipe=replace(one.recipe, epochs=8)),
    ]
    assert len({each.fingerprint for each in (one, *others)}) == 9
    assert one.id.startswith("stl10.authors.cifar100.resnet56-resnet20.icd.s0.")
