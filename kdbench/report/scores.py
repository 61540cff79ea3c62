"""Records -> one score a method and pair, and how tables of methods and pairs are laid out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdbench.core.record import Record
from kdbench.core.trial import VANILLA
from kdbench.report import published
from kdbench.report.groups import TEACHER, Group, method_key, newest
from kdbench.report.model import Cell, Heading, Place, Row, Table

if TYPE_CHECKING:
    from kdbench.report.results import StudyResults

TEXT = ("dataset", "recipe", "teacher", "student", "method", "status", "reason")
COLUMNS = (
    *("dataset", "recipe", "teacher", "student", "method", "status", "n"),
    *("top1_mean", "top1_sd", "top1_best_mean", "top5_mean", "seconds_per_epoch", "published", "gap", "reason"),
)
"""The columns of the long form and of accuracy.csv."""

WORST = ("failed", "diverged", "n/a")
ROW_LABELS = {TEACHER: "Teacher", VANILLA: "Student"}


@dataclass(frozen=True)
class Score:
    """Of one method and pair; the fields are COLUMNS."""

    dataset: str
    recipe: str
    teacher: str
    student: str
    method: str
    status: str
    n: int
    top1_mean: float | None
    top1_sd: float | None = None
    top1_best_mean: float | None = None
    top5_mean: float | None = None
    seconds_per_epoch: float | None = None
    published: float | None = None
    gap: float | None = None
    reason: str = ""


def frame(rows: Sequence[Score]) -> pd.DataFrame:
    """The long form, with the columns COLUMNS: text that is absent is empty, numbers that are absent are NaN."""
    kinds = {"n": "int64"} | dict.fromkeys(TEXT, "object")
    series = {name: pd.Series([getattr(r, name) for r in rows], dtype=kinds.get(name, "float64")) for name in COLUMNS}
    return pd.DataFrame(series)


def accuracy_rows(results: StudyResults) -> list[Score]:
    """One row per (dataset, recipe, teacher, student, method).

    Vanilla records appear in every pair whose student they are; the teacher's row shows the one network that taught.
    Variants are never averaged (see `groups`).
    """
    by_fingerprint = {record.trial.fingerprint: record for record in results.records}
    rows: list[Score] = []
    for groups in by_pair(results.groups).values():
        column = _teacher_row(groups, by_fingerprint) if groups[0].teacher else []
        column += [_row(group) for group in groups]
        trial = groups[0].records[0].trial
        if published.comparable(trial.data.label, trial.recipe):
            column = [_with_published(row, results.evaluated_on) for row in column]
        rows += column
    return rows


def by_pair(groups: Iterable[Group]) -> dict[tuple[str, str, str, str], list[Group]]:
    columns: defaultdict[tuple[str, str, str, str], list[Group]] = defaultdict(list)
    for group in groups:
        columns[group.dataset, group.recipe, group.teacher, group.student].append(group)
    return columns


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _with_published(row: Score, evaluated_on: str) -> Score:
    """With the published number and our distance from it, in points."""
    number = published.numbers(evaluated_on).get((row.teacher, row.student, row.method))
    gap = None if number is None or row.top1_mean is None else row.top1_mean - number
    return replace(row, published=number, gap=gap)


def _row(group: Group) -> Score:
    done = group.done
    statuses = {record.status for record in group.records}
    return Score(
        dataset=group.dataset,
        recipe=group.recipe,
        teacher=group.teacher,
        student=group.student,
        method=group.method,
        status=next((word for word in WORST if word in statuses), "done"),
        n=len(done),
        top1_mean=_mean(group.top1),
        top1_sd=stdev(group.top1) if len(done) > 1 else None,
        top1_best_mean=_mean(record.best_top1 for record in done),
        top5_mean=_mean(record.top5 for record in done),
        seconds_per_epoch=_mean(record.seconds_per_epoch for record in done),
        reason=_reason(group.records),
    )


def _teacher_row(groups: Sequence[Group], vanilla: dict[str, Record]) -> list[Score]:
    """The teacher as the newest of the pair's students met it; none if nobody did and its own trial is unknown."""
    met = [record for group in groups if group.method != VANILLA for record in group.records]
    source = newest([record for record in met if record.teacher_top1 is not None] or met)
    teachers, value = source.trial.teachers, source.teacher_top1
    status: str = "done"
    reason = ", ".join(f"file {teacher.sha256[:12]}" for teacher in teachers if teacher.sha256)
    trained = vanilla.get(teachers[0].trial or "") if len(teachers) == 1 else None
    if value is None and trained is not None:
        value = trained.top1 if trained.status == "done" else None
        status, reason = trained.status, _reason([trained])
    if value is None and status == "done":
        return []
    first = groups[0]
    cell_key = (first.dataset, first.recipe, first.teacher, first.student, TEACHER)
    return [Score(*cell_key, status, int(value is not None), value, reason=reason)]


def seed_list(records: Sequence[Record]) -> str:
    numbers = ", ".join(str(record.trial.seed) for record in records)
    return f"seed{'s' if len(records) > 1 else ''} {numbers}"


def listed(words: Iterable[str], most: int = 3, separator: str = ", ") -> str:
    """`a, b, c and 4 more`."""
    distinct = list(dict.fromkeys(words))
    if len(distinct) > most + 1:
        distinct = [*distinct[:most], f"{len(distinct) - most} more"]
    return " and ".join([separator.join(distinct[:-1]), distinct[-1]] if len(distinct) > 1 else distinct)


def one_line(reason: str | None) -> str:
    return " ".join((reason or "no reason was recorded").split())


def _reason(records: Sequence[Record]) -> str:
    """`seed 1 diverged: ...`, seeds with the same end together; of n/a records the reason alone."""
    ends: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.status != "done":
            ends[record.status, one_line(record.reason)].append(record)
    parts = sorted(ends.items(), key=lambda end: WORST.index(end[0][0]))
    return "; ".join(
        reason if status == "n/a" else f"{seed_list(of)} {status}: {reason}" for (status, reason), of in parts
    )


def places(frame: pd.DataFrame) -> list[Place]:
    """The (dataset, recipe) of each table, in order."""
    return list(dict.fromkeys((str(row["dataset"]), str(row["recipe"])) for row in frame.to_dict("records")))


def rows_of(frame: pd.DataFrame, dataset: str, recipe: str) -> list[dict[str, Any]]:
    """One table's rows as plain mappings; absent numbers are None."""
    rows = []
    for row in frame.to_dict("records"):
        if (row["dataset"], row["recipe"]) == (dataset, recipe):
            rows.append({str(name): None if value != value else value for name, value in row.items()})
    return rows


Column = tuple[str, str, str]
"""Teacher, student, and the data set of a transfer (otherwise empty)."""


def column(row: dict[str, Any]) -> Column:
    """The column of its table in which a row stands."""
    return row["teacher"], row["student"], row.get("target") or ""


def heading(of: Column) -> Heading:
    """Teacher and student; the target follows the student after a comma."""
    teacher, student, target = of
    return (*filter(None, (teacher,)), f"{student}, {target}" if target else student)


def pair_label(teacher: str, student: str) -> str:
    """`resnet56 → resnet20`."""
    return " → ".join(heading((teacher, student, "")))


def row_label(method: str) -> str:
    return ROW_LABELS.get(method, method)


def score_cell(row: dict[str, Any]) -> Cell:
    """`91.23 ± 0.45 (3)`, `91.23 (1)`, or a word; a word also follows the mean of the seeds that were left."""
    return Cell(
        row["top1_mean"],
        spread=row["top1_sd"],
        n=row["n"],
        status="" if row["status"] == "done" else row["status"],
        reason=row["reason"],
        second=published_note(row),
    )


def published_note(row: dict[str, Any]) -> str:
    """`publ. 74.92 (-0.31)`: the published number and our distance from it; empty where nothing was published."""
    if row["published"] is None:
        return ""
    return f"publ. {row['published']:.2f}" + ("" if row["gap"] is None else f" ({row['gap']:+.2f})")


def best(rows: Sequence[dict[str, Any]]) -> set[tuple[Column, str]]:
    """The place of each column's best distillation methods; equal as printed is equally good.

    A method of which a seed failed or diverged is passed over: the mean of its survivors is a chosen one.
    """
    cells: set[tuple[Column, str]] = set()
    for pair_column in dict.fromkeys(map(column, rows)):
        means = {
            row["method"]: round(row["top1_mean"], 2)
            for row in rows
            if column(row) == pair_column
            and row["method"] not in ROW_LABELS
            and row["status"] == "done"
            and row["top1_mean"] is not None
        }
        cells |= {(pair_column, method) for method, mean in means.items() if mean == max(means.values())}
    return cells


def grid(
    title: str,
    place: Place,
    rows: Sequence[dict[str, Any]],
    cell: Callable[[dict[str, Any]], Cell],
    notes: Sequence[str] = (),
    parts: Sequence[int] = (),
) -> Table:
    """One table's rows in the paper's layout: a line a method, a column a pair (and a target)."""
    by_cell, columns = {cell_key(row): row for row in rows}, list(dict.fromkeys(map(column, rows)))
    lines = [
        Row(row_label(method), [cell(row) if (row := by_cell.get((of, method))) else Cell() for of in columns])
        for method in method_order(rows)
    ]
    return Table(title, place, [heading(of) for of in columns], lines, notes=notes, parts=parts)


def cell_key(row: dict[str, Any]) -> tuple[Column, str]:
    """Where a row stands in its table: its column and its method."""
    return column(row), row["method"]


def method_order(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The methods of some rows in the order of tables."""
    return sorted(dict.fromkeys(str(row["method"]) for row in rows), key=method_key)
