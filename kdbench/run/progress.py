"""Progress displays: a live one on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kdbench.core.linear_probe import LinearProbe
from kdbench.core.record import EpochMetrics, Outcome, ProbeRecord
from kdbench.core.trial import Cohort, Plan, Trial

QUIET_SECONDS = 5.0  # at least, between two plain lines of progress


def _steps(cohort: Cohort) -> int:
    """Training steps of each of the cohort's students."""
    return cohort.data.train // cohort.recipe.batch_size * cohort.recipe.epochs


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"


def _name(trial: Trial, cohort: Cohort) -> str:
    return trial.method if cohort.teachers else trial.arch


def _failure(outcome: Outcome) -> str:
    trial = outcome.trial
    return f"{trial.pair} {trial.method}, seed {trial.seed}: {outcome.status}: {outcome.reason}"


def _waiting(work: str, processes: Sequence[str]) -> str:
    trainers = f"{len(processes)} other processes are" if len(processes) > 1 else "another process is"
    return f"waiting for {work} that {trainers} training"


class PlainProgress:
    """Lines for logs: for every cohort that starts, for epochs (one line in QUIET_SECONDS at most), for failures."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self.console = console
        self.total = sum(_steps(cohort) * len(cohort.trials) for cohort in plan.cohorts)
        self.completed = 0  # steps of earlier cohorts, over all their students
        self.awaited = 0  # trials of other processes, as last printed
        self.started = self.printed = time.monotonic()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _print(self, text: str) -> None:
        self.console.print(escape(text), highlight=False, soft_wrap=True)
        self.printed = time.monotonic()

    def cohort(self, cohort: Cohort, number: int, total: int) -> None:
        self.position = f"[{number}/{total}]"
        self._print(f"{self.position} {cohort.title}, seed {cohort.seed}: {_count(len(cohort.trials), 'student')}")

    def step(self, cohort: Cohort, epoch: int, step: int, steps: int) -> None:
        pass

    def epoch(self, cohort: Cohort, epoch: int, latest: Mapping[str, EpochMetrics]) -> None:
        last = epoch == cohort.recipe.epochs
        done = self.completed + _steps(cohort) // cohort.recipe.epochs * epoch * len(cohort.trials)
        if last:
            self.completed = done
        if last or time.monotonic() - self.printed >= QUIET_SECONDS:
            students = ", ".join(
                f"{_name(trial, cohort)} {latest[trial.id].top1:.2f}" for trial in cohort.trials if trial.id in latest
            )
            seconds_left = (time.monotonic() - self.started) / done * (self.total - done) if done else 0.0
            self._print(
                f"{self.position} epoch {epoch}/{cohort.recipe.epochs}: top-1 % {students or '-'}; "
                f"about {seconds_left / 60:.1f} min left"
            )

    def outcome(self, outcome: Outcome) -> None:
        if outcome.status != "done":
            self._print(_failure(outcome))

    def waiting(self, trials: int, processes: Sequence[str]) -> None:
        if self.awaited != trials:
            self.awaited = trials
            self._print(_waiting(_count(trials, "trial"), processes))


class LiveProgress:
    """A bar for the study, a bar for the epoch, and a table of the students' current accuracies."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self.console = console
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
        times = TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
        self.study_bar, self.epoch_bar = Progress(*columns, *times), Progress(*columns)
        self.title = ""
        self.work = [_steps(cohort) * len(cohort.trials) for cohort in plan.cohorts]
        self.study_task = self.study_bar.add_task("student steps", total=sum(self.work))
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

    def _view(self) -> Group:
        return Group(self.study_bar, Text(self.title), self.epoch_bar, self.students)

    def cohort(self, cohort: Cohort, number: int, total: int) -> None:
        self.title = f"[{number}/{total}] {cohort.title}, seed {cohort.seed}"
        # Set, not advanced: students that failed or were resumed took fewer steps.
        self.study_bar.update(self.study_task, completed=sum(self.work[: number - 1]))
        self.epoch_bar.reset(self.epoch_task, description="starting", total=None)
        self.students = ""

    def step(self, cohort: Cohort, epoch: int, step: int, steps: int) -> None:
        text = f"epoch {epoch}/{cohort.recipe.epochs}" if epoch > 0 else f"pretraining epoch {-epoch}"
        self.epoch_bar.update(self.epoch_task, description=text, completed=step, total=steps)
        if epoch > 0:
            self.study_bar.advance(self.study_task, len(cohort.trials))

    def epoch(self, cohort: Cohort, epoch: int, latest: Mapping[str, EpochMetrics]) -> None:
        table = Table("student", "top-1 %", "loss", "s/epoch", box=None, title=f"after epoch {epoch}")
        for trial in cohort.trials:
            if metrics := latest.get(trial.id):
                loss, seconds = sum(metrics.terms.values()), metrics.student_seconds + metrics.shared_seconds
                table.add_row(escape(_name(trial, cohort)), f"{metrics.top1:.2f}", f"{loss:.4f}", f"{seconds:.1f}")
        self.students = table

    def outcome(self, outcome: Outcome) -> None:
        if outcome.status != "done":
            self.console.print(escape(_failure(outcome)), highlight=False, soft_wrap=True)

    def waiting(self, trials: int, processes: Sequence[str]) -> None:
        self.title, self.students = _waiting(_count(trials, "trial"), processes), ""


def progress(console: Console, plan: Plan) -> LiveProgress | PlainProgress:
    """The live display if the output is a terminal, else plain lines."""
    return LiveProgress(console, plan) if console.is_terminal else PlainProgress(console, plan)


class ProbeProgress:
    """One bar over all linear probes on a terminal; elsewhere one line in QUIET_SECONDS at most."""

    def __init__(self, console: Console, groups: Sequence[Sequence[LinearProbe]]) -> None:
        self.console, self.groups, self.number, self.done = console, len(groups), 0, 0
        self.awaited = 0  # probes of other processes, as last printed
        self.total = sum(len(probes) * probes[0].recipe.epochs for probes in groups)
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
        self.bar = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self.task = self.bar.add_task("transfers", total=self.total)
        self.started = self.printed = time.monotonic()

    def __enter__(self) -> ProbeProgress:
        self.bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.__exit__(kind, error, traceback)

    def _print(self, text: str) -> None:
        self.console.print(escape(text), highlight=False, soft_wrap=True)
        self.printed = time.monotonic()

    def group(self, probes: Sequence[LinearProbe]) -> None:
        self.number += 1
        first = probes[0]
        self.title = f"[{self.number}/{self.groups}] {first.data.label}, {first.recipe_label}, seed {first.seed}"
        self._print(f"{self.title}: {_count(len(probes), 'network')}")

    def advance(self, epochs: int) -> None:
        self.done += epochs
        self.bar.advance(self.task, epochs)
        if not self.console.is_terminal and time.monotonic() - self.printed >= QUIET_SECONDS:
            seconds_left = (time.monotonic() - self.started) / self.done * (self.total - self.done)
            self._print(f"{self.title}: {self.done} of {self.total} epochs; about {seconds_left / 60:.1f} min left")

    def waiting(self, probes: int, processes: Sequence[str]) -> None:
        if self.awaited != probes:
            self.awaited = probes
            self._print(_waiting(_count(probes, "transfer"), processes))

    def record(self, record: ProbeRecord) -> None:
        if record.status != "done":
            self._print(f"{record.probe.id}: {record.status}: {record.reason}")
