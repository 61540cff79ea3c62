from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdbench.core.events import Observer
from kdbench.core.record import Outcome
from kdbench.core.trial import Cohort, Plan
from kdbench.results import Store
from kdbench.run.runner import run_plan
from kdbench.train.checkpoint import Checkpoints
from tests.train.tiny_study import Quiet, cohort, trial

VANILLA = cohort(trial("vanilla", arch="wrn_16_1", teacher=None))
TEACHER = replace(trial("kd").teacher, trial=VANILLA.trials[0].fingerprint)  # type: ignore[type-var]
STUDENTS = [replace(trial(name), teacher=TEACHER) for name in ("kd", "icd")]


class Scripted:
    """An executor that does as it is told."""

    def __init__(self, *script: Outcome | Exception) -> None:
        self.script = list(script)
        self.teachers: list[object] = []

    def train(self, cohort: Cohort, teacher: Mapping[str, Any] | None, observer: Observer) -> Iterator[Outcome]:
        self.teachers.append(teacher)
        for _ in cohort.trials:
            now = self.script.pop(0)
            if isinstance(now, Exception):
                raise now
            yield now


def run(folder: Path, executor: Scripted, plan: Plan) -> dict[str, tuple[str, str | None]]:
    store = Store(folder)
    run_plan(plan, store, executor, Checkpoints(folder / "checkpoints"), Quiet(), {})
    return {record.trial.method: (record.status, record.reason) for record in store.records()}


def test_whatever_breaks_every_trial_has_a_record(tmp_path: Path) -> None:
    plan = Plan((cohort(*STUDENTS),), (), ((replace(trial("crd"), teacher=TEACHER), "no negatives"),))
    Store(tmp_path).save(Outcome(VANILLA.trials[0], "done", weights={}), {})
    executor = Scripted(Outcome(STUDENTS[0], "done", weights={}), RuntimeError("out of memory"))
    found = run(tmp_path, executor, plan)
    assert found["kd"] == ("done", None)
    assert found["icd"] == ("failed", "its cohort could not be trained: RuntimeError: out of memory")
    assert found["crd"] == ("n/a", "no negatives")
    assert executor.teachers == [{}]


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (Outcome(VANILLA.trials[0], "diverged", "the loss was not finite"), "its teacher wrn_16_1 diverged: the loss"),
        (None, "its teacher wrn_16_1 has no record"),
    ],
)
def test_students_of_a_teacher_that_is_not_there_fail_with_its_reason(
    tmp_path: Path, ended: Outcome | None, words: str
) -> None:
    if ended:
        Store(tmp_path).save(ended, {})
    found = run(tmp_path, Scripted(), Plan((cohort(*STUDENTS),), (), ()))
    for name in ("kd", "icd"):
        status, reason = found[name]
        assert status == "failed"
        assert words in (reason or "")


def test_a_full_disk_is_not_a_failed_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    Store(tmp_path).save(Outcome(VANILLA.trials[0], "done", weights={}), {})
    monkeypatch.setattr(Store, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, Scripted(Outcome(STUDENTS[0], "done")), Plan((cohort(*STUDENTS),), (), ()))
    assert len(list((tmp_path / "runs").glob("*.json"))) == 1
