"""How long a plan will take, from what one image costs."""

from __future__ import annotations

from collections.abc import Mapping

from kdbench.spec import Cost, Plan


def seconds(plan: Plan, costs: Mapping[str, Cost]) -> float:
    """Training and the evaluation after every epoch; what a method adds to its student's step is not counted."""
    total = 0.0
    for cohort in plan.cohorts:
        steps = cohort.data.train // cohort.recipe.batch_size * cohort.recipe.batch_size
        students = [costs[trial.arch] for trial in cohort.trials]
        epoch = steps * sum(cost.train for cost in students) + cohort.data.test * sum(cost.forward for cost in students)
        if cohort.teacher:
            epoch += steps * costs[cohort.teacher.arch].forward
        total += epoch * cohort.recipe.epochs
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
