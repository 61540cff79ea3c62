"""What a training epoch of each method takes, beside its plain student's."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

import pandas as pd

from kdbench.core.record import Record
from kdbench.core.trial import VANILLA
from kdbench.report.footnotes import MIXED_COMPILED
from kdbench.report.groups import Group, newest
from kdbench.report.model import Cell, Sheet, table
from kdbench.report.results import StudyResults
from kdbench.report.scores import grid, listed, pair_label, places, rows_of

COLUMNS = {
    **dict.fromkeys(("dataset", "recipe", "teacher", "student", "method", "device", "precision"), "object"),
    "n": "int64",
    **dict.fromkeys(("seconds_per_epoch", "times_vanilla", "student_seconds", "shared_seconds"), "float64"),
    **dict.fromkeys(("images_per_second", "extra_parameters", "extra_mib", "peak_mib", "cohort_size"), "float64"),
    "jobs": "int64",
}
"""The columns of the long form and of cost.csv, and what they hold."""

LEAST_TIMES_VANILLA = 0.9
"""Of the plain student's seconds, below which a method's are not believed."""

_NOTE = (
    "Cost: seconds of a training epoch had the student been trained alone, teacher and data included, and how many "
    "times the plain student's; medians over epochs and seeds on one device. Memory and parameters are in cost.csv."
)


def notes(frame: pd.DataFrame) -> list[str]:
    """What a table of costs must say."""
    if frame.empty:
        return []
    most = int(frame["jobs"].max())
    beside = f"Cost: up to {most} jobs ran side by side, so that times are longer than those of one job alone."
    return [_NOTE, beside] if most > 1 else [_NOTE]


def costs(results: StudyResults) -> pd.DataFrame:
    """One row per (dataset, recipe, teacher, student, method) that was trained, with the columns COLUMNS.

    Seconds of different devices, threads, jobs or precisions are never averaged: those of the newest record count.
    `times_vanilla` compares with the plain student on the same device, and is NaN where there is none.
    """
    plain = {_column(group): group for group in results.groups if group.method == VANILLA}
    rows = [row for group in results.groups if (row := _row(group, plain.get(_column(group))))]
    return pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=of) for name, of in COLUMNS.items()})


@table("cost", order=40, terminal=True)
def cost(results: StudyResults) -> Sheet:
    """Seconds of an epoch, and how many times the plain student's."""
    frame = costs(results)
    tables = [grid("", place, rows_of(frame, *place), _cell) for place in places(frame)]
    said = notes(frame)
    if any(MIXED_COMPILED in note for note in results.notes):
        said.append(f"Cost: {MIXED_COMPILED}; their times cannot be compared.")
    cheaper = [
        f"{row['method']} ({pair_label(row['teacher'], row['student'])})"
        for row in frame.to_dict("records")
        if row["times_vanilla"] < LEAST_TIMES_VANILLA
    ]
    if cheaper:
        said.append(
            f"Cost: the times of {listed(cheaper, 5)} or of the plain student, whose step is part of every method's, "
            "were disturbed, by something else on the machine for instance."
        )
    return Sheet("Cost of a training epoch", frame, tables, said)


def _cell(row: dict[str, Any]) -> Cell:
    """`16.1 s (1.31×)`, or the seconds alone for the plain student and where there is none."""
    many = row["times_vanilla"]
    aside = "" if many is None or row["method"] == VANILLA else f"({many:.2f}×)"
    rate, extra = row["images_per_second"], row["extra_parameters"]
    tip = f"{rate:.0f} images/s; {'unknown' if extra is None else f'{extra:.0f}'} extra parameters"
    return Cell(row["seconds_per_epoch"], ".3g", " s", aside=aside, tip=tip)


def _column(group: Group) -> tuple[str, str, str, str]:
    return group.dataset, group.recipe, group.teacher, group.student


def _conditions(record: Record) -> tuple[object, ...]:
    machine = record.environment
    return (
        *(machine.get(name) for name in ("device", "threads", "torch", "compiled")),
        _jobs(record),
        record.trial.precision,
    )


def _jobs(record: Record) -> int:
    """How many jobs ran side by side when it was trained."""
    return int(record.environment.get("jobs") or 1)


def _timed(group: Group) -> list[Record]:
    return [record for record in group.done if record.seconds_per_epoch]


def _row(group: Group, plain: Group | None) -> dict[str, Any] | None:
    timed = _timed(group)
    if not timed:
        return None
    latest = newest(timed)
    comparable = [record for record in timed if _conditions(record) == _conditions(latest)]
    seconds = _median(record.seconds_per_epoch for record in comparable)
    vanilla_records = (
        [record for record in _timed(plain) if _conditions(record) == _conditions(latest)] if plain else []
    )
    vanilla = _median(record.seconds_per_epoch for record in vanilla_records)
    return {
        **dict(zip(("dataset", "recipe", "teacher", "student"), _column(group), strict=True)),
        "method": group.method,
        "device": str(latest.environment.get("device", "")),
        "precision": latest.trial.precision,
        "n": len(comparable),
        "seconds_per_epoch": seconds,
        "times_vanilla": seconds / vanilla if seconds and vanilla else None,
        "student_seconds": _median(record.student_seconds for record in comparable),
        "shared_seconds": _median(record.shared_seconds for record in comparable),
        "images_per_second": latest.trial.data.train / seconds if seconds else None,
        **{
            name: _median(record.cost.get(name) for record in comparable)
            for name in ("extra_parameters", "extra_mib", "peak_mib", "cohort_size")
        },
        "jobs": _jobs(latest),
    }


def _median(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return median(known) if known else None
