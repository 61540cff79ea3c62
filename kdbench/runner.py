"""Plan -> records, cohort by cohort, through an executor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
        for outcome in _outcomes(cohort, store, executor, observer):
            keep(outcome)


class _NoTeacher(Exception):
    """A cohort's teacher did not come to be."""


def _outcomes(cohort: Cohort, store: Store, executor: Executor, observer: Observer) -> Iterator[Outcome]:
    """One outcome a trial, whatever breaks in training. What breaks in keeping them is not training's failure."""
    waiting = {trial.id: trial for trial in cohort.trials}
    try:
        for outcome in executor.train(cohort, _teacher(cohort, store), observer):
            del waiting[outcome.trial.id]
            yield outcome
    except _NoTeacher as error:
        for trial in waiting.values():
            yield Outcome(trial, "failed", str(error))
    except BrokenPipeError:  # nobody reads the progress any more
        raise
    except Exception as error:
        reason = f"its cohort could not be trained: {type(error).__name__}: {error}".splitlines()[0]
        for trial in waiting.values():
            yield Outcome(trial, "failed", reason)


def _teacher(cohort: Cohort, store: Store) -> Mapping[str, object] | None:
    """The state dict of a teacher that was trained here; None where there is none or it comes from a file."""
    if cohort.teacher is None or cohort.teacher.trial is None:
        return None
    record = store.find(cohort.teacher.trial)
    if record is None:
        raise _NoTeacher(f"its teacher {cohort.teacher.arch} has no record")
    if record.status != "done":
        raise _NoTeacher(f"its teacher {cohort.teacher.arch} {record.status}: {record.reason}")
    return store.weights(record)
