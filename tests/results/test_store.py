from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.core.data import DataInfo
from kdbench.core.errors import UserError
from kdbench.core.files import file_sha256
from kdbench.core.record import EpochMetrics, Outcome
from kdbench.core.trial import PROTOCOL, Recipe, TeacherSource, Trial, Value
from kdbench.results import Store
from kdbench.results.serialize import dumps_checksummed, load_checksummed

DATA = DataInfo("toy[n=9]", "c0", 4, 9, 4, 8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), True, {"a/b.bin": "00"})
RECIPE = Recipe("paper", "paper@2", 2, 4, 0.05, 0.01, 0.9, 5e-4, (1.25, 1.5, 1.75), 0.1, 8, 1)
VANILLA_TRIAL = Trial(DATA, RECIPE, "big", 0.05, (), "vanilla", "vanilla", {"ce_weight": 1.0}, "code", 0, "fp32")
TEACHERS = (TeacherSource("big", trial=VANILLA_TRIAL.fingerprint),)
TRIAL = Trial(
    DATA, RECIPE, "small", 0.05, TEACHERS, "one(k=3)+kd", "one", {"k": 3, "kd_weight": 1.0}, "code", 7, "fp32"
)
EPOCHS = (
    EpochMetrics(1, 0.05, {"ce": 1.5}, 60.0, 90.0, 2.0, 0.5),
    EpochMetrics(2, 0.005, {"ce": 1.0}, 55.0, 95.0, 4.0, 1.5),
)
NETWORK = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}
WEIGHTS = {f"network.{name}": tensor for name, tensor in NETWORK.items()} | {"deploy.weight": torch.ones(2)}
DONE = Outcome(TRIAL, "done", None, EPOCHS, 70.0, {"negatives": 5}, WEIGHTS)
VANILLA_DONE = replace(DONE, trial=VANILLA_TRIAL)
ENVIRONMENT: dict[str, Value] = {"torch": "2.9", "threads": 2}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def flip_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_saved_trial_is_read_back(store: Store) -> None:
    saved = store.save(DONE, ENVIRONMENT)
    (record,) = store.records()
    assert record == saved
    assert record.trial.id == TRIAL.id
    assert (record.top1, record.top5, record.best_top1, record.best_epoch) == (55.0, 95.0, 60.0, 1)
    assert (record.student_seconds, record.shared_seconds, record.seconds_per_epoch) == (3.0, 1.0, 4.0)
    assert store.epochs(TRIAL.id) == EPOCHS
    assert store.find(TRIAL.fingerprint) == saved
    weights = store.weights(saved)
    assert weights.keys() == NETWORK.keys()
    assert all(torch.equal(weights[name], NETWORK[name]) for name in NETWORK)
    assert list(store.weights(saved, "deploy")) == ["weight"]
    assert not [path for path in store.runs.iterdir() if "tmp" in path.name]


@pytest.mark.parametrize("status", ["diverged", "failed", "n/a"])
def test_only_done_trials_have_accuracies_and_only_failed_ones_run_again(store: Store, status: str) -> None:
    record = store.save(replace(DONE, status=status, reason="why", weights=None, epochs=EPOCHS[:1]), ENVIRONMENT)  # type: ignore[arg-type]
    assert (record.top1, record.best_top1, record.weights_sha256, record.reason) == (None, None, None, "why")
    assert (TRIAL.fingerprint in store.completed()) == (status != "failed")


def test_a_status_can_be_trained_again(store: Store) -> None:
    store.save(DONE, ENVIRONMENT)
    assert store.completed() == {TRIAL.fingerprint}
    assert store.completed(frozenset({"done"})) == set()


@pytest.mark.parametrize("needed", [None, (), (VANILLA_TRIAL.fingerprint,)])
@pytest.mark.parametrize("harm", [flip_bit, Path.unlink])
def test_a_done_record_stands_without_its_epochs_and_weights(
    store: Store, needed: tuple[str, ...] | None, harm: Callable[[Path], None]
) -> None:
    store.save(DONE, ENVIRONMENT)
    for suffix in ("pt", "epochs.json"):
        harm(store.runs / f"{TRIAL.id}.{suffix}")
    assert store.completed(needed=needed) == {TRIAL.fingerprint}


@pytest.mark.parametrize("harm", [flip_bit, Path.unlink])
def test_a_vanilla_trial_without_its_weights_runs_again_only_if_it_must_teach(
    store: Store, harm: Callable[[Path], None]
) -> None:
    for outcome in (VANILLA_DONE, DONE):
        store.save(outcome, ENVIRONMENT)
        harm(store.runs / f"{outcome.trial.id}.pt")
    both = {VANILLA_TRIAL.fingerprint, TRIAL.fingerprint}
    assert store.completed(needed=()) == both
    assert store.completed(needed={VANILLA_TRIAL.fingerprint}) == {TRIAL.fingerprint}
    assert store.completed() == {TRIAL.fingerprint}  # any vanilla trial may have to teach
    store.save(VANILLA_DONE, ENVIRONMENT)
    assert store.completed(needed={VANILLA_TRIAL.fingerprint}) == both


def test_the_latest_record_of_a_fingerprint_decides(store: Store) -> None:
    """Trials of equal fingerprints may have other labels, and so other files."""
    first = store.save(VANILLA_DONE, ENVIRONMENT)
    relabeled = replace(VANILLA_TRIAL, data=replace(DATA, label="toy, renamed"))
    assert relabeled.fingerprint == VANILLA_TRIAL.fingerprint
    time.sleep(0.002)
    last = store.save(replace(VANILLA_DONE, trial=relabeled), ENVIRONMENT)
    assert store.find(relabeled.fingerprint) == last
    assert store.finished_at() == {relabeled.fingerprint: last.finished}
    assert last.finished > first.finished
    (store.runs / f"{relabeled.id}.pt").unlink()
    assert store.completed() == set()  # its weights are those that a student would be given


def test_missing_weights_are_one_sentence_with_the_options_that_train_them_again(store: Store) -> None:
    for outcome, options in (
        (DONE, "--methods 'one(k=3)+kd' --pairs big:small --seeds 7, --rerun done"),
        (VANILLA_DONE, "--methods vanilla --pairs big:big --seeds 0, --rerun done"),
    ):
        record = store.save(outcome, ENVIRONMENT)
        path = store.runs / f"{outcome.trial.id}.pt"
        path.unlink()
        with pytest.raises(ValueError, match="is missing") as error:
            store.weights(record)
        remedy = f"the command that trained these weights trains them again with {options}"
        assert str(error.value) == f"{path} is missing; {remedy}"


def test_damaged_weights_are_quarantined_and_named(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    record = store.save(DONE, ENVIRONMENT)
    path = store.runs / f"{TRIAL.id}.pt"
    flip_bit(path)
    damaged = path.read_bytes()
    with pytest.raises(ValueError, match=r"is damaged: its SHA-256 is not the one in its record; .*--rerun done"):
        store.weights(record)
    assert not path.exists()
    assert (store.root / "damaged" / path.name).read_bytes() == damaged
    (message,) = caplog.messages
    assert str(path) in message
    assert message.endswith("its record stands")
    with pytest.raises(ValueError, match="is missing"):
        store.weights(record)
    assert store.records() == [record]


def test_damaged_weights_stay_where_quarantine_is_off(store: Store) -> None:
    record = store.save(DONE, ENVIRONMENT)
    path = store.runs / f"{TRIAL.id}.pt"
    flip_bit(path)
    with pytest.raises(ValueError, match="is damaged"):
        Store(store.root, quarantine=False).weights(record)
    assert path.exists()


def test_only_done_trials_have_weights(store: Store) -> None:
    with pytest.raises(ValueError, match="has no weights"):
        store.weights(replace(store.save(DONE, ENVIRONMENT), weights_sha256=None))
    assert store.find("another") is None


@pytest.mark.parametrize("content", [[1.0], {1: torch.ones(1)}, "text"])
def test_weights_that_are_not_a_state_dict_are_refused(store: Store, content: object) -> None:
    record = store.save(DONE, ENVIRONMENT)
    path = store.runs / f"{TRIAL.id}.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match="not a state dict"):
        store.weights(replace(record, weights_sha256=file_sha256(path)))


def test_damaged_records_are_quarantined_and_foreign_ones_stay(store: Store, caplog: pytest.LogCaptureFixture) -> None:
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
        "control": dumps_checksummed({**content, "reason": "\x1b[31m"}),
        "deep": dumps_checksummed({**content, "reason": json.loads("[" * 500 + "]" * 500)}),
    }
    for name, text in (damaged | foreign).items():
        (store.runs / f"{name}.json").write_bytes(text)
    assert len(Store(store.root, quarantine=False).records()) == 1
    assert not (store.root / "damaged").exists()
    assert len(store.records()) == 1
    assert {path.stem for path in (store.root / "damaged").iterdir()} == set(damaged)
    assert all((store.runs / f"{name}.json").read_bytes() == text for name, text in foreign.items())
    quarantined = [message for message in caplog.messages if message.endswith("to damaged/: its trial runs again")]
    assert len(quarantined) == len(damaged)
    caplog.clear()
    assert len(store.records()) == 1
    assert len(caplog.messages) == len(foreign)


def test_damaged_files_of_one_name_are_all_kept(store: Store) -> None:
    path = store.runs / f"{TRIAL.id}.json"
    for content in (b"first", b"second", b"third"):
        store.save(DONE, ENVIRONMENT)
        path.write_bytes(content)
        assert TRIAL.fingerprint not in store.completed()
    contents = {path.read_bytes() for path in (store.root / "damaged").iterdir()}
    assert contents == {b"first", b"second", b"third"}


def test_damaged_epochs_are_quarantined_and_named(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.save(DONE, ENVIRONMENT)
    path = store.runs / f"{TRIAL.id}.epochs.json"
    path.write_bytes(path.read_bytes().replace(b"60.0", b"99.0"))
    with pytest.raises(ValueError, match="checksum"):
        store.epochs(TRIAL.id)
    assert (store.root / "damaged" / path.name).exists()
    (message,) = caplog.messages
    assert str(path) in message
    assert "its record stands" in message
    with pytest.raises(FileNotFoundError):
        store.epochs(TRIAL.id)
    assert store.completed() == {TRIAL.fingerprint}


def test_a_forged_fingerprint_finds_no_file(store: Store) -> None:
    store.save(DONE, ENVIRONMENT)
    assert store.find("*") is None
    assert store.find("/../../etc/passwd") is None


def test_records_from_before_kinds_were_kept_are_read(store: Store) -> None:
    saved = store.save(replace(DONE, trial=replace(TRIAL, kind="features", changed=("k",))), ENVIRONMENT)
    assert saved.trial.fingerprint == TRIAL.fingerprint
    assert store.records()[0].trial.changed == ("k",)
    path = store.runs / f"{TRIAL.id}.json"
    content = load_checksummed(path)
    del content["trial"]["kind"], content["trial"]["changed"]
    path.write_bytes(dumps_checksummed(content))
    (record,) = store.records()
    assert (record.trial.kind, record.trial.changed, record.trial.fingerprint) == ("", None, TRIAL.fingerprint)


def test_records_of_another_protocol_are_kept_but_not_read(store: Store) -> None:
    store.save(DONE, ENVIRONMENT)
    path = store.runs / f"{TRIAL.id}.json"
    content = load_checksummed(path)
    path.write_bytes(dumps_checksummed({**content, "protocol": PROTOCOL - 1, "surprise": [1]}))
    assert store.records() == []
    assert store.find(TRIAL.fingerprint) is None
    assert path.exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="results cannot be written"):
        Store(tmp_path / "file" / "results").require_writable()
    if os.geteuid():  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UserError, match="results cannot be written"):
            Store(tmp_path / "closed").require_writable()


def test_each_record_is_parsed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, parsed = Store(tmp_path), list[str]()
    original = load_checksummed

    def counted(path: Path) -> dict[str, Any]:
        parsed.append(path.name)
        return original(path)

    monkeypatch.setattr("kdbench.results.reading.serialize.load_checksummed", counted)
    for trial in (VANILLA_TRIAL, TRIAL):
        store.save(Outcome(trial, "failed", "why"), {})
    assert len(store.records()) == 2
    assert store.finished_at().keys() == {VANILLA_TRIAL.fingerprint, TRIAL.fingerprint}
    store.completed()
    assert sorted(parsed) == sorted(f"{trial.id}.json" for trial in (VANILLA_TRIAL, TRIAL))
    store.save(Outcome(TRIAL, "done"), {})
    assert {record.status for record in store.records()} == {"failed", "done"}
    assert len(parsed) == 3
