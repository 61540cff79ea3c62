"""How long a plan will take and how much room it needs, from what one image and one network cost."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from kdbench.core.catalog import Costs
from kdbench.core.jobs import CohortJob
from kdbench.core.trial import Cohort


def estimate_seconds(jobs: Sequence[CohortJob], costs: Costs, workers: int = 1) -> float:
    """Until the last job ends, if they are begun in this order by so many workers, each after the teachers it needs."""
    free, ended = [0.0] * workers, dict[str, float]()
    for job in jobs:
        taught = max((ended.get(fingerprint, 0.0) for fingerprint in job.after), default=0.0)
        end = max(heapq.heappop(free), taught) + _cohort_seconds(job.cohort, costs)
        heapq.heappush(free, end)
        ended |= {trial.fingerprint: end for trial in job.items}
    return max(free)


def _cohort_seconds(cohort: Cohort, costs: Costs) -> float:
    """First stages, training, and the evaluation after every epoch."""
    images = cohort.data.train // cohort.recipe.batch_size * cohort.recipe.batch_size
    shared = sum(costs.archs[source.arch].forward for source in cohort.teachers)
    train = {t.id: costs.archs[t.arch].train + costs.methods.get(t.method, 0.0) for t in cohort.trials}
    check = sum(costs.archs[trial.arch].forward for trial in cohort.trials)
    total = cohort.recipe.epochs * (images * (shared + sum(train.values())) + cohort.data.test * check)
    if early := [train[trial.id] for trial in cohort.trials if trial.method in costs.pretrained]:
        total += cohort.recipe.pretraining_epochs * images * (shared + sum(early))
    return total


_RECORD = 8 * 1024  # bytes of a record and of the end of its epochs
_EPOCH = 400  # bytes of one epoch in a record's epochs


def estimate_disk(jobs: Sequence[CohortJob], costs: Costs, workers: int = 1) -> tuple[int, int]:
    """Bytes that stay (records, epochs, weights), and bytes of training states at the moment when these are most.

    A state is held for each trial of the jobs under way, and the one that is being written is there twice.
    """
    trials = [trial for job in jobs for trial in job.items]
    kept = sum(_RECORD + _EPOCH * trial.recipe.epochs + costs.archs[trial.arch].size for trial in trials)
    states = [
        [2 * costs.archs[trial.arch].size + costs.checkpoint_bytes.get(trial.method, 0) for trial in job.items]
        for job in jobs
    ]
    largest = max((max(sizes) for sizes in states), default=0)
    return kept, sum(heapq.nlargest(workers, map(sum, states))) + largest


def format_bytes(count: int) -> str:
    """Bytes for people: `12 MiB`, `3.4 GiB`."""
    return f"{count / 2**20:,.0f} MiB" if count < 10 * 2**30 else f"{count / 2**30:,.1f} GiB"


def format_duration(value: float) -> str:
    """Seconds for people: `48 s`, `12 min`, `3 h 20 min`, `5 days`."""
    if value < 100:
        return f"{value:.0f} s"
    if value < 100 * 60:
        return f"{value / 60:.0f} min"
    if value < 48 * 3600:
        return f"{int(value // 3600)} h {int(value % 3600 // 60)} min"
    return f"{value / 86400:.1f} days"
