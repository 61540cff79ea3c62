"""Run several jobs at once, each in a worker process of this machine that lives for the whole run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

from kdbench.core.checkpoint import CheckpointInterval
from kdbench.core.errors import Interrupted
from kdbench.core.events import Emit, JobPlaced
from kdbench.core.jobs import Job
from kdbench.data.dataset import Dataset
from kdbench.runner.executors.messages import STOP, Feed, Setup
from kdbench.runner.executors.worker_process import WorkerPool, WorkerProcess
from kdbench.runner.parallel import Parallel

_POLL = 0.2  # seconds between two looks at `stop` and at jobs that have become ready


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
        pool: WorkerPool | None = None,
    ) -> None:
        """`datasets` are those of the jobs, by their content; `checkpoints` is a folder, which workers only read.

        `pool` may have workers that were started before; all of them have ended after `run`.
        """
        self.parallel, self.stop, self.pool = parallel, stop, pool or WorkerPool()
        self.setup = Setup(
            device="",
            precision=precision,
            threads=parallel.threads,
            jobs=parallel.jobs,
            gpu_share=parallel.gpu_share,
            interval=interval,
            plugins=plugins,
            compiles=parallel.compiles,
        )
        self.datasets, self.checkpoints = pickle.dumps(dict(datasets), pickle.HIGHEST_PROTOCOL), checkpoints

    def run(self, jobs: Iterator[Job | None], emit: Emit) -> None:
        """See `kdbench.core.events.Executor`."""
        workers: list[WorkerProcess | None] = [None] * self.parallel.jobs
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
                        workers[workers.index(heard)] = None
        finally:
            self.pool.close()

    def _start(self, number: int) -> WorkerProcess:
        device = self.parallel.devices[number % len(self.parallel.devices)]
        worker = self.pool.take()
        worker.place = f"process {number + 1}" if device.type == "cpu" else str(device)
        worker.send(pickle.dumps(replace(self.setup, device=str(device)), pickle.HIGHEST_PROTOCOL))
        worker.send(self.datasets)
        worker.send(os.fsencode(self.checkpoints))
        return worker
