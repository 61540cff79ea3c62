"""Plan -> records, cohort by cohort, through an executor."""

from __future__ import annotations

from collections.abc import Mapping

from kdbench.spec import FINAL, Cohort, Executor, Observer, Outcome, Plan, Value
from kdbench.store import Store
from kdbench.train.checkpoints import Checkpoints


def carry_out(
    plan: Plan,
    store: Store,
    executor: Executor,
    checkpoints: Checkpoints,
    observer: Observer,
    environment: Mapping[str, Value],
) -> None:
    """Train what the plan lacks. Every trial ends in a record, also where its teacher or its whole cohort failed."""

    def keep(outcome: Outcome) -> None:
        store.save(outcome, environment)
        if outcome.status in FINAL:
            checkpoints.remove(outcome.trial.id)
        observer.outcome(outcome)

    for trial, reason in plan.verdicts:
        keep(Outcome(trial, "n/a", reason))
    for number, cohort in enumerate(plan.cohorts, start=1):
        observer.cohort(cohort, number, len(plan.cohorts))
        ended: set[str] = set()
        try:
            teacher = _teacher(cohort, store)
            for outcome in executor.train(cohort, teacher, observer):
                ended.add(outcome.trial.id)
                keep(outcome)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            for trial in cohort.trials:
                if trial.id not in ended:
                    keep(Outcome(trial, "failed", f"its cohort could not be trained: {reason}"))


def _teacher(cohort: Cohort, store: Store) -> Mapping[str, object] | None:
    """The state dict of a teacher that was trained here; None where there is none or it comes from a file."""
    if cohort.teacher is None or cohort.teacher.trial is None:
        return None
    record = store.record(cohort.teacher.trial)
    if record is not None and record.status != "done":
        raise RuntimeError(f"its teacher {cohort.teacher.arch} {record.status}: {record.reason}")
    return store.weights(cohort.teacher.trial)
