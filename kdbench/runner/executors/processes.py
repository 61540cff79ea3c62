"""Run several jobs at once, each in a worker process of this machine that lives for the whole run."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from kdbench.core.checkpoint import CheckpointInterval
from kdbench.core.errors import Interrupted
from kdbench.core.events import Emit, JobEnd, JobLost, JobPlaced, TrialEnd
from kdbench.core.jobs import Job
from kdbench.core.trial import Value
from kdbench.data.dataset import Dataset
from kdbench.runner.executors.messages import END, STOP, Feed, Log, Raised, Ready, Setup, Stopped, loader, receive
from kdbench.runner.parallel import Parallel

log = logging.getLogger("kdbench")

_POLL = 0.2  # seconds between two looks at `stop` and at jobs that have become ready
_ROOT = Path(__file__).resolve().parents[3]


class ProcessExecutor:
    """Runs jobs in worker processes, each of which has a device and its threads.

    A worker that dies is replaced, and its job is lost: the runner hands it out again. Workers end with their driver,
    however it ends.
    """

    def __init__(
        self,
        parallel: Parallel,
        precision: str,
        datasets: Mapping[str, Dataset],
        checkpoints: Path,
        interval: CheckpointInterval | None = None,
        plugins: Path | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`datasets` are those of the jobs, by their content; `checkpoints` is a folder, which workers only read."""
        self.parallel, self.stop = parallel, stop
        self.setup = Setup(
            device="",
            precision=precision,
            threads=parallel.threads,
            jobs=parallel.jobs,
            gpu_share=parallel.gpu_share,
            interval=interval,
            plugins=plugins,
        )
        self.datasets, self.checkpoints = pickle.dumps(dict(datasets), pickle.HIGHEST_PROTOCOL), checkpoints

    def run(self, jobs: Iterator[Job | None], emit: Emit) -> None:
        """See `kdbench.core.events.Executor`."""
        workers: list[_Worker | None] = [None] * self.parallel.jobs
        feed, stopping = Feed(jobs), False
        try:
            while True:
                if self.stop() and not stopping:
                    stopping, feed.more = True, False
                    for worker in filter(None, workers):
                        worker.send(STOP)
                idle = [number for number, worker in enumerate(workers) if not (worker and worker.job)]
                for number in idle:
                    if (job := feed.take()) is None:
                        break
                    workers[number] = worker = workers[number] or self._start(number)
                    worker.begin(job)
                    emit(JobPlaced(job, worker.place))
                busy = [worker for worker in workers if worker and worker.job]
                if not busy and stopping:
                    raise Interrupted
                if not busy and not feed.more:
                    return
                connections = {known.connection: known for known in busy}
                for connection in wait(list(connections), _POLL):
                    heard = connections[connection]  # type: ignore[index]
                    if not heard.receive(emit):
                        heard.end()
                        workers[workers.index(heard)] = None
        finally:
            for worker in filter(None, workers):
                worker.end()

    def _start(self, number: int) -> _Worker:
        device = self.parallel.devices[number % len(self.parallel.devices)]
        place = f"process {number + 1}" if device.type == "cpu" else str(device)
        worker = _Worker(replace(self.setup, device=str(device)), place)
        worker.send(self.datasets)
        worker.send(os.fsencode(self.checkpoints))
        return worker


@dataclass
class _Worker:
    """The driver's side of a worker process."""

    setup: Setup
    place: str
    job: Job | None = None
    environment: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.connection, theirs = Pipe()
        threads = {"OMP_NUM_THREADS": str(self.setup.threads)} if self.setup.threads else {}
        path = os.pathsep.join(dict.fromkeys([str(_ROOT), *filter(None, sys.path)]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kdbench.runner.executors.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path, **threads},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the driver alone, which stops its workers in an orderly way
        )
        theirs.close()
        self.read: Callable[[bytes], Any] = pickle.loads
        self.send(pickle.dumps(self.setup, pickle.HIGHEST_PROTOCOL))

    def begin(self, job: Job) -> None:
        self.job, self.read = job, loader(job)
        self.send(pickle.dumps(job, pickle.HIGHEST_PROTOCOL))

    def send(self, message: bytes) -> None:
        with suppress(OSError):  # the worker is dead, which its connection says when it is read
            self.connection.send_bytes(message)

    def receive(self, emit: Emit) -> bool:
        """Pass on what the worker has sent. False: it is gone, or has stopped. Raises what ends the run."""
        job, content = self.job, receive(self.connection)
        assert job is not None
        if content is None:
            self.job, code = None, self.process.wait()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            emit(JobLost(job, f"its process ended with {how}"))
            return False
        match self.read(content):
            case Ready(environment):
                self.environment = environment
            case Log(level, text):
                log.log(level, "%s", text)
            case Raised(error):
                raise error
            case Stopped():
                self.job = None
                return False
            case TrialEnd(outcome):
                emit(TrialEnd(outcome, self.environment))
            case JobEnd() as end:
                self.job = None
                emit(end)
            case event:
                emit(event)
        return True

    def end(self) -> None:
        """End the process: at once if it is at work, which it is after an error only."""
        self.send(END)
        self.connection.close()
        if self.job is not None:
            self.process.kill()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
