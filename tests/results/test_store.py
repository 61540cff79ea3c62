from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdbench.core.data import DataInfo
from kdbench.core.errors import UserError
from kdbench.core.record import EpochMetrics, Outcome
from kdbench.core.trial import PROTOCOL, Recipe, TeacherSource, Trial, Value
from kdbench.results import Store
from kdbench.results.serialize import dumps_checksummed, load_checksummed

DATA = DataInfo("toy[n=9]", "c0", 4, 9, 4, 8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), True, {"a/b.bin": "00"})
RECIPE = Recipe("paper", "paper@2", 2, 4, 0.05, 0.01, 0.9, 5e-4, (1.25, 1.5, 1.75), 0.1, 8, 1)
TEACHER = TeacherSource("big", trial="big-trial")
TRIAL = Trial(DATA, RECIPE, "small", 0.05, TEACHER, "one(k=3)+kd", {"k": 3, "kd_weight": 1.0}, "code", 7, "fp32")
EPOCHS = (
    EpochMetrics(1, 0.05, {"ce": 1.5}, 60.0, 90.0, 2.0, 0.5),
    EpochMetrics(2, 0.005, {"ce": 1.0}, 55.0, 95.0, 4.0, 1.5),
)
WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}
DONE = Outcome(TRIAL, "done", None, EPOCHS, 70.0, {"negatives": 5}, WEIGHTS)
ENVIRONMENT: dict[str, Value] = {"torch": "2.9", "threads": 2}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def test_what_is_saved_is_read(store: Store) -> None:
    saved = store.save(DONE, ENVIRONMENT)
    (read,) = store.records()
    assert read == saved
    assert read.trial.id == TRIAL.id
    assert (read.top1, read.top5, read.best_top1, read.best_epoch) == (55.0, 95.0, 60.0, 1)
    assert (read.student_seconds, read.shared_seconds, read.seconds_per_epoch) == (3.0, 1.0, 4.0)
    assert store.epochs(TRIAL.id) == EPOCHS
    assert store.find(TRIAL.fingerprint) == saved
    weights = store.weights(saved)
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert not [path for path in store.runs.iterdir() if "tmp" in path.name]


@pytest.mark.parametrize("status", ["diverged", "failed", "n/a"])
def test_trials_that_did_not_end_well_have_no_accuracy(store: Store, status: str) -> None:
    record = store.save(replace(DONE, status=status, reason="why", weights=None, epochs=EPOCHS[:1]), ENVIRONMENT)  # type: ignore[arg-type]
    assert (record.top1, record.best_top1, record.weights_sha256, record.reason) == (None, None, None, "why")
    assert (TRIAL.fingerprint in store.completed()) == (status != "failed")


def test_what_stands(store: Store) -> None:
    store.save(DONE, ENVIRONMENT)
    assert store.completed() == {TRIAL.fingerprint}
    assert store.completed(frozenset({"done"})) == set()
    (store.runs / f"{TRIAL.id}.pt").unlink()
    assert store.completed() == set()  # its students could not be trained


def test_damaged_weights_are_not_used(store: Store) -> None:
    vanilla = replace(TRIAL, teacher=None, method="vanilla")
    saved = store.save(replace(DONE, trial=vanilla), ENVIRONMENT)
    assert store.completed() == {vanilla.fingerprint}
    path = store.runs / f"{vanilla.id}.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        store.weights(saved)
    assert store.completed() == set()  # the teacher is trained again
    with pytest.raises(ValueError, match="has no weights"):
        store.weights(replace(saved, weights_sha256=None))
    assert store.find("another") is None


def test_damaged_records_are_set_aside_and_foreign_ones_left(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.save(DONE, ENVIRONMENT)
    content = load_checksummed(store.runs / f"{TRIAL.id}.json")
    damaged = {
        "empty": b"",
        "text": b"[]",
        "list": dumps_checksummed({"id": "x"}).replace(b'"id": "x"', b"1"),
        "unsealed": json.dumps(content).encode(),
        "flipped": dumps_checksummed(content).replace(b'"seed": 7', b'"seed": 6'),
        "seal": dumps_checksummed(content).replace(b'"sha256": "', b'"sha255": "'),
    }
    foreign = {
        "short": dumps_checksummed({"protocol": PROTOCOL, "id": "x"}),
        "renamed": dumps_checksummed({**content, "id": "other"}),
        "later": dumps_checksummed({**content, "surprise": 1}),
        "typed": dumps_checksummed({**content, "top1": "55"}),
        "coloured": dumps_checksummed({**content, "reason": "\x1b[31m"}),
        "deep": dumps_checksummed({**content, "reason": json.loads("[" * 500 + "]" * 500)}),
    }
    for name, text in (damaged | foreign).items():
        (store.runs / f"{name}.json").write_bytes(text)
    assert len(Store(store.root, quarantine=False).records()) == 1
    assert not (store.root / "damaged").exists()
    assert len(store.records()) == 1
    assert {path.stem for path in (store.root / "damaged").iterdir()} == set(damaged)
    assert all((store.runs / f"{name}.json").read_bytes() == text for name, text in foreign.items())
    assert sum("set aside in damaged/" in message for message in caplog.messages) == len(damaged)
    caplog.clear()
    assert len(store.records()) == 1
    assert len(caplog.messages) == len(foreign)


def test_what_is_damaged_is_never_written_over(store: Store) -> None:
    path = store.runs / f"{TRIAL.id}.json"
    for content in (b"first", b"second", b"third"):
        store.save(DONE, ENVIRONMENT)
        path.write_bytes(content)
        assert TRIAL.fingerprint not in store.completed()
    kept = {path.read_bytes() for path in (store.root / "damaged").iterdir()}
    assert kept == {b"first", b"second", b"third"}


def test_damaged_epochs_are_set_aside_and_their_trial_runs_again(store: Store) -> None:
    store.save(DONE, ENVIRONMENT)
    path = store.runs / f"{TRIAL.id}.epochs.json"
    path.write_bytes(path.read_bytes().replace(b"60.0", b"99.0"))
    with pytest.raises(ValueError, match="checksum"):
        store.epochs(TRIAL.id)
    assert store.completed() == set()


def test_a_hostile_fingerprint_leads_nowhere(store: Store) -> None:
    store.save(DONE, ENVIRONMENT)
    assert store.find("*") is None
    assert store.find("/../../etc/passwd") is None


def test_records_of_another_protocol_are_kept_but_not_read(store: Store) -> None:
    store.save(DONE, ENVIRONMENT)
    path = store.runs / f"{TRIAL.id}.json"
    content = load_checksummed(path)
    path.write_bytes(dumps_checksummed({**content, "protocol": PROTOCOL - 1, "surprise": [1]}))
    assert store.records() == []
    assert store.find(TRIAL.fingerprint) is None
    assert path.exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="results cannot be written"):
        Store(tmp_path / "file" / "results").require_writable()
    if os.geteuid():  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UserError, match="results cannot be written"):
            Store(tmp_path / "closed").require_writable()
