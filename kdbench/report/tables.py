"""Records -> the accuracy table, in long form and in the paper's layout, and the footnotes that belong to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdbench.core.record import Record
from kdbench.core.trial import VANILLA
from kdbench.report import published
from kdbench.report.groups import TEACHER, Group, method_key, newest

if TYPE_CHECKING:
    from kdbench.report.results import StudyResults

TEXT = ("dataset", "recipe", "teacher", "student", "method", "status", "reason")
COLUMNS = (
    *("dataset", "recipe", "teacher", "student", "method", "status", "n"),
    *("top1_mean", "top1_sd", "top1_best_mean", "top5_mean", "seconds_per_epoch", "published", "gap", "reason"),
)
"""The columns of the long form and of accuracy.csv."""

MISSING = "–"
TIE = " ≈"
TIE_NOTE = (
    "≈: cannot be told apart from the best method of its column (paired by seed, 5 %, Holm-corrected in the column)."
)
WORST = ("failed", "diverged", "n/a")
ROW_LABELS = {TEACHER: "Teacher", VANILLA: "Student"}


@dataclass(frozen=True)
class Row:
    """One row of the accuracy table; the fields are COLUMNS."""

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


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The long form, with the columns COLUMNS: text that is absent is empty, numbers that are absent are NaN."""
    kinds = {"n": "int64"} | dict.fromkeys(TEXT, "object")
    series = {name: pd.Series([getattr(r, name) for r in rows], dtype=kinds.get(name, "float64")) for name in COLUMNS}
    return pd.DataFrame(series)


def accuracy_rows(results: StudyResults) -> list[Row]:
    """One row per (dataset, recipe, teacher, student, method).

    Vanilla records appear in every pair whose student they are; the teacher's row shows the one network that taught.
    Variants are never averaged (see `groups`).
    """
    by_fingerprint = {record.trial.fingerprint: record for record in results.records}
    rows: list[Row] = []
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


def _with_published(row: Row, evaluated_on: str) -> Row:
    """With the published number and our distance from it, in points."""
    number = published.numbers(evaluated_on).get((row.teacher, row.student, row.method))
    gap = None if number is None or row.top1_mean is None else row.top1_mean - number
    return replace(row, published=number, gap=gap)


def _row(group: Group) -> Row:
    done = group.done
    statuses = {record.status for record in group.records}
    return Row(
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


def _teacher_row(groups: Sequence[Group], vanilla: dict[str, Record]) -> list[Row]:
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
    return [Row(*cell_key, status, int(value is not None), value, reason=reason)]


def seed_list(records: Sequence[Record]) -> str:
    numbers = ", ".join(str(record.trial.seed) for record in records)
    return f"seed{'s' if len(records) > 1 else ''} {numbers}"


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


def tables(frame: pd.DataFrame) -> list[tuple[str, str]]:
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


def column_label(of: Column, separator: str = " → ") -> str:
    """`resnet56 → resnet20`, and the target after a comma."""
    pair = separator.join(filter(None, of[:2]))
    return f"{pair}, {of[2]}" if of[2] else pair


def pair_label(teacher: str, student: str) -> str:
    return column_label((teacher, student, ""))


def row_label(method: str) -> str:
    return ROW_LABELS.get(method, method)


def cell(row: dict[str, Any]) -> str:
    """`91.23 ± 0.45 (3)`, `91.23 (1)`, or a word; a word also follows the mean of the seeds that were left."""
    if row["top1_mean"] is None:
        return str(row["status"]) if row["status"] != "done" else MISSING
    spread = "" if row["top1_sd"] is None else f" ± {row['top1_sd']:.2f}"
    word = "" if row["status"] == "done" else f", {row['status']}"
    return f"{row['top1_mean']:.2f}{spread} ({row['n']}){word}"


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


def wide(
    frame: pd.DataFrame,
    dataset: str,
    recipe: str,
    bold: Callable[[str], str] = str,
    second: str | None = None,
    ties: Collection[tuple[Column, str]] = (),
) -> pd.DataFrame:
    """The paper's layout as text: rows Teacher, Student, methods; a column a pair.

    `bold` marks the best cells, ALIKE those of `alike`; with `second`, a separator, the published number follows.
    """
    rows = rows_of(frame, dataset, recipe)
    winners = best(rows)

    def text(row: dict[str, Any]) -> str:
        own = bold(cell(row)) if cell_key(row) in winners else cell(row) + TIE * (cell_key(row) in ties)
        return own + second + published_note(row) if second is not None and published_note(row) else own

    return layout(rows, text)


def layout(rows: Sequence[dict[str, Any]], text: Callable[[dict[str, Any]], str]) -> pd.DataFrame:
    """One table's rows as text: a row a method, a column a pair (and a target)."""
    by_cell = {cell_key(row): row for row in rows}
    methods = method_order(rows)
    columns = {
        column_label(pair): [text(row) if (row := by_cell.get((pair, method))) else MISSING for method in methods]
        for pair in dict.fromkeys(map(column, rows))
    }
    return pd.DataFrame(columns, index=[row_label(method) for method in methods], dtype="object")


def cell_key(row: dict[str, Any]) -> tuple[Column, str]:
    """Where a row stands in its table: its column and its method."""
    return column(row), row["method"]


def method_order(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The methods of some rows in the order of tables."""
    return sorted(dict.fromkeys(str(row["method"]) for row in rows), key=method_key)
