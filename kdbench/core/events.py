"""The interface between the runner, which emits events while a study runs, and what trains or watches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from kdbench.core.record import EpochMetrics, Outcome
from kdbench.core.trial import Cohort

TeacherWeights = Mapping[str, Mapping[str, Any]]
"""State dicts of the trained networks that a cohort needs, by `TeacherSource.key`; without those that files hold."""


class Observer(Protocol):
    """Receives the events of a running study; for progress displays."""

    def cohort(self, cohort: Cohort, number: int, total: int) -> None:
        """A cohort starts, as number `number` (from 1) of `total`."""

    def step(self, cohort: Cohort, epoch: int, step: int, steps: int) -> None:
        """Step `step` of `steps` has ended. Epochs count from 1; those of pretraining are -1, -2, ..."""

    def epoch(self, cohort: Cohort, epoch: int, latest: Mapping[str, EpochMetrics]) -> None:
        """An epoch has been evaluated; `latest` holds the metrics of each remaining student by trial id."""

    def outcome(self, outcome: Outcome) -> None:
        """A trial has ended."""

    def waiting(self, trials: int, processes: Sequence[str]) -> None:
        """The study waits for `trials` trials that other processes are training."""


class Executor(Protocol):
    """Trains cohorts, in this process or elsewhere."""

    def train(self, cohort: Cohort, weights: TeacherWeights, observer: Observer) -> Iterator[Outcome]:
        """Train the cohort's trials, from their checkpoints where there are any, and yield how each ended."""
        ...
