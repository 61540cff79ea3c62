"""Run jobs in this process, one after another, on one device."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from kdbench.core.checkpoint import CheckpointInterval
from kdbench.core.errors import DeviceLost
from kdbench.core.events import Emit, Event, JobEnd, TrialEnd
from kdbench.core.files import DiskError
from kdbench.core.jobs import CohortJob, Item, Job
from kdbench.core.record import Outcome, failed
from kdbench.data.dataset import Dataset
from kdbench.train.checkpoint import CheckpointSchedule, log
from kdbench.train.cohort import CohortTrainer
from kdbench.train.device import answers, is_out_of_memory, lost_message
from kdbench.train.probe_group import ProbeGroupTrainer


class Loads(Protocol):
    """Where the last checkpoint of a trial is found."""

    def load(self, trial_id: str, /) -> dict[str, Any] | None:
        """The state, or None if there is none."""


class LocalExecutor:
    """Runs one job at a time; `stop` is called after every step, see `CohortTrainer`.

    A job that does not fit into memory is split into halves that run one after the other, and these may be split again.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        device: torch.device,
        checkpoints: Loads,
        interval: CheckpointInterval | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`datasets` are those of the jobs, by their content; checkpoints are only read here."""
        self.datasets, self.device, self.checkpoints, self.stop = datasets, device, checkpoints, stop
        self.schedule = CheckpointSchedule(interval, device)

    def run(self, jobs: Iterator[Job | None], emit: Emit) -> None:
        """See `kdbench.core.events.Executor`."""
        for ready in jobs:
            parts = deque([ready] if ready else [])
            while parts:
                job = parts.popleft()
                items = _Items(emit, {item.id: item for item in job.items}, len(ready.items) if ready else 0)
                items.split = job is not ready
                try:
                    self._trainer(job, items.emit).train()
                    continue
                except _EmitError as failure:
                    raise failure.error from failure.error
                except (DiskError, DeviceLost):
                    raise
                except Exception as error:
                    if not answers(self.device):
                        raise DeviceLost(lost_message(self.device, error)) from error
                    out_of_memory = is_out_of_memory(error)
                    reason = f"its cohort could not be trained: {type(error).__name__}: {error}".splitlines()[0]
                # Outside the except block, because the exception's frames hold the memory that is to be freed.
                _free_memory(self.device)
                left = list(items.unfinished)
                if out_of_memory and len(left) > 1:
                    half = (len(left) + 1) // 2
                    log.warning("out of memory with %d students: they are trained %d at a time", len(left), half)
                    names = [items.unfinished[name].fingerprint for name in left]
                    parts.extendleft([job.narrowed(names[half:]), job.narrowed(names[:half])])
                    continue
                for item in list(items.unfinished.values()):
                    alone = "out of memory, although it was trained alone"
                    emit(TrialEnd(failed(item, alone if out_of_memory else reason)))
            if ready:
                emit(JobEnd(ready))

    def _trainer(self, job: Job, emit: Emit) -> CohortTrainer | ProbeGroupTrainer:
        load = self.checkpoints.load
        if isinstance(job, CohortJob):
            dataset = self.datasets[job.cohort.data.content]
            return CohortTrainer(job, dataset, self.device, emit, load=load, schedule=self.schedule, stop=self.stop)
        return ProbeGroupTrainer(job, self.datasets[job.items[0].data.content], self.device, emit, load, self.stop)


class _EmitError(BaseException):
    """What a consumer of events raised: not a failure of the job."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@dataclass
class _Items:
    """The items of a job that have not ended yet."""

    consumer: Emit
    unfinished: dict[str, Item]
    total: int  # items of the whole job
    split: bool = False  # whether this is a part of it

    def emit(self, event: Event) -> None:
        if isinstance(event, TrialEnd):
            outcome = event.outcome
            del self.unfinished[outcome.item.id]
            if self.split and isinstance(outcome, Outcome):
                event = TrialEnd(replace(outcome, cost={**outcome.cost, "split_from": self.total}))
        try:
            self.consumer(event)
        except Exception as error:
            raise _EmitError(error) from error


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        with suppress(RuntimeError):  # torch before 2.13 does not recover from a recording that failed (pytorch#180395)
            torch.cuda.empty_cache()
