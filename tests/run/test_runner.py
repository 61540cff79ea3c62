"""Every trial of a plan ends in a record, whatever breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.core.events import Observer, TeacherWeights
from kdbench.core.record import Outcome
from kdbench.core.trial import SELF, Cohort, Plan, TeacherSource
from kdbench.results import Store
from kdbench.run.runner import _work, run_plan
from kdbench.train.checkpoint import Checkpoints
from tests.train.tiny_study import Quiet, cohort, trial

VANILLA = cohort(trial("vanilla", arch="wrn_16_1", teacher=None))
ITSELF = trial("vanilla", teacher=None)
TEACHERS = (TeacherSource("wrn_16_1", trial=VANILLA.trials[0].fingerprint),)
STUDENTS = [replace(trial(name), teachers=TEACHERS) for name in ("kd", "icd")]
WITH_ITSELF = replace(STUDENTS[1], extra_teachers={SELF: TeacherSource("resnet8", trial=ITSELF.fingerprint)})


class Scripted:
    """An executor that returns or raises what it is told, trial by trial."""

    def __init__(self, *script: Outcome | Exception) -> None:
        self.script = list(script)
        self.weights: list[TeacherWeights] = []

    def train(self, cohort: Cohort, weights: TeacherWeights, observer: Observer) -> Iterator[Outcome]:
        self.weights.append(weights)
        for _ in cohort.trials:
            result = self.script.pop(0)
            if isinstance(result, Exception):
                raise result
            yield result


def run(folder: Path, executor: Scripted, plan: Plan) -> dict[str, tuple[str, str | None]]:
    store = Store(folder)
    run_plan(plan, store, executor, Checkpoints(folder / "checkpoints"), Quiet(), {})
    return {record.trial.method: (record.status, record.reason) for record in store.records()}


def test_whatever_breaks_every_trial_has_a_record(tmp_path: Path) -> None:
    plan = Plan((cohort(*STUDENTS),), (), ((replace(trial("crd"), teachers=TEACHERS), "no negatives"),))
    Store(tmp_path).save(Outcome(VANILLA.trials[0], "done", weights={}), {})
    executor = Scripted(Outcome(STUDENTS[0], "done", weights={}), RuntimeError("out of memory"))
    records = run(tmp_path, executor, plan)
    assert records["kd"] == ("done", None)
    assert records["icd"] == ("failed", "its cohort could not be trained: RuntimeError: out of memory")
    assert records["crd"] == ("n/a", "no negatives")
    assert executor.weights == [{TEACHERS[0].key: {}}]


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [
        (Outcome(VANILLA.trials[0], "diverged", "the loss was not finite"), "its teacher wrn_16_1 diverged: the loss"),
        (Outcome(VANILLA.trials[0], "done"), "its teacher wrn_16_1 has no weights: "),
        (None, "its teacher wrn_16_1 has no record"),
    ],
)
def test_students_of_a_missing_teacher_fail_with_its_reason(
    tmp_path: Path, teacher: Outcome | None, reason: str
) -> None:
    if teacher:
        Store(tmp_path).save(teacher, {})
    records = run(tmp_path, Scripted(), Plan((cohort(*STUDENTS),), (), ()))
    for name in ("kd", "icd"):
        assert records[name][0] == "failed"
        assert reason in (records[name][1] or "")


def test_a_missing_extra_teacher_is_left_to_its_trial(tmp_path: Path) -> None:
    """The executor trains the others; see tests/train/test_abilities.py for what the trial says."""
    Store(tmp_path).save(Outcome(VANILLA.trials[0], "done", weights={}), {})
    executor = Scripted(Outcome(STUDENTS[0], "done", weights={}), Outcome(WITH_ITSELF, "failed", "no such teacher"))
    run(tmp_path, executor, Plan((cohort(STUDENTS[0], WITH_ITSELF),), (), ()))
    assert executor.weights == [{TEACHERS[0].key: {}}]


def test_a_cohort_waits_for_its_teachers_and_extra_teachers() -> None:
    (work,) = _work([cohort(STUDENTS[0], WITH_ITSELF)])
    assert work.after == {VANILLA.trials[0].fingerprint, ITSELF.fingerprint}
    assert next(iter(_work([VANILLA]))).after == frozenset()


def test_a_full_disk_is_not_a_failed_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    Store(tmp_path).save(Outcome(VANILLA.trials[0], "done", weights={}), {})
    monkeypatch.setattr(Store, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, Scripted(Outcome(STUDENTS[0], "done")), Plan((cohort(*STUDENTS),), (), ()))
    assert len(list((tmp_path / "runs").glob("*.json"))) == 1
