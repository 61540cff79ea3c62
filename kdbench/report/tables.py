"""Records -> the accuracy table, in long form and in the paper's layout, and the footnotes that belong to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from kdbench.core.record import Record
from kdbench.core.trial import VANILLA, Trial
from kdbench.report import published
from kdbench.report.epoch_rules import RULES
from kdbench.report.groups import TEACHER, Group, Selection, finished, method_key, newest, select, table_of

TEXT = ("dataset", "recipe", "teacher", "student", "method", "status", "reason")
COLUMNS = (
    *("dataset", "recipe", "teacher", "student", "method", "status", "n"),
    *("top1_mean", "top1_sd", "top1_best_mean", "top5_mean", "seconds_per_epoch", "published", "gap", "reason"),
)
"""The columns of the long form and of accuracy.csv."""

MISSING = "–"
ALIKE = " ≈"
ALIKE_NOTE = (
    "≈: cannot be told apart from the best method of its column (paired by seed, 5 %, Holm-corrected in the column)."
)
WORST = ("failed", "diverged", "n/a")
_ROW_LABELS = {TEACHER: "Teacher", VANILLA: "Student"}


@dataclass(frozen=True)
class _Row:
    """One row of the long form; the fields are COLUMNS."""

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


def accuracy(
    records: Sequence[Record], asked: Collection[str] = (), evaluated_on: str = published.DATASET
) -> pd.DataFrame:
    """The long form: one row per (dataset, recipe, teacher, student, method), with the columns COLUMNS.

    Text that is absent is empty, numbers that are absent are NaN. Vanilla records appear in every pair whose student
    they are; the teacher's row shows the one network that taught. Variants are never averaged (see `groups`).
    `evaluated_on` chooses the published numbers.
    """
    return _frame(_rows(select(records, asked), records, evaluated_on))


def _frame(rows: Sequence[_Row]) -> pd.DataFrame:
    kinds = {"n": "int64"} | dict.fromkeys(TEXT, "object")
    series = {name: pd.Series([getattr(r, name) for r in rows], dtype=kinds.get(name, "float64")) for name in COLUMNS}
    return pd.DataFrame(series)


def _rows(selection: Selection, records: Sequence[Record], evaluated_on: str = published.DATASET) -> list[_Row]:
    by_fingerprint = {record.trial.fingerprint: record for record in records}
    rows: list[_Row] = []
    for groups in _by_pair(selection.groups).values():
        column = _teacher_row(groups, by_fingerprint) if groups[0].teacher else []
        column += [_row(group) for group in groups]
        trial = groups[0].records[0].trial
        if trial.data.label == published.DATASET and trial.recipe.published():
            column = [_beside_published(row, evaluated_on) for row in column]
        rows += column
    return rows


def _by_pair(groups: Iterable[Group]) -> dict[tuple[str, str, str, str], list[Group]]:
    columns: defaultdict[tuple[str, str, str, str], list[Group]] = defaultdict(list)
    for group in groups:
        columns[group.dataset, group.recipe, group.teacher, group.student].append(group)
    return columns


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _beside_published(row: _Row, evaluated_on: str) -> _Row:
    """With the published number and our distance from it, in points."""
    number = published.numbers(evaluated_on).get((row.teacher, row.student, row.method))
    gap = None if number is None or row.top1_mean is None else row.top1_mean - number
    return replace(row, published=number, gap=gap)


def _row(group: Group) -> _Row:
    done = group.done
    statuses = {record.status for record in group.records}
    return _Row(
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


def _teacher_row(groups: Sequence[Group], vanilla: dict[str, Record]) -> list[_Row]:
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
    place = (first.dataset, first.recipe, first.teacher, first.student, TEACHER)
    return [_Row(*place, status, int(value is not None), value, reason=reason)]


def _seeds(records: Sequence[Record]) -> str:
    numbers = ", ".join(str(record.trial.seed) for record in records)
    return f"seed{'s' if len(records) > 1 else ''} {numbers}"


def _one_line(reason: str | None) -> str:
    return " ".join((reason or "no reason was recorded").split())


def _reason(records: Sequence[Record]) -> str:
    """`seed 1 diverged: ...`, seeds with the same end together; of n/a records the reason alone."""
    ends: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.status != "done":
            ends[record.status, _one_line(record.reason)].append(record)
    parts = sorted(ends.items(), key=lambda end: WORST.index(end[0][0]))
    return "; ".join(
        reason if status == "n/a" else f"{_seeds(of)} {status}: {reason}" for (status, reason), of in parts
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
    return _ROW_LABELS.get(method, method)


def cell(row: dict[str, Any]) -> str:
    """`91.23 ± 0.45 (3)`, `91.23 (1)`, or a word; a word also follows the mean of the seeds that were left."""
    if row["top1_mean"] is None:
        return str(row["status"]) if row["status"] != "done" else MISSING
    spread = "" if row["top1_sd"] is None else f" ± {row['top1_sd']:.2f}"
    word = "" if row["status"] == "done" else f", {row['status']}"
    return f"{row['top1_mean']:.2f}{spread} ({row['n']}){word}"


def beside(row: dict[str, Any]) -> str:
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
            and row["method"] not in _ROW_LABELS
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
    alike: Collection[tuple[Column, str]] = (),
) -> pd.DataFrame:
    """The paper's layout as text: rows Teacher, Student, methods; a column a pair.

    `bold` marks the best cells, ALIKE those of `alike`; with `second`, a separator, the published number follows.
    """
    rows = rows_of(frame, dataset, recipe)
    winners = best(rows)

    def text(row: dict[str, Any]) -> str:
        own = bold(cell(row)) if place(row) in winners else cell(row) + ALIKE * (place(row) in alike)
        return own + second + beside(row) if second is not None and beside(row) else own

    return layout(rows, text)


def layout(rows: Sequence[dict[str, Any]], text: Callable[[dict[str, Any]], str]) -> pd.DataFrame:
    """One table's rows as text: a row a method, a column a pair (and a target)."""
    by_place = {place(row): row for row in rows}
    methods = method_order(rows)
    columns = {
        column_label(pair): [text(row) if (row := by_place.get((pair, method))) else MISSING for method in methods]
        for pair in dict.fromkeys(map(column, rows))
    }
    return pd.DataFrame(columns, index=[row_label(method) for method in methods], dtype="object")


def place(row: dict[str, Any]) -> tuple[Column, str]:
    """Where a row stands in its table: its column and its method."""
    return column(row), row["method"]


def method_order(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The methods of some rows in the order of tables."""
    return sorted(dict.fromkeys(str(row["method"]) for row in rows), key=method_key)


def footnotes(records: Sequence[Record], asked: Collection[str] = (), rule: str = "last") -> list[str]:
    """All that a reader must know beside the cells, as plain sentences."""
    if not records:
        return []
    selection = select(records, asked)
    rows = _rows(selection, records)
    notes = [
        f"Cells: top-1 accuracy (%) on the test split, {RULES[rule][1]}, mean ± sample standard deviation "
        "(ddof = 1) over seeds (number of seeds).",
        "accuracy.csv: top1_best_mean takes each seed's best epoch, chosen on the test split: optimistic.",
    ]
    if any(row.method == TEACHER for row in rows):
        notes.append("Teacher: the one network that taught the pair's students, n = 1.")
    if any(row.method not in _ROW_LABELS for row in rows):
        notes.append(
            "Bold: the best mean of a distillation method in its column; "
            "one with a failed or diverged seed is passed over."
        )
    if any(row.published is not None for row in rows):
        notes.append(f"Published numbers: {published.SOURCE}; gap = ours - published, in points.")
    several = len({table_of(record) for record in records}) > 1
    for table in dict.fromkeys((row.dataset, row.recipe) for row in rows):
        prefix = f"{table[0]}, {table[1]}: " if several else ""
        groups = [group for group in selection.groups if (group.dataset, group.recipe) == table]
        counts = {row.n for row in rows if (row.dataset, row.recipe) == table and row.method != TEACHER and row.n}
        sentences = [*_spread(counts), *_mixtures(groups), *_codes(groups)]
        sentences += _ends(groups, [record for record in selection.teachers if table_of(record) == table])
        sentences += _superseded([record for record in selection.superseded if table_of(record) == table])
        notes += [prefix + sentence for sentence in sentences]
    return notes


def _spread(counts: set[int]) -> list[str]:
    notes = ["n = 1: no spread can be given."] if 1 in counts else []
    if len(counts) > 1:
        notes.append(f"n differs between cells: from {min(counts)} to {max(counts)} seeds.")
    return notes


def _listed(words: Iterable[str], most: int = 3, separator: str = ", ") -> str:
    distinct = list(dict.fromkeys(words))
    if len(distinct) > most + 1:
        distinct = [*distinct[:most], f"{len(distinct) - most} more"]
    return " and ".join([separator.join(distinct[:-1]), distinct[-1]] if len(distinct) > 1 else distinct)


def _mixtures(groups: Sequence[Group]) -> list[str]:
    """Records of one table that were not made alike. n/a records were not made at all."""
    records = [record for group in groups for record in group.records if record.status != "n/a"]

    def values(name: str, of: Sequence[Record]) -> list[str]:
        return sorted({str(r.environment[name]).split(":")[0] for r in of if r.environment.get(name) is not None})

    # Threads change the order of sums on the processor only.
    on_cpu = [r for r in records if str(r.environment.get("device", "cpu")).startswith("cpu")]
    mixed = {"torch": values("torch", records), "devices": values("device", records)}
    mixed["thread counts"] = sorted(values("threads", on_cpu), key=lambda count: (len(count), count))
    notes = [f"This table mixes {what} {_listed(of, 9)}." for what, of in mixed.items() if len(of) > 1]
    contents = {group.records[0].trial.data.content for group in groups}
    if len(contents) > 1:
        notes.append(f"This table mixes {len(contents)} versions of the images under one label.")
    if any(len({_schedule(group.records[0].trial) for group in of}) > 1 for of in _by_pair(groups).values()):
        notes.append("This table mixes different training schedules or learning rates within a column.")
    return notes


def _schedule(trial: Trial) -> tuple[object, ...]:
    recipe = trial.recipe
    fixed = (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.weight_decay, recipe.milestones, recipe.gamma)
    return *fixed, recipe.size, recipe.pad, trial.lr


def _codes(groups: Sequence[Group]) -> list[str]:
    """Forms of one method that were trained before and after an edit of its file."""
    codes: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for group in groups:
        codes[group.records[0].trial.base][group.records[0].trial.code] = None
    return [
        f"{base}: its rows were trained with {len(hashes)} versions of its code; run them again to compare them."
        for base, hashes in codes.items()
        if len(hashes) > 1
    ]


def _ends(groups: Sequence[Group], teachers: Sequence[Record]) -> list[str]:
    """Each distinct reason once, with the cells that it concerns."""
    places: defaultdict[tuple[str, str], dict[str, dict[str, Record]]] = defaultdict(dict)
    shown = [record for group in groups for record in group.records]
    for record in (*shown, *teachers):  # a vanilla record may come more than once
        if record.status != "done":
            cells = places[record.status, _one_line(record.reason)]
            cells.setdefault(_described(record), {})[record.trial.id] = record
    notes = []
    for (status, reason), cells in sorted(places.items(), key=lambda item: WORST.index(item[0][0])):
        seeds = {place: "" if status == "n/a" else f", {_seeds(list(of.values()))}" for place, of in cells.items()}
        notes.append(f"{status}: {reason} ({_listed((place + seeds[place] for place in cells), separator='; ')})")
    return notes


def _described(record: Record) -> str:
    return f"{record.trial.method}, {pair_label(record.trial.teacher, record.trial.arch)}"


def _superseded(records: Sequence[Record]) -> list[str]:
    if not records:
        return []
    ordered = sorted(records, key=lambda record: (finished(record), record.trial.id))
    many = len(records) > 1
    return [
        f"{len(records)} superseded record{'s' if many else ''} left out: made with other code, settings, teacher, "
        f"data or protocol than the newest ({_listed(map(_described, ordered), separator='; ')})."
    ]
