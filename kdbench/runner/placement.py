"""Where the jobs of a command run: on this machine, in one process or in several, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from kdbench.core.checkpoint import CheckpointInterval
from kdbench.core.data import DataInfo
from kdbench.core.events import Executor
from kdbench.data.dataset import Dataset
from kdbench.plan.parsing import check_threads
from kdbench.plan.study import RunOptions
from kdbench.runner.executors.local import LocalExecutor
from kdbench.runner.executors.processes import ProcessExecutor
from kdbench.runner.executors.worker_process import WorkerPool
from kdbench.runner.parallel import Parallel, Work, resolve_parallel
from kdbench.train.checkpoint import Checkpoints
from kdbench.train.device import resolve_device


class Placement(Protocol):
    """What a command asks of the place where its jobs run."""

    @property
    def device(self) -> torch.device:
        """Of this process."""

    @property
    def job_device(self) -> torch.device:
        """Of the jobs, as far as their precision depends on it."""

    def divide(self, work: Work, data: DataInfo, *, by_hand: bool = False) -> Parallel:
        """How many jobs run at a time, and what each of them has. Raises UserError.

        `by_hand`: some methods are known to this process only.
        """

    def describe(self, parallel: Parallel) -> list[str]:
        """What a person is told of it, line by line."""

    def executor(
        self,
        parallel: Parallel,
        precision: str,
        datasets: Mapping[str, Dataset],
        checkpoints: Checkpoints,
        interval: CheckpointInterval | None,
        stop: Callable[[], bool],
    ) -> Executor:
        """Runs the jobs; `datasets` are theirs, by their content."""

    def close(self) -> None:
        """End what was started for the jobs."""


class Machine:
    """This machine: its processors, or its GPUs."""

    def __init__(self, run: RunOptions, pool: WorkerPool | None = None) -> None:
        """`pool` may have workers that were started before. Raises UserError."""
        check_threads(run.threads)
        self.run, self.pool = run, pool or WorkerPool()
        self.device = self.job_device = resolve_device(run.device)

    def divide(self, work: Work, data: DataInfo, *, by_hand: bool = False) -> Parallel:
        parallel = resolve_parallel(self.run, self.device, work, data, own_process=by_hand)
        self.pool.end_spare(keep=parallel.jobs if parallel.jobs > 1 else 0)
        return parallel

    def describe(self, parallel: Parallel) -> list[str]:
        if parallel.jobs == 1:
            return []
        return [f"{parallel.jobs} jobs side by side, {parallel.threads} thread{'s' * (parallel.threads != 1)} each"]

    def executor(
        self,
        parallel: Parallel,
        precision: str,
        datasets: Mapping[str, Dataset],
        checkpoints: Checkpoints,
        interval: CheckpointInterval | None,
        stop: Callable[[], bool],
    ) -> Executor:
        if parallel.jobs == 1:
            return LocalExecutor(datasets, self.device, checkpoints, interval, stop)
        plugins = self.run.plugins and self.run.plugins.resolve()
        return ProcessExecutor(parallel, precision, datasets, checkpoints.folder, interval, plugins, stop, self.pool)

    def close(self) -> None:
        self.pool.close()


def placement(run: RunOptions, pool: WorkerPool | None = None) -> Placement:
    """The place that the options name. Raises UserError."""
    if not run.cluster:
        return Machine(run, pool)
    from kdbench.runner.executors.cluster import Cluster  # needs Ray

    return Cluster(run)
