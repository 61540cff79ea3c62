"""Several results folders as one study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.cli.main import main
from kdbench.core.record import Outcome
from kdbench.report import load
from kdbench.results import Folders, Store
from tests.report.factory import CIFAR100, epochs, trained


def filled(folder: Path, *trials: tuple[str, int, float]) -> Store:
    """A folder with trials, by method, seed and accuracy."""
    store = Store(folder)
    store.require_writable()
    for method, seed, top1 in trials:
        store.save(Outcome(trained(method, seed=seed).trial, "done", epochs=tuple(epochs(top1))), {"threads": 1})
    return store


def test_a_trial_of_several_folders_counts_once_as_it_was_finished_last(tmp_path: Path) -> None:
    first = filled(tmp_path / "a", ("kd", 0, 70.0), ("kd", 1, 71.0))
    second = filled(tmp_path / "b", ("kd", 1, 72.0), ("crd", 0, 75.0))
    for folders in (Folders([first, second]), Folders([second, first])):
        results = load(folders)
        found = {(record.trial.method, record.trial.seed): record.top1 for record in results.records}
        assert found == pytest.approx({("kd", 0): 70.0, ("kd", 1): 72.0, ("crd", 0): 75.0})
        assert "In several folders, the record that was finished last is shown: kd, resnet56 → resnet20, seed 1." in (
            results.notes
        )
        assert "Of these, another folder has another accuracy: kd, resnet56 → resnet20, seed 1." in results.notes
        assert len(results.curves) == 3
        last = {trial: curve[-1].top1 for trial, curve in results.curves.items()}
        assert sorted(last.values()) == pytest.approx([70.0, 72.0, 75.0])
    assert load(Folders([first])).folder_notes == []


def test_a_trial_under_two_labels_is_in_two_tables(tmp_path: Path) -> None:
    store = filled(tmp_path / "a", ("kd", 0, 70.0))
    other = trained("kd", data=replace(CIFAR100, label="mine")).trial
    store.save(Outcome(other, "done", epochs=tuple(epochs(71.0))), {"threads": 1})
    folders = Folders([store])
    assert len(store.records()) == len(folders.records()) == 2
    assert folders.notes == []


def test_the_command_writes_to_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path / "a", ("kd", 0, 70.0))
    filled(tmp_path / "b", ("kd", 1, 72.0), ("crd", 0, 75.0))
    assert main(["report", "--out", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "71.00 ± 1.41 (2)" in capsys.readouterr().out
    assert (tmp_path / "a" / "report.html").exists()
    assert not (tmp_path / "b" / "report.html").exists()
    assert main(["report", "--out", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    assert "In several folders" not in capsys.readouterr().out
    assert main(["report", "--out", str(tmp_path / "a"), str(tmp_path / "none")]) == 2
    assert "none holds no records" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
