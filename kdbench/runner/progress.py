"""Progress displays, which read the events of a run: a live one on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kdbench.core.events import EpochEnd, Event, JobEnd, JobStarted, StepEnd, TrialEnd, Waiting
from kdbench.core.jobs import CohortJob, Job
from kdbench.core.record import Outcome, ProbeOutcome
from kdbench.core.trial import Trial

QUIET_SECONDS = 5.0  # at least, between two plain lines of progress


def progress(console: Console, jobs: Sequence[Job]) -> LiveProgress | PlainProgress:
    """The live display if the output is a terminal, else plain lines."""
    return LiveProgress(console, jobs) if console.is_terminal else PlainProgress(console, jobs)


class _Work:
    """How much of the jobs is done, in steps of all their items."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.total = sum(map(_steps, jobs))
        self._ended = self._current = 0

    def count(self, event: Event) -> int:
        """Steps done after an event."""
        match event:
            case EpochEnd(job, _, count):
                self._current = min(self._current + count * job.steps // job.epochs, _steps(job))
            case JobEnd(job):  # all of them: items that failed or were resumed took fewer steps
                self._ended, self._current = self._ended + _steps(job), 0
            case _:
                pass
        return self._ended + self._current


def _steps(job: Job) -> int:
    return job.steps * len(job.items)


def _items(job: Job) -> str:
    noun = "student" if isinstance(job, CohortJob) else "network"
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
        self.console, self.work = console, _Work(jobs)
        self.position = ""
        self.awaited = 0  # items of other processes, as last printed
        self.started = self.printed = time.monotonic()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        done = self.work.count(event)
        match event:
            case JobStarted(job, number, total):
                self.position = f"[{number}/{total}]"
                self._print(f"{self.position} {job.title}: {_items(job)}")
            case EpochEnd(job, epoch):
                if epoch == job.epochs or time.monotonic() - self.printed >= QUIET_SECONDS:
                    self._print_epoch(event, done)
            case TrialEnd(outcome):
                if text := _failure(outcome):
                    self._print(text)
            case Waiting(items):
                if self.awaited != items:
                    self.awaited = items
                    self._print(_waiting(event))
            case _:
                pass

    def _print_epoch(self, event: EpochEnd, done: int) -> None:
        job, left = event.job, self.work.total - done
        accuracies = ""
        if isinstance(job, CohortJob):
            trials = [trial for trial in job.items if trial.id in event.latest]
            known = ", ".join(f"{_name(trial)} {event.latest[trial.id].top1:.2f}" for trial in trials)
            accuracies = f"top-1 % {known or '-'}; "
        minutes = (time.monotonic() - self.started) / done * left / 60 if done else 0.0
        self._print(f"{self.position} epoch {event.epoch}/{job.epochs}: {accuracies}about {minutes:.1f} min left")

    def _print(self, text: str) -> None:
        self.console.print(escape(text), highlight=False, soft_wrap=True)
        self.printed = time.monotonic()


class LiveProgress:
    """A bar for all jobs, a bar for the epoch, and a table of the students' current accuracies."""

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self.console, self.work = console, _Work(jobs)
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
        times = TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
        self.total_bar, self.epoch_bar = Progress(*columns, *times), Progress(*columns)
        self.title = ""
        self.total_task = self.total_bar.add_task("steps", total=self.work.total)
        self.epoch_task = self.epoch_bar.add_task("", total=None)
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
        done = self.work.count(event)
        match event:
            case JobStarted(job, number, total):
                self.title, self.students = f"[{number}/{total}] {job.title}: {_items(job)}", ""
                self.epoch_bar.reset(self.epoch_task, description="starting", total=None)
            case StepEnd(job, epoch, step, steps):
                name = f"epoch {epoch}/{job.epochs}" if epoch > 0 else f"pretraining epoch {-epoch}"
                self.epoch_bar.update(self.epoch_task, description=name, completed=step, total=steps)
                if epoch > 0:
                    self.total_bar.advance(self.total_task, len(job.items))
            case EpochEnd(job, epoch):
                if not isinstance(job, CohortJob):
                    self.epoch_bar.update(self.epoch_task, description="epoch", completed=epoch, total=job.epochs)
                self.students = self._table(event)
                self.total_bar.update(self.total_task, completed=done)
            case TrialEnd(outcome):
                if text := _failure(outcome):
                    self.console.print(escape(text), highlight=False, soft_wrap=True)
            case JobEnd():
                self.total_bar.update(self.total_task, completed=done)
            case Waiting():
                self.title, self.students = _waiting(event), ""
            case _:
                pass

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
        return Group(self.total_bar, Text(self.title), self.epoch_bar, self.students)
