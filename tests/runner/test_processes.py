"""Jobs in several worker processes: the same results, whatever happens to a worker."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdbench.cli import run as cli_run
from kdbench.core.errors import DeviceLost, Interrupted, UserError
from kdbench.core.events import Checkpoint, EpochEnd, Event, JobLost, JobPlaced, StepEnd, TrialEnd
from kdbench.core.jobs import CohortJob
from kdbench.core.record import Outcome
from kdbench.core.trial import Cohort, Plan, Trial
from kdbench.plan.study import RunOptions, StudyOptions
from kdbench.results import Store
from kdbench.runner import parallel
from kdbench.runner.executors.messages import Raised, Remote
from kdbench.runner.executors.processes import ProcessExecutor
from kdbench.runner.executors.worker_process import WorkerPool, early_workers
from kdbench.runner.parallel import Parallel, Work, resolve_parallel, split_cohorts
from kdbench.runner.placement import Machine
from kdbench.runner.runner import DEATHS, run_jobs
from kdbench.train.checkpoint import Checkpoints
from tests.faults.fault_study import ROOT, Study
from tests.train.tiny_study import CPU, DATASET, cohort, equal, longer, network_state, run_cohort, trial

TEACHER = Outcome(trial("vanilla", arch="wrn_16_1", teacher=None), "done", weights=network_state("wrn_16_1"))
VANILLA = [longer(trial("vanilla", teacher=None, seed=seed), 12) for seed in (0, 1)]
TWO = Parallel(2, 1, (CPU,))


def executor(folder: Path, stop: Callable[[], bool] = lambda: False, parallel: Parallel = TWO) -> ProcessExecutor:
    return ProcessExecutor(parallel, "fp32", {DATASET.info.content: DATASET}, folder / "checkpoints", stop=stop)


def run(folder: Path, watch: Callable[[Event], None], *trials: Trial, stop: Callable[[], bool] = lambda: False) -> None:
    jobs = [CohortJob(cohort(each)) for each in trials]
    run_jobs(jobs, Store(folder), executor(folder, stop), Checkpoints(folder / "checkpoints"), watch, {}, stop=stop)


def outcomes(events: list[Event]) -> dict[int, Outcome]:
    """By seed."""
    found = [event.outcome for event in events if isinstance(event, TrialEnd)]
    return {outcome.trial.seed: outcome for outcome in found if isinstance(outcome, Outcome)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Outcome]:
    """In this process, with as many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        folder = tmp_path_factory.mktemp("undisturbed")
        return {each.seed: run_cohort(folder, cohort(each))[0] for each in VANILLA}
    finally:
        torch.set_num_threads(threads)


def workers() -> list[int]:
    """The processes that this one has started and that run."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text("ascii").split()
    return [int(pid) for pid in children if b"executors.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_equal_to_one_process(tmp_path: Path, undisturbed: dict[int, Outcome]) -> None:
    events: list[Event] = []
    run(tmp_path, events.append, *VANILLA)
    found = outcomes(events)
    assert all(equal(found[seed], undisturbed[seed]) for seed in (0, 1))
    ends = [event for event in events if isinstance(event, TrialEnd)]
    assert [dict(end.environment or {})["threads"] for end in ends] == [1, 1]
    records = Store(tmp_path).records()
    assert [record.environment["jobs"] for record in records] == [2, 2]
    assert {event.place for event in events if isinstance(event, JobPlaced)} == {"process 1", "process 2"}
    assert [event.epoch for event in events if isinstance(event, StepEnd) and event.step == event.steps]
    assert not workers()


def test_workers_that_were_started_early_train(tmp_path: Path, undisturbed: dict[int, Outcome]) -> None:
    pool = WorkerPool()
    pool.start(3)
    early = [worker.process.pid for worker in pool.spare]
    machine = Machine(RunOptions(jobs="2", threads=1, device="cpu"), pool)
    parallel = machine.divide(Work(2, 10**6), DATASET.info)
    assert [worker.process.pid for worker in pool.spare] == early[:2]
    events, used = list[Event](), set[int]()

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, EpochEnd):
            used.update(workers())

    checkpoints = Checkpoints(tmp_path / "checkpoints")
    trains = machine.executor(parallel, "fp32", {DATASET.info.content: DATASET}, checkpoints, None, lambda: False)
    run_jobs([CohortJob(cohort(each)) for each in VANILLA], Store(tmp_path), trains, checkpoints, watch, {})
    assert used
    assert used <= set(early)
    assert all(equal(outcomes(events)[seed], undisturbed[seed]) for seed in (0, 1))
    assert not workers()


def test_one_job_needs_no_worker() -> None:
    pool = WorkerPool()
    pool.start(2)
    started = [worker.process.pid for worker in pool.spare]
    machine = Machine(RunOptions(jobs="1", device="cpu"), pool)
    machine.divide(Work(2, 10**6), DATASET.info)
    assert not pool.spare
    machine.close()
    assert not any(_lives(str(pid)) for pid in started)


@pytest.mark.parametrize(
    ("options", "study", "count"),
    [
        ({}, {}, 4),
        ({"threads": 2}, {}, 2),
        ({"jobs": "1"}, {}, 0),
        ({"jobs": "3"}, {"epochs": 1}, 3),
        ({"jobs": "40"}, {}, 4),
        ({"jobs": "many"}, {}, 4),
        ({"cluster": "auto"}, {}, 0),
        ({}, {"epochs": 1}, 0),
        ({}, {"size": 224}, 0),
    ],
)
def test_workers_start_early_where_there_will_be_several(
    options: dict[str, object], study: dict[str, int], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    run = RunOptions(out=tmp_path, device="cpu", **options)  # type: ignore[arg-type]
    assert early_workers(StudyOptions(**study), run) == count  # type: ignore[arg-type]
    (tmp_path / "runs").mkdir()
    assert early_workers(StudyOptions(**study), run) == 0  # type: ignore[arg-type]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "interrupted.pt").touch()
    assert early_workers(StudyOptions(**study), run) == count  # type: ignore[arg-type]


def test_bad_input_leaves_no_worker_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    start = WorkerPool.start

    def watched(self: WorkerPool, count: int) -> None:
        start(self, count)
        started.extend(worker.process.pid for worker in self.spare)

    monkeypatch.setattr(WorkerPool, "start", watched)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    words = ["--methods", "nonsense", "--dataset", "digits", "--jobs", "2", "--out", str(tmp_path)]
    with pytest.raises(UserError, match="nonsense"):
        cli_run.main(cli_run.build_parser().parse_args(words))
    assert len(started) == 2
    assert not any(_lives(str(pid)) for pid in started)


def test_a_killed_worker_loses_no_epoch_that_had_ended(tmp_path: Path, undisturbed: dict[int, Outcome]) -> None:
    events, epochs = list[Event](), list[tuple[int, int]]()

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, EpochEnd):
            epochs.append((event.job.items[0].seed, event.epoch))
            if event.epoch == 3 and not any(isinstance(event, JobLost) for event in events):
                os.kill(workers()[0], signal.SIGKILL)

    run(tmp_path, watch, VANILLA[0])
    lost = [event for event in events if isinstance(event, JobLost)]
    assert len(lost) == 1
    assert "SIGKILL" in lost[0].reason
    assert equal(outcomes(events)[0], undisturbed[0])
    assert epochs.count((0, 3)) == 1  # the checkpoint was written before its epoch was told


_A_DEVICE_FAILS_ONCE = """
from pathlib import Path
from kdbench.train import cohort

original, mark = cohort.Student.step, Path({mark!r})

def step(self, inputs):
    if not mark.exists():
        mark.touch()
        cohort.answers = lambda device: False
        raise RuntimeError("CUDA error: device-side assert triggered")
    original(self, inputs)

cohort.Student.step = step
"""


def test_a_worker_whose_device_failed_is_replaced(tmp_path: Path) -> None:
    """The student at whose work it showed has failed, the other one goes on in another process."""
    plugin, events = tmp_path / "breaks.py", list[Event]()
    plugin.write_text(_A_DEVICE_FAILS_ONCE.format(mark=str(tmp_path / "failed")), "utf-8")
    both = cohort(*(trial("vanilla", arch=arch, teacher=None) for arch in ("resnet8", "resnet14")))
    datasets, checkpoints = {DATASET.info.content: DATASET}, Checkpoints(tmp_path / "checkpoints")
    one = ProcessExecutor(Parallel(1, 1, (CPU,)), "fp32", datasets, checkpoints.folder, plugins=plugin)
    run_jobs([CohortJob(both)], Store(tmp_path), one, checkpoints, events.append, {})
    records = {record.trial.arch: record for record in Store(tmp_path).records()}
    assert {arch: record.status for arch, record in records.items()} == {"resnet8": "failed", "resnet14": "done"}
    assert "the device failed, maybe at another student's work" in (records["resnet8"].reason or "")
    assert [event.reason for event in events if isinstance(event, JobLost)] == ["its process ended with exit code 1"]


def test_a_job_whose_device_failed_elsewhere_is_lost() -> None:
    remote, events = Remote(), list[Event]()
    remote.accept(CohortJob(cohort(VANILLA[0])))
    remote.pass_on(pickle.dumps(Raised(DeviceLost("cuda:0 has failed"))), events.append)
    assert remote.job is None
    assert [event.reason for event in events if isinstance(event, JobLost)] == ["cuda:0 has failed"]


def test_what_dies_again_and_again_fails_alone(tmp_path: Path, undisturbed: dict[int, Outcome]) -> None:
    """A cohort of two whose worker dies before the first epoch is tried apart in the end."""
    store = Store(tmp_path)
    store.save(TEACHER, {})
    source = replace(trial("kd").teachers[0], trial=TEACHER.trial.fingerprint)
    fatal, harmless = (replace(longer(trial(name), 1), teachers=(source,)) for name in ("kd", "icd"))
    placed: list[list[str]] = []
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, JobPlaced):
            placed.append([item.method for item in event.job.items if isinstance(item, Trial)])
            if "kd" in placed[-1]:
                os.kill(workers()[0], signal.SIGKILL)

    one = executor(tmp_path, parallel=Parallel(1, 1, (CPU,)))
    run_jobs([CohortJob(cohort(fatal, harmless))], store, one, Checkpoints(tmp_path / "checkpoints"), watch, {})
    assert placed == [["kd", "icd"]] * DEATHS + [["kd"], ["icd"]]
    records = {record.trial.method: record for record in store.records()}
    assert records["icd"].status == "done"
    assert records["kd"].status == "failed"
    assert (
        records["kd"].reason == f"it was lost {DEATHS} times, the last time since its process ended with signal SIGKILL"
    )


def test_an_orderly_stop_keeps_the_step(tmp_path: Path, undisturbed: dict[int, Outcome]) -> None:
    seen: list[Event] = []

    def stop() -> bool:
        return len([event for event in seen if isinstance(event, EpochEnd)]) >= 3

    with pytest.raises(Interrupted):
        run(tmp_path, seen.append, *VANILLA, stop=stop)
    assert not workers()
    assert not Store(tmp_path).records()
    begun = {event.id for event in seen if isinstance(event, Checkpoint)}
    assert {path.stem for path in (tmp_path / "checkpoints").glob("*.pt")} == begun
    again: list[Event] = []
    run(tmp_path, again.append, *VANILLA)
    assert all(equal(outcomes(again)[seed], undisturbed[seed]) for seed in (0, 1))
    ended = [(event.job.items[0].id, event.epoch) for event in seen + again if isinstance(event, EpochEnd)]
    assert len(ended) == len(set(ended)) == 24  # no epoch that had ended was trained again


def test_what_a_consumer_raises_ends_the_workers(tmp_path: Path) -> None:
    class FullDisk(Exception):
        pass

    def watch(event: Event) -> None:
        if isinstance(event, EpochEnd):
            raise FullDisk

    with pytest.raises(FullDisk):
        run(tmp_path, watch, *VANILLA)
    assert not workers()


def test_workers_with_other_code_are_refused(tmp_path: Path) -> None:
    store, checkpoints = Store(tmp_path), Checkpoints(tmp_path / "checkpoints")
    store.save(TEACHER, {})
    source = replace(trial("kd").teachers[0], trial=TEACHER.trial.fingerprint)
    edited = replace(trial("kd"), teachers=(source,), code="edited")
    with pytest.raises(UserError, match="code of kd is another"):
        run_jobs([CohortJob(cohort(edited))], store, executor(tmp_path), checkpoints, print, {})


def test_workers_end_with_their_driver(tmp_path: Path) -> None:
    words = ["--methods", "kd", "--pairs", "wrn_16_2:resnet8", "--dataset", "digits", "--seeds", "2", "--epochs", "60"]
    study = Study(tmp_path, [*words, "--jobs", "2"])
    driver = study.start()
    children: list[str] = []
    while len(list(study.out.glob("checkpoints/*.pt"))) < 2:
        assert driver.poll() is None
        children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text("ascii").split()
        time.sleep(0.05)
    started = time.monotonic()
    driver.kill()
    driver.wait()
    assert len(children) == 2
    while any(_lives(pid) for pid in children):
        assert time.monotonic() - started < 5
        time.sleep(0.05)


def _lives(pid: str) -> bool:
    """Whether the process runs; one that nobody waits for stays as a zombie."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text("ascii")
    except OSError:
        return False


def work(*trials: Trial) -> Work:
    return Work.of(Plan((cohort(*trials),), (), ()))


@pytest.mark.parametrize(
    ("options", "jobs", "threads"),
    [
        ({}, 8, 1),
        ({"threads": 2}, 4, 2),
        ({"jobs": "1"}, 1, None),
        ({"jobs": "3"}, 3, 2),
        ({"jobs": "3", "threads": 1}, 3, 1),
    ],
)
def test_cores_are_divided(
    options: dict[str, object], jobs: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(parallel, "_memory", lambda: 1e12)
    study = work(*(longer(trial("vanilla", teacher=None, seed=seed), 300) for seed in range(20)))
    found = resolve_parallel(RunOptions(**options), CPU, study, DATASET.info)  # type: ignore[arg-type]
    assert (found.jobs, found.threads) == (jobs, threads)


def test_auto_is_one_job_where_more_do_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(parallel, "_memory", lambda: 1e12)
    trials = [longer(trial("vanilla", teacher=None, seed=seed), 300) for seed in range(20)]
    run = RunOptions()
    assert resolve_parallel(run, CPU, work(*trials), DATASET.info).jobs == 8
    assert resolve_parallel(run, CPU, work(*trials[:3]), DATASET.info).jobs == 3
    short = work(*(longer(each, 1) for each in trials))
    assert resolve_parallel(run, CPU, short, DATASET.info).jobs == 1
    assert resolve_parallel(run, CPU, work(*trials), replace(DATASET.info, size=224)).jobs == 1
    assert resolve_parallel(run, CPU, work(*trials), DATASET.info, own_process=True).jobs == 1
    monkeypatch.setattr(parallel, "_memory", lambda: 2.5 * parallel.JOB_BYTES)
    assert resolve_parallel(run, CPU, work(*trials), DATASET.info).jobs == 2


@pytest.mark.parametrize(
    ("options", "devices", "jobs", "share"),
    [
        ({}, 4, 4, 1.0),
        ({"gpus_per_job": 0.5}, 4, 8, 0.5),
        ({"jobs": "2"}, 2, 2, 1.0),
        ({"jobs": "6"}, 4, 6, 0.5),
        ({"device": "cuda:1"}, 1, 1, 1.0),
    ],
)
def test_gpus_are_dealt_out(
    options: dict[str, object], devices: int, jobs: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    study = work(*(trial("vanilla", teacher=None, seed=seed) for seed in range(20)))
    first = torch.device(str(options.get("device", "cuda:0")))
    found = resolve_parallel(RunOptions(**options), first, study, DATASET.info)  # type: ignore[arg-type]
    assert (len(found.devices), found.jobs, found.gpu_share) == (devices, jobs, share)


@pytest.mark.parametrize(
    ("options", "device", "sentence"),
    [
        ({"jobs": "many"}, "cpu", "neither auto nor a whole number"),
        ({"jobs": "0"}, "cpu", "neither auto nor a whole number"),
        ({"jobs": "4000"}, "cpu", "must be at most"),
        ({"gpus_per_job": 0.5}, "cpu", "needs a CUDA device"),
        ({"gpus_per_job": 2.0}, "cuda", "above 0 and at most 1"),
        ({"gpus_per_job": 0.5, "jobs": "9"}, "cuda", "needs more than"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, object], device: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve_parallel(
            RunOptions(**options),  # type: ignore[arg-type]
            torch.device(device, 0) if device == "cuda" else CPU,
            work(*VANILLA),
            DATASET.info,
        )


def test_cohorts_are_split_where_workers_would_be_idle() -> None:
    vanilla = cohort(*(trial("vanilla", teacher=None, arch=arch) for arch in ("resnet8", "resnet14", "wrn_16_1")))
    taught = cohort(*map(trial, ("kd", "icd", "crd", "sp", "cc")))

    def sizes(cohorts: list[Cohort], parts: int) -> list[int]:
        jobs = split_cohorts(cohorts, parts)
        names = sorted(item.id for job in jobs for item in job.items)
        assert names == sorted(item.id for each in cohorts for item in each.trials)
        return [len(job.items) for job in jobs]

    assert sizes([vanilla, taught], 1) == [3, 5]
    assert sizes([vanilla, taught], 2) == [1, 1, 1, 3, 2]
    assert sizes([vanilla, taught, replace(taught, seed=1)], 2) == [1, 1, 1, 5, 5]
    assert sizes([taught], 9) == [1, 1, 1, 1, 1]


def test_a_method_of_this_session_needs_one_job(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import kdbench\n"
        "from kdbench.distill import Distiller, Hyper\n"
        "@kdbench.register('mine', Hyper, paper='none')\n"
        "class Mine(Distiller):\n"
        "    def losses(self, step):\n"
        "        return {}\n"
        f"kdbench.run(methods='mine', pairs='wrn_16_2:resnet8', dataset='digits', out={str(tmp_path)!r}, jobs=2)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "UserError: --jobs: a method that was registered in this process is not known to other pro" in done.stderr
