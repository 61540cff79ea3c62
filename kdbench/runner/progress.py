"""Progress displays, which read the events of a run: a live one on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from kdbench.core.events import (
    EndedElsewhere,
    EpochEnd,
    Event,
    JobEnd,
    JobLost,
    JobPlaced,
    JobQueued,
    JobStarted,
    StepEnd,
    TrialEnd,
    Waiting,
)
from kdbench.core.jobs import CohortJob, Job
from kdbench.core.record import Outcome, ProbeOutcome
from kdbench.core.trial import Trial
from kdbench.plan.estimate import format_duration

QUIET_SECONDS = 5.0  # at least, between two plain lines of progress
WAITING_SECONDS = 30.0  # at most, where another process trains what is awaited


def progress(console: Console, jobs: Sequence[Job]) -> LiveProgress | PlainProgress:
    """The live display if the output is a terminal, else plain lines."""
    return LiveProgress(console, jobs) if console.is_terminal else PlainProgress(console, jobs)


class _Work:
    """How much of the jobs is done, in steps of all their items, whoever trains them."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._steps = {item.id: job.steps for job in jobs for item in job.items}
        self._done = dict.fromkeys(self._steps, 0)
        self.total, self.done = sum(self._steps.values()), 0

    def count(self, event: Event) -> None:
        """Take an event into account."""
        match event:
            case StepEnd(job, epoch, step, steps) if epoch > 0:
                per_epoch = job.steps / job.epochs
                self._reach(job, round((epoch - 1 + step / steps) * per_epoch))
            case EpochEnd(job, epoch):
                self._reach(job, round(epoch * job.steps / job.epochs))
            case TrialEnd(outcome):  # it may have failed before its last step
                self._set(outcome.item.id, self._steps.get(outcome.item.id, 0))
            case EndedElsewhere(job):
                self._reach(job, job.steps)
            case _:
                pass

    def _reach(self, job: Job, steps: int) -> None:
        for item in job.items:
            self._set(item.id, steps)

    def _set(self, item: str, steps: int) -> None:
        if steps > self._done.get(item, steps):
            self.done += steps - self._done[item]
            self._done[item] = steps


class _Numbers:
    """The numbers of jobs, which their parts share."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}

    def add(self, event: JobStarted) -> str:
        """`[2/13]`, of the job that begins."""
        text = f"[{event.number}/{event.total}]"
        self._of |= {item.id: text for item in event.job.items}
        return text

    def __getitem__(self, job: Job) -> str:
        return self._of[job.items[0].id]


def _items(job: Job) -> str:
    noun = "student" if isinstance(job, CohortJob) and job.cohort.teachers else "network"
    return f"{len(job.items)} {noun}{'s' * (len(job.items) > 1)}"


def _name(trial: Trial) -> str:
    return trial.method if trial.teachers else trial.arch


def _failure(outcome: Outcome | ProbeOutcome) -> str | None:
    if outcome.status == "done":
        return None
    item = outcome.item
    name = f"{item.pair} {item.method}, seed {item.seed}" if isinstance(item, Trial) else item.id
    return f"{name}: {outcome.status}: {outcome.reason}"


def _waiting(event: Waiting) -> str:
    return f"waiting for {event.items} trial{'s' * (event.items > 1)} that another process is training"


class PlainProgress:
    """Lines for logs: for every job that starts, for epochs (one line in QUIET_SECONDS at most), for failures."""

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self.console, self.work, self.numbers = console, _Work(jobs), _Numbers()
        self.awaited = 0  # items of other processes, as last printed
        self.started = self.printed = time.monotonic()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        self.work.count(event)
        match event:
            case JobStarted(job):
                self._print(f"{self.numbers.add(event)} {job.title}: {_items(job)}")
            case EpochEnd(job, epoch):
                if epoch == job.epochs or time.monotonic() - self.printed >= QUIET_SECONDS:
                    self._print_epoch(event)
            case TrialEnd(outcome):
                if text := _failure(outcome):
                    self._print(text)
            case Waiting(items):
                if self.awaited != items or time.monotonic() - self.printed >= WAITING_SECONDS:
                    self.awaited = items
                    self._print(_waiting(event))
            case _:
                pass

    def _print_epoch(self, event: EpochEnd) -> None:
        job, done = event.job, self.work.done
        accuracies = ""
        if isinstance(job, CohortJob):
            trials = [trial for trial in job.items if trial.id in event.latest]
            known = ", ".join(f"{_name(trial)} {event.latest[trial.id].top1:.2f}" for trial in trials)
            accuracies = f": top-1 % {known or '-'}"
        seconds = (time.monotonic() - self.started) / done * (self.work.total - done) if done else 0.0
        left = f"; about {format_duration(seconds)} left" if seconds else ""
        self._print(f"{self.numbers[job]} epoch {event.epoch}/{job.epochs}{accuracies}{left}")

    def _print(self, text: str) -> None:
        self.console.print(escape(text), highlight=False, soft_wrap=True)
        self.printed = time.monotonic()


class LiveProgress:
    """A bar for all jobs, a row for each job under way, and the students' accuracies if there is one such job."""

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self.console, self.work, self.numbers = console, _Work(jobs), _Numbers()
        times = TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
        name = TextColumn("{task.description}", markup=False)
        self.total_bar = Progress(name, BarColumn(), MofNCompleteColumn(), *times)
        self.job_bars = Progress(
            TextColumn("{task.fields[number]}", markup=False),
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            TextColumn("{task.fields[epoch]}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            expand=True,
        )
        self.total_task = self.total_bar.add_task("steps", total=self.work.total)
        self.rows: dict[str, TaskID] = {}  # of the jobs under way, by their numbers
        self.waiting = ""
        self.students: Table | str = ""
        self.live = Live(console=console, get_renderable=self._view, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveProgress:
        self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.live.__exit__(kind, error, traceback)

    def __call__(self, event: Event) -> None:
        self.work.count(event)
        self.total_bar.update(self.total_task, completed=self.work.done)
        match event:
            case JobStarted(job):
                number = self.numbers.add(event)
                title = f"{job.title}: {_items(job)}"
                self.waiting, self.students = "", ""
                self.rows[number] = self.job_bars.add_task(title, total=None, number=number, epoch="starting")
            case JobQueued(job):
                self._update(job, epoch="waiting for a node")
            case JobPlaced(job, place):
                self._update(job, description=f"{job.title}: {_items(job)}, {place}", epoch="starting")
            case StepEnd(job, epoch, step, steps):
                name = f"epoch {epoch}/{job.epochs}" if epoch > 0 else f"pretraining {-epoch}"
                self._update(job, epoch=name, completed=step, total=steps)
            case EpochEnd(job, epoch):
                if not isinstance(job, CohortJob):
                    self._update(job, epoch="epoch", completed=epoch, total=job.epochs)
                self.students = self._table(event) if len(self.rows) == 1 else ""
            case TrialEnd(outcome):
                if text := _failure(outcome):
                    self.console.print(escape(text), highlight=False, soft_wrap=True)
            case JobEnd(job) | JobLost(job):
                if (row := self.rows.pop(self.numbers[job], None)) is not None:
                    self.job_bars.remove_task(row)
            case Waiting():
                self.waiting, self.students = _waiting(event), ""
            case _:
                pass

    def _update(self, job: Job, **values: Any) -> None:
        self.job_bars.update(self.rows[self.numbers[job]], **values)

    def _table(self, event: EpochEnd) -> Table | str:
        if not event.latest:
            return ""
        table = Table("student", "top-1 %", "loss", "s/epoch", box=None, title=f"after epoch {event.epoch}")
        for trial in event.job.items:
            if isinstance(trial, Trial) and (metrics := event.latest.get(trial.id)):
                loss, seconds = sum(metrics.terms.values()), metrics.student_seconds + metrics.shared_seconds
                table.add_row(escape(_name(trial)), f"{metrics.top1:.2f}", f"{loss:.4f}", f"{seconds:.1f}")
        return table

    def _view(self) -> Group:
        return Group(self.total_bar, self.job_bars, Text(self.waiting), self.students)
