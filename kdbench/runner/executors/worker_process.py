"""The driver's side of worker processes. Loads no torch, so that they can be started before the driver has it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

from kdbench.core.events import Emit, JobLost
from kdbench.core.jobs import Job
from kdbench.plan.study import SMALL_PIXELS, RunOptions, StudyOptions
from kdbench.runner.executors.messages import END, Remote, receive

_ROOT = Path(__file__).resolve().parents[3]


class WorkerProcess(Remote):
    """A process that imports torch, then waits for its setup and for jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.place = ""
        self.connection, theirs = Pipe()
        path = os.pathsep.join(dict.fromkeys([str(_ROOT), *filter(None, sys.path)]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kdbench.runner.executors.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the driver alone, which stops its workers in an orderly way
        )
        theirs.close()

    def begin(self, job: Job) -> None:
        self.accept(job)
        self.send(pickle.dumps(job, pickle.HIGHEST_PROTOCOL))

    def send(self, message: bytes) -> None:
        with suppress(OSError):  # the worker is dead, which its connection says when it is read
            self.connection.send_bytes(message)

    def receive(self, emit: Emit) -> bool:
        """Pass on what the worker has sent. False: it is gone. Raises what ends the run."""
        if (content := receive(self.connection)) is not None:
            self.pass_on(content, emit)
            return True
        job, self.job, code = self.job, None, self.process.wait()
        assert job is not None
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        emit(JobLost(job, f"its process ended with {how}"))
        return False

    def end(self) -> None:
        """Let the process end, without waiting for it: at once if it is at work, which it is after an error only."""
        self.send(END)
        self.connection.close()  # which ends it too, wherever it is
        if self.job is not None:
            self.process.kill()

    def wait(self) -> None:
        """Wait until the process has ended."""
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class WorkerPool:
    """The worker processes of a command, some of which may be started before it is known how many are needed."""

    def __init__(self) -> None:
        self.spare: list[WorkerProcess] = []
        self.taken: list[WorkerProcess] = []

    def start(self, count: int) -> None:
        """Start processes that will be needed."""
        self.spare += [WorkerProcess() for _ in range(count)]

    def take(self) -> WorkerProcess:
        """A process that has not been set up: one that was started, or a new one."""
        worker = self.spare.pop() if self.spare else WorkerProcess()
        self.taken.append(worker)
        return worker

    def end_spare(self, keep: int = 0) -> None:
        """End those that are not needed."""
        while len(self.spare) > keep:
            self.taken.append(self.spare.pop())
            self.taken[-1].end()

    def close(self) -> None:
        """End all processes."""
        self.end_spare()
        for worker in self.taken:
            worker.end()
        while self.taken:
            self.taken.pop().wait()


MOST_EARLY = 8
"""Processes that are started before it is known how many are needed."""


def early_workers(study: StudyOptions, run: RunOptions) -> int:
    """How many workers to start before torch is loaded and the plan is made. Any number is right: what is missing is
    started later, what is not needed is ended.

    0 for what is probably one job (`resolve_parallel` decides later), or a study that has ended.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(threads) if threads.isdecimal() else os.cpu_count() or 1
    if run.jobs.isdecimal():
        count = int(run.jobs)
    elif study.epochs is not None or (study.size or 0) > SMALL_PIXELS:
        count = 1
    elif run.device != "cpu" and Path("/dev/nvidiactl").exists():
        count = 1  # a job for each GPU: torch counts them
    else:
        count = cores // max(1, run.threads or 1)
    ended = (run.out / "runs").is_dir() and not any((run.out / "checkpoints").glob("*.pt"))
    if count < 2 or ended or run.cluster or os.name != "posix":
        return 0
    return min(count, cores, MOST_EARLY)
