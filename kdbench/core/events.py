"""What is told while a study runs, and to whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from kdbench.core.record import EpochMetrics, Outcome
from kdbench.core.trial import Cohort

TeacherWeights = Mapping[str, Mapping[str, Any]]
"""State dicts of a cohort's trained networks by `TeacherSource.key`; those that come from files are not in it."""


class Observer(Protocol):
    """Watches a cohort being trained; for progress displays."""

    def cohort(self, cohort: Cohort, number: int, of: int) -> None: ...
    def step(self, cohort: Cohort, epoch: int, step: int, steps: int) -> None: ...  # pretraining: epochs -1, -2, ...
    def epoch(
        self, cohort: Cohort, epoch: int, latest: Mapping[str, EpochMetrics]
    ) -> None: ...  # trial id -> its epoch
    def outcome(self, outcome: Outcome) -> None: ...
    def waiting(self, trials: int, processes: Sequence[str]) -> None: ...  # that other processes have in hand


class Executor(Protocol):
    """Where cohorts are trained: here and now, or (later) elsewhere."""

    def train(self, cohort: Cohort, weights: TeacherWeights, observer: Observer) -> Iterator[Outcome]:
        """Train the cohort's trials, from their checkpoints on."""
        ...
