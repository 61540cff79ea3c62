"""Train cohorts in this process, on one device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from kdbench.core.events import Observer, TeacherWeights
from kdbench.core.record import Outcome
from kdbench.core.trial import Cohort
from kdbench.data.dataset import Dataset
from kdbench.train.checkpoint import Checkpoints, log
from kdbench.train.cohort import CohortTrainer
from kdbench.train.device import is_out_of_memory


class LocalExecutor:
    """Trains one cohort at a time; `stop` is called after every step, see `CohortTrainer`."""

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device,
        checkpoints: Checkpoints,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.dataset, self.device, self.checkpoints, self.stop = dataset, device, checkpoints, stop

    def train(self, cohort: Cohort, weights: TeacherWeights, observer: Observer) -> Iterator[Outcome]:
        """Outcomes in the order in which trials end.

        A cohort that does not fit into memory is split into halves that are trained one after the other, and these
        may be split again. Raises DiskError, Interrupted, and the errors of data and teachers, which all trials share.
        """
        pending = {trial.id: trial for trial in cohort.trials}
        try:
            trainer = CohortTrainer(
                cohort, self.dataset, weights, self.device, self.checkpoints, observer, stop=self.stop
            )
            for outcome in trainer.train():
                del pending[outcome.trial.id]
                yield outcome
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except block, because the exception's frames hold the memory that is to be freed.
        trainer = None  # type: ignore[assignment]
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        trials = list(pending.values())
        if len(trials) == 1:
            yield Outcome(trials[0], "failed", "out of memory, although it was trained alone")
            return
        half = (len(trials) + 1) // 2
        log.warning("out of memory with %d students: they are trained %d at a time", len(trials), half)
        for group in (trials[:half], trials[half:]):
            for outcome in self.train(cohort.with_trials(group), weights, observer):
                yield replace(outcome, cost={**outcome.cost, "split_from": len(trials)})
