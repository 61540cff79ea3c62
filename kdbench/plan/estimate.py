"""How long a plan will take, from what one image costs."""

from __future__ import annotations

from kdbench.spec import Costs, Plan


def seconds(plan: Plan, costs: Costs) -> float:
    """First stages, training, and the evaluation after every epoch."""
    total = 0.0
    for cohort in plan.cohorts:
        images = cohort.data.train // cohort.recipe.batch_size * cohort.recipe.batch_size
        shared = costs.archs[cohort.teacher.arch].forward if cohort.teacher else 0.0
        train = {t.id: costs.archs[t.arch].train + costs.methods.get(t.method, 0.0) for t in cohort.trials}
        check = sum(costs.archs[trial.arch].forward for trial in cohort.trials)
        total += cohort.recipe.epochs * (images * (shared + sum(train.values())) + cohort.data.test * check)
        if early := [train[trial.id] for trial in cohort.trials if trial.method in costs.pretrain]:
            total += cohort.recipe.pretraining_epochs * images * (shared + sum(early))
    return total


def duration(value: float) -> str:
    """Seconds for people: `48 s`, `12 min`, `3 h 20 min`, `5 days`."""
    if value < 100:
        return f"{value:.0f} s"
    if value < 100 * 60:
        return f"{value / 60:.0f} min"
    if value < 48 * 3600:
        return f"{int(value // 3600)} h {int(value % 3600 // 60)} min"
    return f"{value / 86400:.1f} days"
