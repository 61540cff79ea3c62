"""Several processes on one results folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.core.errors import UserError
from kdbench.core.events import Event, TrialEnd, Waiting
from kdbench.core.files import DiskError
from kdbench.core.jobs import CohortJob, ProbeJob
from kdbench.core.record import Outcome
from kdbench.results import Store
from kdbench.runner.executors.local import LocalExecutor
from kdbench.runner.locks import TrialLocks
from kdbench.runner.runner import run_jobs
from kdbench.train.checkpoint import Checkpoints
from tests.analysis import tiny_probes
from tests.faults.fault_study import ROOT, Study, end, written
from tests.train import tiny_study

WORDS = ["--methods", "kd,sp", "--pairs", "wrn_16_2:resnet8", "--dataset", "digits", "--threads", "1"]


def holds_a_lock(process: subprocess.Popen[str]) -> bool:
    """Whether the process has an open lock file; a process opens one only to hold it."""
    links = Path(f"/proc/{process.pid}/fd").iterdir()
    return any("/locks/" in os.readlink(link) for link in links if link.is_symlink())


@pytest.mark.parametrize("doomed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_four_at_once_do_everything_once(tmp_path: Path, doomed: bool) -> None:
    alone = Study(tmp_path / "alone", [*WORDS, "--seeds", "2", "--epochs", "3"])
    together = Study(tmp_path / "together", alone.words)
    log = tmp_path / "log"
    processes = [together.start({"log": str(log)}) for _ in range(4)]
    if doomed:
        while not list(together.out.glob("checkpoints/*.pt")):
            time.sleep(0.01)
        victim = next(process for process in processes if holds_a_lock(process))
        end(victim)
        processes.remove(victim)
    printed = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), printed
    alone.run()
    assert together.trials() == alone.trials()
    assert together.files() == alone.files()
    writes = written(log)
    assert len(writes) == 7
    assert set(writes.values()) == {1}
    assert all("7 trials" in text and "Top-1 accuracy (%)" in text for text in printed)


LOCKER = """
import sys, time
from pathlib import Path
from kdbench.runner.locks import TrialLocks
locks = TrialLocks(Path(sys.argv[1]))
assert all(locks.acquire(name) for name in sys.argv[2:])
print("locked", flush=True)
time.sleep(600)
"""


@contextmanager
def other_process(folder: Path, *names: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the locks of these names."""
    command = [sys.executable, "-c", LOCKER, str(folder), *names]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    end(process)


def test_a_lock_belongs_to_one_process_and_ends_with_it(tmp_path: Path) -> None:
    locks = TrialLocks(tmp_path)
    assert locks.acquire("mine")
    assert locks.acquire("mine")
    with other_process(tmp_path, "a", "b") as process:
        assert not locks.acquire("a")
        assert locks.acquire("c")
        process.kill()
        process.wait()
        started = time.monotonic()
        while not locks.acquire("a"):
            assert time.monotonic() - started < 5
        assert locks.acquire("b")
    locks.release_all()
    with other_process(tmp_path, "mine", "a", "b", "c"):
        assert not any(map(locks.acquire, ("mine", "a", "b", "c")))


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", no_flock)
    with pytest.raises((UserError, DiskError), match="locks"):
        TrialLocks(tmp_path).acquire("a")


def test_what_another_process_trains_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finishes one trial, and dies in the other: only that is trained here."""
    monkeypatch.setattr("kdbench.runner.runner._POLL", 0.02)
    students = [tiny_study.trial("vanilla", teacher=None, seed=seed) for seed in (0, 1)]
    store, waited = Store(tmp_path), list[int]()
    jobs = [CohortJob(tiny_study.cohort(student)) for student in students]
    with other_process(tmp_path, *(student.fingerprint for student in students)) as process:

        def watch(event: Event) -> None:
            if isinstance(event, Waiting):
                waited.append(event.items)
                if len(waited) == 1:
                    store.save(Outcome(students[0], "done", weights={}), {})
                    process.kill()
                    process.wait()

        checkpoints = Checkpoints(tmp_path / "checkpoints")
        executor = LocalExecutor({tiny_study.DATASET.info.content: tiny_study.DATASET}, tiny_study.CPU, checkpoints)
        trained: list[str] = []

        def note(event: Event) -> None:
            watch(event)
            if isinstance(event, TrialEnd):
                trained.append(event.outcome.item.fingerprint)

        run_jobs(jobs, store, executor, checkpoints, note, {})
    assert waited[0] == 2
    assert trained == [students[1].fingerprint]
    assert {record.trial.fingerprint for record in store.records()} == {student.fingerprint for student in students}


def test_a_probe_without_weights_does_not_make_the_waiting_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at once; what another process has is then waited for, with a pause between two looks."""
    monkeypatch.setattr("kdbench.runner.runner._POLL", 0.02)
    store = Store(tmp_path)
    source = tiny_study.trial("kd")
    record = store.save(Outcome(source, "done", weights=tiny_study.network_state("resnet8")), {})
    good = replace(tiny_probes.linear_probe(), source=source, weights=record.weights_sha256 or "")
    lacking = replace(good, weights="0" * 64)
    elsewhere = replace(good, lr=0.01)
    waited = list[int]()
    with other_process(tmp_path, elsewhere.fingerprint) as process:

        def watch(event: Event) -> None:
            if isinstance(event, Waiting):
                waited.append(event.items)
                process.kill()
                process.wait()

        datasets = {tiny_probes.TARGET.info.content: tiny_probes.TARGET}
        executor = LocalExecutor(datasets, tiny_study.CPU, Checkpoints(tmp_path / "checkpoints"))
        jobs = [ProbeJob((lacking, good, elsewhere))]
        run_jobs(jobs, store, executor, Checkpoints(tmp_path / "checkpoints"), watch, {})
    assert waited[0] == 1
    statuses = {record.probe.fingerprint: record.status for record in store.probe_records()}
    assert statuses == {lacking.fingerprint: "failed", good.fingerprint: "done", elsewhere.fingerprint: "done"}
