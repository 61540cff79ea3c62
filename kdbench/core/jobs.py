"""Jobs: the pieces of work that an executor runs. Each ends in one outcome per item."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kdbench.core.linear_probe import LinearProbe
from kdbench.core.trial import Cohort, Trial

Weights = Mapping[str, Mapping[str, Any]]
"""State dicts of trained networks."""


@dataclass(frozen=True)
class CohortJob:
    """A cohort to train."""

    cohort: Cohort
    weights: Weights = field(default_factory=dict)  # of its trained teachers, by `TeacherSource.key`; not of files

    @property
    def items(self) -> tuple[Trial, ...]:
        return self.cohort.trials

    @property
    def after(self) -> frozenset[str]:
        """Fingerprints of the trials whose networks it needs."""
        return frozenset(source.trial for source in self.cohort.sources.values() if source.trial)

    @property
    def title(self) -> str:
        return f"{self.cohort.title}, seed {self.cohort.seed}"

    @property
    def epochs(self) -> int:
        return self.cohort.recipe.epochs

    @property
    def steps(self) -> int:
        """Training steps of each of its students, pretraining not counted."""
        return self.cohort.data.train // self.cohort.recipe.batch_size * self.epochs

    def narrowed(self, fingerprints: Collection[str]) -> CohortJob:
        """The job with only these items."""
        items = [trial for trial in self.items if trial.fingerprint in fingerprints]
        return replace(self, cohort=self.cohort.with_trials(items))


@dataclass(frozen=True)
class ProbeJob:
    """Linear probes that share target, protocol and seed."""

    items: tuple[LinearProbe, ...]
    weights: Weights = field(default_factory=dict)  # of the probed networks, by the probe's fingerprint

    @property
    def after(self) -> frozenset[str]:
        return frozenset()

    @property
    def title(self) -> str:
        first = self.items[0]
        return f"{first.data.label}, {first.recipe_label}, seed {first.seed}"

    @property
    def epochs(self) -> int:
        return self.items[0].recipe.epochs

    @property
    def steps(self) -> int:
        """Epochs: the steps of a probe are too short to be counted."""
        return self.epochs

    def narrowed(self, fingerprints: Collection[str]) -> ProbeJob:
        """The job with only these items."""
        return replace(self, items=tuple(probe for probe in self.items if probe.fingerprint in fingerprints))


Job = CohortJob | ProbeJob
Item = Trial | LinearProbe
