"""Plan -> records, cohort by cohort, through an executor, beside other processes on the same folder."""

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
    before: Mapping[str, str] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train what the plan lacks. Every trial ends in a record, also where its teacher or its whole cohort failed.

    `before` are the store's finished_at when the plan was made; a trial whose record has another one by now was done by
    another process. Raises DiskError, Interrupted.
    """
    finished = finished_since(store.find, store.finished_at() if before is None else before)

    def keep(outcome: Outcome) -> None:
        store.save(outcome, environment)
        if outcome.status in FINAL:
            checkpoints.remove(outcome.trial.id)
        observer.outcome(outcome)

    def waiting(trials: int, processes: Sequence[str]) -> None:
        observer.waiting(trials, processes)
        if stop():
            raise Interrupted

    for trial in plan.completed:  # a process may have been killed before it could do so
        checkpoints.remove(trial.id)
    for trial, reason in plan.not_applicable:
        if not finished(trial.fingerprint):
            keep(Outcome(trial, "n/a", reason))
    with Claims(store.root) as claims:
        for number, names in claims.share(_work(plan.cohorts), finished, waiting):
            cohort = plan.cohorts[number]
            mine = cohort.with_trials([trial for trial in cohort.trials if trial.fingerprint in names])
            observer.cohort(mine, number + 1, len(plan.cohorts))
            for outcome in _outcomes(mine, store, executor, observer):
                keep(outcome)


def _work(cohorts: Sequence[Cohort]) -> Iterator[Work[int]]:
    """The cohorts by number; each needs the networks that teach in it, where these are trained here."""
    for number, cohort in enumerate(cohorts):
        teachers = frozenset(source.trial for source in cohort.sources.values() if source.trial)
        yield Work(number, frozenset(trial.fingerprint for trial in cohort.trials), teachers)


class _MissingTeacher(Exception):
    """A teacher of the cohort was not trained, or its training did not end well."""


def _outcomes(cohort: Cohort, store: Store, executor: Executor, observer: Observer) -> Iterator[Outcome]:
    """One outcome a trial, whatever breaks in training. What breaks in keeping them is not training's failure."""
    waiting = {trial.id: trial for trial in cohort.trials}
    try:
        for outcome in executor.train(cohort, _teacher_weights(cohort, store), observer):
            del waiting[outcome.trial.id]
            yield outcome
    except _MissingTeacher as error:
        for trial in waiting.values():
            yield Outcome(trial, "failed", str(error))
    except (BrokenPipeError, DiskError):  # nobody reads the progress any more; nothing can be kept any more
        raise
    except Exception as error:
        reason = f"its cohort could not be trained: {type(error).__name__}: {error}".splitlines()[0]
        for trial in waiting.values():
            yield Outcome(trial, "failed", reason)


def _teacher_weights(cohort: Cohort, store: Store) -> TeacherWeights:
    """State dicts of the networks that were trained here. A missing extra teacher is its trial's failure alone."""
    weights = {}
    for key, source in cohort.sources.items():
        if source.trial is None:
            continue
        record = store.find(source.trial)
        if record is not None and record.status == "done":
            weights[key] = store.weights(record)
        elif source in cohort.teachers:
            state = "has no record" if record is None else f"{record.status}: {record.reason}"
            raise _MissingTeacher(f"its teacher {source.arch} {state}")
    return weights
