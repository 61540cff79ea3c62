"""How long a plan will take and how much room it needs, from what one image and one network cost."""

from __future__ import annotations

from kdbench.core.catalog import Costs
from kdbench.core.trial import Plan


def estimate_seconds(plan: Plan, costs: Costs) -> float:
    """First stages, training, and the evaluation after every epoch."""
    total = 0.0
    for cohort in plan.cohorts:
        images = cohort.data.train // cohort.recipe.batch_size * cohort.recipe.batch_size
        shared = sum(costs.archs[source.arch].forward for source in cohort.teachers)
        train = {t.id: costs.archs[t.arch].train + costs.methods.get(t.method, 0.0) for t in cohort.trials}
        check = sum(costs.archs[trial.arch].forward for trial in cohort.trials)
        total += cohort.recipe.epochs * (images * (shared + sum(train.values())) + cohort.data.test * check)
        if early := [train[trial.id] for trial in cohort.trials if trial.method in costs.pretrained]:
            total += cohort.recipe.pretraining_epochs * images * (shared + sum(early))
    return total


_RECORD = 8 * 1024  # bytes of a record and of the end of its epochs
_EPOCH = 400  # bytes of one epoch in a record's epochs


def estimate_disk(plan: Plan, costs: Costs) -> tuple[int, int]:
    """Bytes that stay (records, epochs, weights), and bytes of training states at the moment when these are most.

    A state is held for each trial of the cohort under way; the cohorts of one folder follow each other in a process.
    """
    kept = sum(_RECORD + _EPOCH * trial.recipe.epochs + costs.archs[trial.arch].size for trial in plan.pending)
    states = [
        [2 * costs.archs[trial.arch].size + costs.checkpoint_bytes.get(trial.method, 0) for trial in cohort.trials]
        for cohort in plan.cohorts
    ]
    return kept, max((sum(sizes) + max(sizes) for sizes in states), default=0)  # the one being written is there twice


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
