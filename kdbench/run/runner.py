"""Run a plan: train its cohorts one after another, and write a record for every trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from kdbench.core.errors import Interrupted
from kdbench.core.events import Executor, Observer, TeacherWeights
from kdbench.core.files import DiskError
from kdbench.core.record import FINAL, Outcome
from kdbench.core.trial import Cohort, Plan, Value
from kdbench.results import Store, finished_since
from kdbench.run.claims import Claims, Work
from kdbench.train.checkpoint import Checkpoints


def run_plan(
    plan: Plan,
    store: Store,
    executor: Executor,
    checkpoints: Checkpoints,
    observer: Observer,
    environment: Mapping[str, Value],
    finished_at: Mapping[str, str] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train the plan's cohorts. Every trial ends in a record, even if its teacher is missing or its cohort fails.

    Other processes may work on the same results folder: each trial is trained by one of them. `finished_at` is the
    store's when the plan was made; trials that were finished since are not trained. Raises DiskError, Interrupted.
    """
    finished = finished_since(store.find, store.finished_at() if finished_at is None else finished_at)

    def save(outcome: Outcome) -> None:
        store.save(outcome, environment)
        if outcome.status in FINAL:
            checkpoints.remove(outcome.trial.id)
        observer.outcome(outcome)

    def wait(trials: int, processes: Sequence[str]) -> None:
        observer.waiting(trials, processes)
        if stop():
            raise Interrupted

    for trial in plan.completed:  # a process may have been killed after it wrote the record
        checkpoints.remove(trial.id)
    for trial, reason in plan.not_applicable:
        if not finished(trial.fingerprint):
            save(Outcome(trial, "n/a", reason))
    with Claims(store.root) as claims:
        for number, fingerprints in claims.share(_work(plan.cohorts), finished, wait):
            cohort = plan.cohorts[number]
            cohort = cohort.with_trials([trial for trial in cohort.trials if trial.fingerprint in fingerprints])
            observer.cohort(cohort, number + 1, len(plan.cohorts))
            for outcome in _outcomes(cohort, store, executor, observer):
                save(outcome)


def _work(cohorts: Sequence[Cohort]) -> Iterator[Work[int]]:
    """The cohorts by number; each waits for its teachers and extra teachers, where these are trained in this plan."""
    for number, cohort in enumerate(cohorts):
        teachers = frozenset(source.trial for source in cohort.sources.values() if source.trial)
        yield Work(number, frozenset(trial.fingerprint for trial in cohort.trials), teachers)


class _MissingTeacher(Exception):
    """A teacher of the cohort was not trained, or its weights cannot be read."""


def _outcomes(cohort: Cohort, store: Store, executor: Executor, observer: Observer) -> Iterator[Outcome]:
    """One outcome for each trial, whatever fails in training. Raises what the executor raises when it is stopped."""
    pending = {trial.id: trial for trial in cohort.trials}
    try:
        for outcome in executor.train(cohort, _teacher_weights(cohort, store), observer):
            del pending[outcome.trial.id]
            yield outcome
    except (BrokenPipeError, DiskError):  # progress or checkpoints cannot be written
        raise
    except Exception as error:
        reason = str(error)
        if not isinstance(error, _MissingTeacher):
            reason = f"its cohort could not be trained: {type(error).__name__}: {error}".splitlines()[0]
        for trial in pending.values():
            yield Outcome(trial, "failed", reason)


def _teacher_weights(cohort: Cohort, store: Store) -> TeacherWeights:
    """State dicts of the cohort's trained networks. Raises _MissingTeacher.

    Extra teachers that are missing are left out: only the trials that require them fail.
    """
    weights = {}
    for key, source in cohort.sources.items():
        if source.trial is None:
            continue
        record = store.find(source.trial)
        if record is None:
            problem = "has no record"
        elif record.status != "done":
            problem = f"{record.status}: {record.reason}"
        else:
            try:
                weights[key] = store.weights(record)
                continue
            except ValueError as error:
                problem = f"has no weights: {error}"
        if source in cohort.teachers:
            raise _MissingTeacher(f"its teacher {source.arch} {problem}")
    return weights
