"""Run jobs: hand out those that are ready, and write what becomes of them. Nothing else writes results."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdbench.core.errors import Interrupted
from kdbench.core.events import (
    Checkpoint,
    Emit,
    EndedElsewhere,
    EpochEnd,
    Event,
    Executor,
    JobLost,
    JobPlaced,
    JobQueued,
    JobStarted,
    TrialEnd,
    Waiting,
)
from kdbench.core.jobs import CohortJob, Item, Job, ProbeJob, Weights
from kdbench.core.record import FINAL, Outcome, ProbeOutcome, failed
from kdbench.core.trial import Value
from kdbench.results import Store
from kdbench.runner.locks import Reached, TrialLocks
from kdbench.train.checkpoint import Checkpoints

log = logging.getLogger("kdbench")

_POLL = 1.0  # seconds between two looks at what other processes have finished

DEATHS = 3
"""Of the processes of a trial, with no checkpoint in between, after which it has failed."""


def run_jobs(
    jobs: Sequence[Job],
    store: Store,
    executor: Executor,
    checkpoints: Checkpoints,
    watch: Emit,
    environment: Mapping[str, Value],
    finished_at: Mapping[str, str] | None = None,
    stop: Callable[[], bool] = lambda: False,
    known: Sequence[Outcome] = (),
    keep_weights: str = "all",
    company: str = "",
) -> None:
    """Run jobs until each of their items has a record, here or written by another process.

    Other processes may work on the same results folder: an item belongs to the process that has its lock.
    `finished_at` is the store's when the jobs were made; items that were finished since are not run. `known` are
    outcomes that need no training. `watch` receives every event. `keep_weights` is one of KEEP_WEIGHTS; those of
    vanilla trials stay until the jobs have ended, since others may need them. `company` is a warning, given once when a
    job begins while another process trains in the folder. Raises DiskError, UserError, Interrupted.
    """
    before = store.finished_at() if finished_at is None else finished_at
    run = _Run(list(jobs), store, checkpoints, watch, environment, before, stop, keep_weights, company)
    try:
        for outcome in known:
            if not run.is_finished(outcome.trial.fingerprint):
                run.emit(TrialEnd(outcome))
        executor.run(run.ready_jobs(), run.emit)
    finally:
        run.locks.release_all()


def remove_checkpoints(items: Iterable[Item], checkpoints: Checkpoints, root: Path) -> None:
    """Remove the checkpoints of items that have a record, unless another process trains them again."""
    locks = TrialLocks(root)
    for item in items:
        if checkpoints.exists(item.id) and locks.acquire(item.fingerprint):
            checkpoints.remove(item.id)
            locks.release(item.fingerprint)


@dataclass
class _Run:
    pending: list[Job]
    store: Store
    checkpoints: Checkpoints
    watch: Emit
    environment: Mapping[str, Value]
    finished_at: Mapping[str, str]
    stop: Callable[[], bool]
    keep_weights: str
    company: str
    running: set[str] = field(default_factory=set)  # fingerprints
    deaths: Counter[str] = field(default_factory=Counter)  # of processes since an item's last checkpoint, by its id

    def __post_init__(self) -> None:
        self.locks = TrialLocks(self.store.root)
        self.numbers = {item.fingerprint: number for number, job in enumerate(self.pending, 1) for item in job.items}
        self.total = len(self.pending)

    def is_finished(self, fingerprint: str) -> bool:
        """Whether a record was written since the jobs were made."""
        finished = self.store.find_finished(fingerprint)
        return finished is not None and finished != self.finished_at.get(fingerprint)

    def ready_jobs(self) -> Iterator[Job | None]:
        """Jobs whose teachers are there, narrowed to the items that no other process has; None: none is ready yet."""
        while self.pending or self.running:  # what runs may be lost, and is then pending again
            idle = True
            for job in list(self.pending):
                unfinished = {item.fingerprint for other in self.pending for item in other.items} | self.running
                if job.after & unfinished:
                    continue
                self.pending.remove(job)
                claimed, elsewhere = self._claim(job)
                if ended := {item.fingerprint for item in job.items} - claimed - elsewhere:
                    self.emit(EndedElsewhere(job.narrowed(frozenset(ended))))
                if elsewhere:
                    self.pending.append(job.narrowed(elsewhere))
                if claimed and (ready := self._with_weights(job.narrowed(claimed))):
                    idle = False
                    self.running |= {item.fingerprint for item in ready.items}
                    self._warn_of_company()
                    first = ready.items[0].fingerprint
                    self.emit(JobStarted(ready, self.numbers[first], self.total))
                    yield ready
            if idle and (self.pending or self.running):
                if not self.running:
                    self.emit(Waiting(sum(len(job.items) for job in self.pending)))
                    time.sleep(_POLL)
                if self.stop():
                    raise Interrupted
                yield None

    def _warn_of_company(self) -> None:
        if self.company and self.locks.any_held_elsewhere():
            log.warning("%s", self.company)
            self.company = ""

    def _claim(self, job: Job) -> tuple[frozenset[str], frozenset[str]]:
        """Items whose lock this process now has and that have no record; items that other processes have."""
        claimed, elsewhere = set(), set()
        for item in job.items:
            name = item.fingerprint
            if not self.locks.acquire(name):
                elsewhere.add(name)
            elif self.is_finished(name):  # only now: it may have ended just before its lock was free
                self.locks.release(name)
            else:
                claimed.add(name)
                if not self.checkpoints.exists(item.id):  # of which a process that died may have told
                    self.locks.mark_epoch(name, None)
        return frozenset(claimed), frozenset(elsewhere)

    def _with_weights(self, job: Job) -> Job | None:
        """The job with the networks that it needs. Items that lack one fail here; None: no item is left."""
        if isinstance(job, ProbeJob):
            return self._probes_with_weights(job)
        weights, missing = _teacher_weights(job, self.store)
        if missing is None:
            return replace(job, weights=weights)
        for trial in job.items:
            self.emit(TrialEnd(Outcome(trial, "failed", missing)))
        return None

    def _probes_with_weights(self, job: ProbeJob) -> ProbeJob | None:
        weights = {}
        for probe in job.items:
            try:
                record = self.store.find(probe.source.fingerprint)
                if record is None:
                    raise ValueError(f"{probe.source.id} has no record")
                network = self.store.weights(record)
                if record.weights_sha256 != probe.weights:
                    raise ValueError(f"{probe.source.id} has been trained again; start the command again")
                weights[probe.fingerprint] = network
            except ValueError as error:
                self.emit(TrialEnd(ProbeOutcome(probe, "failed", f"before training: ValueError: {error}")))
        return replace(job.narrowed(frozenset(weights)), weights=weights) if weights else None

    def emit(self, event: Event) -> None:
        """Write what an event brings, then let the others see it."""
        match event:
            case Checkpoint():
                self.checkpoints.save(event.id, event.content)
                self.deaths.pop(event.id, None)
            case TrialEnd(outcome):
                environment = self.environment if event.environment is None else event.environment
                if isinstance(outcome, Outcome):
                    keep = self.keep_weights == "all" or not outcome.trial.teachers
                    self.store.save(outcome, environment, keep)
                else:
                    self.store.save_probe(outcome, environment)
                if outcome.status in FINAL:
                    self.checkpoints.remove(outcome.item.id)
                self.running.discard(outcome.item.fingerprint)
                self.locks.mark_epoch(outcome.item.fingerprint, None)
                self.locks.release(outcome.item.fingerprint)
            case EpochEnd(job):
                for item in job.items:
                    if latest := event.latest.get(item.id):
                        reached = Reached(latest.epoch, latest.student_seconds, latest.shared_seconds)
                        self.locks.mark_epoch(item.fingerprint, reached)
            case JobQueued(job) | JobPlaced(job):
                for item in job.items:
                    self.locks.mark_queued(item.fingerprint, isinstance(event, JobQueued))
            case JobLost(job, reason):
                self._run_again(job, reason)
            case _:
                pass
        self.watch(event)

    def _run_again(self, job: Job, reason: str) -> None:
        """Hand out again what of a lost job has not ended. What died too often runs once more alone, then fails."""
        log.warning("%s was lost (%s): it continues from its last checkpoints, if any", job.title, reason)
        left = job.narrowed(frozenset(item.fingerprint for item in job.items) & self.running)
        self.deaths.update(item.id for item in left.items)
        if max((self.deaths[item.id] for item in left.items), default=0) < DEATHS:
            parts = [left] if left.items else []
        elif len(left.items) > 1:
            parts = [left.narrowed({item.fingerprint}) for item in left.items]
            self.deaths.update({item.id: DEATHS - 1 - self.deaths[item.id] for item in left.items})
        else:
            parts = []
            self.emit(TrialEnd(failed(left.items[0], f"it was lost {DEATHS} times, the last time since {reason}")))
        self.running -= {item.fingerprint for part in parts for item in part.items}
        self.pending += parts


def _teacher_weights(job: CohortJob, store: Store) -> tuple[Weights, str | None]:
    """State dicts of the cohort's trained networks, and why a teacher is missing, if one is.

    Extra teachers that are missing are left out: only the trials that require them fail.
    """
    weights = {}
    for key, source in job.cohort.sources.items():
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
        if source in job.cohort.teachers:
            return {}, f"its teacher {source.arch} {problem}"
    return weights, None
