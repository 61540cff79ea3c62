"""What a person sees while a study trains: a live display on a terminal, plain lines elsewhere."""

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

QUIET_SECONDS = 5.0  # between two plain lines of one cohort


def _steps(cohort: Cohort) -> int:
    return cohort.data.train // cohort.recipe.batch_size * cohort.recipe.epochs


def _count(cohort: Cohort) -> str:
    return f"{len(cohort.trials)} student{'s' * (len(cohort.trials) > 1)}"


def _name(trial: Trial, cohort: Cohort) -> str:
    return trial.method if cohort.teachers else trial.arch


def _verdict(outcome: Outcome) -> str:
    trial = outcome.trial
    return f"{trial.pair} {trial.method}, seed {trial.seed}: {outcome.status}: {outcome.reason}"


def _waiting(what: str, processes: Sequence[str]) -> str:
    who = f"{len(processes)} other processes have" if len(processes) > 1 else "another process has"
    return f"waiting for {what} that {who} in hand"


class PlainProgress:
    """Lines for logs: one when a cohort starts, one an epoch (not more often than every few seconds), one an outcome
    that is not `done`."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self.console = console
        self.total = sum(_steps(cohort) * len(cohort.trials) for cohort in plan.cohorts)
        self.before = 0  # work of earlier cohorts, in student-steps
        self.waited = 0  # trials that it said it waits for
        self.started = self.spoke = time.monotonic()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def _say(self, text: str) -> None:
        self.console.print(escape(text), highlight=False, soft_wrap=True)
        self.spoke = time.monotonic()

    def cohort(self, cohort: Cohort, number: int, of: int) -> None:
        self.number, self.of = number, of
        self._say(f"[{number}/{of}] {cohort.title}, seed {cohort.seed}: {_count(cohort)}")

    def step(self, cohort: Cohort, epoch: int, step: int, steps: int) -> None:
        pass

    def epoch(self, cohort: Cohort, epoch: int, latest: Mapping[str, EpochMetrics]) -> None:
        last = epoch == cohort.recipe.epochs
        spent = time.monotonic() - self.started
        done = self.before + _steps(cohort) // cohort.recipe.epochs * epoch * len(cohort.trials)
        if last:
            self.before = done
        if last or time.monotonic() - self.spoke >= QUIET_SECONDS:
            students = ", ".join(
                f"{_name(trial, cohort)} {latest[trial.id].top1:.2f}" for trial in cohort.trials if trial.id in latest
            )
            left = spent / done * (self.total - done) if done else 0.0
            self._say(
                f"[{self.number}/{self.of}] epoch {epoch}/{cohort.recipe.epochs}: top-1 % {students or '-'}; "
                f"about {left / 60:.1f} min left"
            )

    def outcome(self, outcome: Outcome) -> None:
        if outcome.status != "done":
            self._say(_verdict(outcome))

    def waiting(self, trials: int, processes: Sequence[str]) -> None:
        if self.waited != trials:
            self.waited = trials
            self._say(_waiting(f"{trials} trial{'s' * (trials > 1)}", processes))


class LiveProgress:
    """A bar for the study, a bar for the epoch, and each student's current accuracy."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self.console = console
        bar = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
        self.bars = Progress(
            *bar, TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
        )
        self.inner = Progress(*bar)
        self.title = ""
        self.work = [_steps(cohort) * len(cohort.trials) for cohort in plan.cohorts]
        self.study = self.bars.add_task("student steps", total=sum(self.work))
        self.task = self.inner.add_task("", total=None)
        self.students: Table | str = ""
        self.live = Live(console=console, get_renderable=self._view, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveProgress:
        self.live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.live.__exit__(kind, error, tb)

    def _view(self) -> Group:
        return Group(self.bars, Text(self.title), self.inner, self.students)

    def cohort(self, cohort: Cohort, number: int, of: int) -> None:
        self.title = f"[{number}/{of}] {cohort.title}, seed {cohort.seed}"
        self.bars.update(self.study, completed=sum(self.work[: number - 1]))  # also where students failed or resumed
        self.inner.reset(self.task, description="starting", total=None)
        self.students = ""

    def step(self, cohort: Cohort, epoch: int, step: int, steps: int) -> None:
        text = f"epoch {epoch}/{cohort.recipe.epochs}" if epoch > 0 else f"pretraining epoch {-epoch}"
        self.inner.update(self.task, description=text, completed=step, total=steps)
        if epoch > 0:
            self.bars.advance(self.study, len(cohort.trials))

    def epoch(self, cohort: Cohort, epoch: int, latest: Mapping[str, EpochMetrics]) -> None:
        table = Table("student", "top-1 %", "loss", "s an epoch", box=None, title=f"after epoch {epoch}")
        for trial in cohort.trials:
            if now := latest.get(trial.id):
                row = (
                    f"{now.top1:.2f}",
                    f"{sum(now.terms.values()):.4f}",
                    f"{now.student_seconds + now.shared_seconds:.1f}",
                )
                table.add_row(escape(_name(trial, cohort)), *row)
        self.students = table

    def outcome(self, outcome: Outcome) -> None:
        if outcome.status != "done":
            self.console.print(escape(_verdict(outcome)), highlight=False, soft_wrap=True)

    def waiting(self, trials: int, processes: Sequence[str]) -> None:
        self.title, self.students = _waiting(f"{trials} trial{'s' * (trials > 1)}", processes), ""


def progress(console: Console, plan: Plan) -> LiveProgress | PlainProgress:
    """The display that fits where the output goes."""
    return LiveProgress(console, plan) if console.is_terminal else PlainProgress(console, plan)


class ProbeProgress:
    """One bar over all transfers on a terminal; lines elsewhere, not more often than every few seconds."""

    def __init__(self, console: Console, groups: Sequence[Sequence[LinearProbe]]) -> None:
        self.console, self.of, self.number, self.done = console, len(groups), 0, 0
        self.waited = 0  # transfers that it said it waits for
        self.total = sum(len(transfers) * transfers[0].recipe.epochs for transfers in groups)
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
        self.bar = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self.task = self.bar.add_task("transfers", total=self.total)
        self.started = self.spoke = time.monotonic()

    def __enter__(self) -> ProbeProgress:
        self.bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.bar.__exit__(kind, error, tb)

    def _say(self, text: str) -> None:
        self.console.print(escape(text), highlight=False, soft_wrap=True)
        self.spoke = time.monotonic()

    def group(self, transfers: Sequence[LinearProbe]) -> None:
        self.number += 1
        first, count = transfers[0], len(transfers)
        self.title = f"[{self.number}/{self.of}] {first.data.label}, {first.recipe_label}, seed {first.seed}"
        self._say(f"{self.title}: {count} network{'s' * (count > 1)}")

    def advance(self, epochs: int) -> None:
        self.done += epochs
        self.bar.advance(self.task, epochs)
        if not self.console.is_terminal and time.monotonic() - self.spoke >= QUIET_SECONDS:
            left = (time.monotonic() - self.started) / self.done * (self.total - self.done)
            self._say(f"{self.title}: {self.done} of {self.total} epochs; about {left / 60:.1f} min left")

    def waiting(self, transfers: int, processes: Sequence[str]) -> None:
        if self.waited != transfers:
            self.waited = transfers
            self._say(_waiting(f"{transfers} transfer{'s' * (transfers > 1)}", processes))

    def record(self, record: ProbeRecord) -> None:
        if record.status != "done":
            self._say(f"{record.probe.id}: {record.status}: {record.reason}")
