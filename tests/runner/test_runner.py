"""Every trial of a plan ends in a record, whatever breaks."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdbench.cli import status
from kdbench.core.errors import Interrupted
from kdbench.core.events import Emit, EpochEnd, Executor, JobEnd, JobLost, JobPlaced, JobQueued, TrialEnd
from kdbench.core.jobs import CohortJob, Job, ProbeJob
from kdbench.core.record import EpochMetrics, Outcome, ProbeOutcome, failed
from kdbench.core.trial import SELF, TeacherSource
from kdbench.plan.estimate import format_duration
from kdbench.results import Store
from kdbench.results.plan_file import begin_rerun, end_rerun, write_plan
from kdbench.runner.executors.local import LocalExecutor
from kdbench.runner.locks import Reached, TrialLocks
from kdbench.runner.runner import remove_checkpoints, run_jobs
from kdbench.train.checkpoint import Checkpoints, serialize
from tests.analysis.tiny_probes import linear_probe
from tests.train.tiny_study import CPU, DATASET, Quiet, cohort, network_state, trial

VANILLA = cohort(trial("vanilla", arch="wrn_16_1", teacher=None))
ITSELF = trial("vanilla", teacher=None)
TEACHERS = (TeacherSource("wrn_16_1", trial=VANILLA.trials[0].fingerprint),)
STUDENTS = [replace(trial(name), teachers=TEACHERS) for name in ("kd", "icd")]
WITH_ITSELF = replace(STUDENTS[1], extra_teachers={SELF: TeacherSource("resnet8", trial=ITSELF.fingerprint)})


class Scripted:
    """An executor that emits or raises what it is told, trial by trial."""

    def __init__(self, *script: Outcome | ProbeOutcome | Exception) -> None:
        self.script = list(script)
        self.jobs: list[Job] = []

    def run(self, jobs: Iterator[Job | None], emit: Emit) -> None:
        for job in jobs:
            assert job is not None
            self.jobs.append(job)
            for _ in job.items:
                result = self.script.pop(0)
                if isinstance(result, Exception):
                    raise result
                emit(TrialEnd(result))
            emit(JobEnd(job))


def run(
    folder: Path, executor: Executor, *jobs: Job, known: Sequence[Outcome] = ()
) -> dict[str, tuple[str, str | None]]:
    store = Store(folder)
    run_jobs(jobs, store, executor, Checkpoints(folder / "checkpoints"), Quiet(), {}, known=known)
    return {record.trial.method: (record.status, record.reason) for record in store.records()}


def test_whatever_breaks_every_trial_has_a_record(tmp_path: Path) -> None:
    known = [Outcome(replace(trial("crd"), teachers=TEACHERS), "n/a", "no negatives")]
    Store(tmp_path).save(Outcome(VANILLA.trials[0], "done", weights={}), {})  # weights of another architecture
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    executor = LocalExecutor({DATASET.info.content: DATASET}, CPU, checkpoints)
    records = run(tmp_path, executor, CohortJob(cohort(*STUDENTS)), known=known)
    for name in ("kd", "icd"):
        status, reason = records[name]
        assert status == "failed"
        assert (reason or "").startswith("its cohort could not be trained: RuntimeError: ")
    assert records["crd"] == ("n/a", "no negatives")
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_a_lost_job_runs_again_without_the_trials_that_ended(tmp_path: Path) -> None:
    class Forgetful(Scripted):
        def run(self, jobs: Iterator[Job | None], emit: Emit) -> None:
            first = next(jobs)
            assert first is not None
            self.jobs.append(first)
            emit(TrialEnd(self.script.pop(0)))  # type: ignore[arg-type]
            emit(JobLost(first, "its machine is gone"))
            super().run(jobs, emit)

    Store(tmp_path).save(Outcome(VANILLA.trials[0], "done", weights={}), {})
    executor = Forgetful(*(Outcome(student, "done", weights={}) for student in STUDENTS))
    records = run(tmp_path, executor, CohortJob(cohort(*STUDENTS)))
    assert records["kd"] == records["icd"] == ("done", None)
    assert [[item.fingerprint for item in job.items] for job in executor.jobs] == [
        [student.fingerprint for student in STUDENTS],
        [STUDENTS[1].fingerprint],
    ]


def test_a_probe_whose_network_is_damaged_fails_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for student in STUDENTS:
        store.save(Outcome(student, "done", weights={"network.weight": torch.zeros(1)}), {})
    digests = {record.trial.fingerprint: record.weights_sha256 or "" for record in store.records()}
    probes = [replace(linear_probe(), source=student, weights=digests[student.fingerprint]) for student in STUDENTS]
    (damaged,) = (tmp_path / "runs").glob("*icd*.pt")
    damaged.write_bytes(b"nonsense")
    executor = Scripted(ProbeOutcome(probes[0], "done", top1=50.0))
    run(tmp_path, executor, ProbeJob(tuple(probes)))
    records = {record.probe.fingerprint: record for record in store.probe_records()}
    assert records[probes[0].fingerprint].top1 == 50.0
    assert records[probes[1].fingerprint].status == "failed"
    assert "is damaged" in (records[probes[1].fingerprint].reason or "")
    assert [set(job.weights) for job in executor.jobs] == [{probes[0].fingerprint}]


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
    records = run(tmp_path, Scripted(), CohortJob(cohort(*STUDENTS)))
    for name in ("kd", "icd"):
        assert records[name][0] == "failed"
        assert reason in (records[name][1] or "")


def test_a_missing_extra_teacher_is_left_to_its_trial(tmp_path: Path) -> None:
    """The executor trains the others; see tests/train/test_abilities.py for what the trial says."""
    Store(tmp_path).save(Outcome(VANILLA.trials[0], "done", weights={}), {})
    executor = Scripted(Outcome(STUDENTS[0], "done", weights={}), Outcome(WITH_ITSELF, "failed", "no such teacher"))
    run(tmp_path, executor, CohortJob(cohort(STUDENTS[0], WITH_ITSELF)))
    assert [job.weights for job in executor.jobs] == [{TEACHERS[0].key: {}}]


def test_a_cohort_waits_for_its_teachers_and_extra_teachers(tmp_path: Path) -> None:
    job = CohortJob(cohort(STUDENTS[0], WITH_ITSELF))
    assert job.after == {VANILLA.trials[0].fingerprint, ITSELF.fingerprint}
    assert CohortJob(VANILLA).after == frozenset()
    outcomes = [Outcome(item, "done", weights={}) for item in (VANILLA.trials[0], STUDENTS[0])]
    executor = Scripted(*outcomes)
    run(tmp_path, executor, CohortJob(cohort(STUDENTS[0])), CohortJob(VANILLA))
    assert [job.items[0].fingerprint for job in executor.jobs] == [item.trial.fingerprint for item in outcomes]


def test_a_full_disk_is_not_a_failed_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    Store(tmp_path).save(Outcome(VANILLA.trials[0], "done", weights={}), {})
    monkeypatch.setattr(Store, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, Scripted(Outcome(STUDENTS[0], "done")), CohortJob(cohort(*STUDENTS)))
    assert len(list((tmp_path / "runs").glob("*.json"))) == 1


def test_a_probe_of_other_weights_than_were_chosen_fails(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(Outcome(STUDENTS[0], "done", weights={"network.weight": torch.zeros(1)}), {})
    run(tmp_path, Scripted(), ProbeJob((replace(linear_probe(), source=STUDENTS[0], weights="0" * 64),)))
    (record,) = store.probe_records()
    assert record.status == "failed"
    assert "has been trained again" in (record.reason or "")


def test_the_checkpoint_of_a_trial_that_another_process_trains_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for student in STUDENTS:
        checkpoints.save(student.id, serialize({}))
    holder = TrialLocks(tmp_path)
    assert holder.acquire(STUDENTS[0].fingerprint)
    remove_checkpoints(STUDENTS, checkpoints, tmp_path)
    assert [checkpoints.exists(student.id) for student in STUDENTS] == [True, False]


def test_a_job_that_waits_for_a_machine_is_not_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    write_plan(tmp_path, STUDENTS)

    class Queue(Scripted):
        def run(self, jobs: Iterator[Job | None], emit: Emit) -> None:
            job = next(jobs)
            assert job is not None
            for event in (JobQueued(job), JobPlaced(job, "node, cpu"), JobQueued(job)):
                emit(event)
                status.main(Namespace(out=tmp_path))
                said.append(capsys.readouterr().out.splitlines()[0])
            raise Interrupted

    state = network_state("wrn_16_1")
    Store(tmp_path).save(Outcome(VANILLA.trials[0], "done", weights=state), {})
    with pytest.raises(Interrupted):
        run(tmp_path, Queue(), CohortJob(cohort(*STUDENTS)))
    assert said == ["2 trials: 2 waiting", "2 trials: 2 running", "2 trials: 2 waiting"]
    holder = TrialLocks(tmp_path)
    holder.mark_queued(STUDENTS[0].fingerprint, True)  # as a process that was killed leaves it
    assert holder.acquire(STUDENTS[0].fingerprint)
    status.main(Namespace(out=tmp_path))
    assert capsys.readouterr().out.startswith("2 trials: 1 running, 1 waiting")


def test_a_status_says_how_far_trials_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a pair's students share counts once, and no estimate is shorter than the longest trial."""
    recipe = replace(STUDENTS[0].recipe, epochs=100)
    networks = [replace(trial("vanilla", teacher=None, seed=seed), recipe=recipe) for seed in range(3)]
    students = [replace(student, recipe=recipe) for student in STUDENTS]
    metrics = EpochMetrics(25, 0.05, {"ce": 1.0}, 50.0, 90.0, 3.0, 1.0)
    said: list[str] = []

    class Training(Scripted):
        def run(self, jobs: Iterator[Job | None], emit: Emit) -> None:
            job = next(jobs)
            assert job is not None
            emit(EpochEnd(job, 25, 1, {job.items[0].id: metrics}))
            for many in (1, 2, 8):
                write_plan(tmp_path, planned, many)
                status.main(Namespace(out=tmp_path))
                said.extend(capsys.readouterr().out.splitlines())
            for item in job.items:
                emit(TrialEnd(failed(item, "for this test")))
            assert TrialLocks(tmp_path).reached(job.items[0].fingerprint) is None
            raise Interrupted

    def left(seconds: float, jobs: int) -> str:
        beside = f" with {jobs} jobs side by side" if jobs > 1 else ""
        return f"left, by one command{beside}: about {format_duration(seconds)}"

    planned = networks
    with pytest.raises(Interrupted):
        run(tmp_path, Training(), *(CohortJob(cohort(network)) for network in networks))
    running = ["3 trials: 1 running, 2 waiting", f"  running: {networks[0].pair} vanilla, seed 0, epoch 25/100"]
    assert said == [*running, left(275 * 4, 1), *running, left(275 * 4 / 2, 2), *running, left(100 * 4, 8)]

    said.clear()
    planned = students
    state = network_state("wrn_16_1")
    Store(tmp_path).save(Outcome(VANILLA.trials[0], "done", weights=state), {})
    with pytest.raises(Interrupted):
        run(tmp_path, Training(), CohortJob(cohort(*students)))
    assert [line for line in said if line.startswith("left")] == [
        left(75 * 3 + 100 * 3 + 100 * 1, 1),
        left(100 * 4, 2),
        left(100 * 4, 8),
    ]


@pytest.mark.parametrize("content", ["", "5", "5 1 2 3", "x 1 2", "5 nan 1", "5 -1 1", "5 inf 1"])
def test_a_damaged_mark_tells_nothing(tmp_path: Path, content: str) -> None:
    locks = TrialLocks(tmp_path)
    assert locks.acquire("trial")
    (locks.folder / "trial.epoch").write_text(content)
    assert locks.reached("trial") is None


def test_what_a_dead_process_told_of_an_epoch_without_a_checkpoint_is_forgotten(tmp_path: Path) -> None:
    (network,) = VANILLA.trials
    before = TrialLocks(tmp_path)
    assert before.acquire(network.fingerprint)
    before.mark_epoch(network.fingerprint, Reached(90, 1.0, 1.0))
    before.release_all()

    class Looking(Scripted):
        def run(self, jobs: Iterator[Job | None], emit: Emit) -> None:
            assert next(jobs) is not None
            assert TrialLocks(tmp_path).reached(network.fingerprint) is None
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tmp_path, Looking(), CohortJob(VANILLA))


def test_the_first_of_two_commands_hears_of_the_second(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vanilla = [trial("vanilla", teacher=None, seed=seed) for seed in range(4)]
    other = TrialLocks(tmp_path)
    said: list[int] = []

    class Beside(Scripted):
        def run(self, jobs: Iterator[Job | None], emit: Emit) -> None:
            for job in jobs:
                assert job is not None
                said.append(len(caplog.records))
                other.acquire("another command's trial")
                for item in job.items:
                    emit(TrialEnd(failed(item, "for this test")))

    jobs = [CohortJob(cohort(each)) for each in vanilla]
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    run_jobs(jobs, Store(tmp_path), Beside(), checkpoints, Quiet(), {}, company="two of them")
    assert said == [0, 1, 1, 1]
    assert [record.message for record in caplog.records] == ["two of them"]


def test_an_interrupted_rerun_continues_where_it_was(tmp_path: Path) -> None:
    """What was trained again before the interruption is not trained a third time."""
    store = Store(tmp_path)
    for student in STUDENTS:
        store.save(Outcome(student, "done", weights={}), {})
    time.sleep(0.01)
    begun = begin_rerun(tmp_path, ["done"])
    assert store.completed(frozenset({"done"}), since=begun) == frozenset()
    time.sleep(0.01)
    store.save(Outcome(STUDENTS[0], "done", weights={}), {})
    assert begin_rerun(tmp_path, ["done"]) == begun
    assert store.completed(frozenset({"done"}), since=begun) == {STUDENTS[0].fingerprint}
    assert begin_rerun(tmp_path, ["done", "failed"]) != begun
    end_rerun(tmp_path)
    assert begin_rerun(tmp_path, []) is None
    assert not (tmp_path / "rerun.json").exists()
