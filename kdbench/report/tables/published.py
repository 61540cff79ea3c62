"""Ours beside theirs: every published number that the study has a counterpart of, and what can be said of both."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kdbench.report import published as numbers
from kdbench.report import statistics
from kdbench.report.groups import Group
from kdbench.report.model import Cell, Row, Sheet, Table, table
from kdbench.report.results import StudyResults
from kdbench.report.scores import pair_label, places, rows_of

COLUMNS = (
    *("dataset", "recipe", "teacher", "student", "method", "n", "ours", "published", "difference", "low", "high"),
    *("verdict", "source", "origin", "published_selection", "published_seeds"),
)
"""Of published.csv in tables/: `difference` is ours - published, with the interval of our mean where n > 1."""


@table("published", order=70)
def published(results: StudyResults) -> Sheet:
    """The interval is that of our mean over seeds."""
    frame = versus_published(results)
    return Sheet("Ours and published", frame, [_table(place, rows_of(frame, *place)) for place in places(frame)])


def _table(place: tuple[str, str], rows: list[dict[str, Any]]) -> Table:
    lines = [
        Row(
            f"{pair_label(row['teacher'], row['student'])}: {row['method']}",
            [
                Cell(row["ours"], n=row["n"]),
                Cell(row["published"]),
                Cell(row["difference"], "+.2f", interval=None if row["low"] is None else (row["low"], row["high"])),
                Cell(row["verdict"]),
                Cell(str(row["published_seeds"] or "unknown")),
            ],
        )
        for row in rows
    ]
    columns = [("ours (n)",), ("published",), ("difference",), ("verdict",), ("seeds there",)]
    sources = ", ".join(dict.fromkeys(row["source"] for row in rows))
    note = f"Published: {sources}; the interval is that of our mean over seeds."
    return Table("", place, columns, lines, notes=[note], corner="pair: method")


def versus_published(results: StudyResults) -> pd.DataFrame:
    """A row for each (dataset, recipe, teacher, student, method) that was published."""
    entries = numbers.entries()
    rows = []
    for group in results.groups:
        entry = entries.get((group.teacher, group.student, group.method))
        if entry is None or not group.done:
            continue
        difference = statistics.difference([score - entry.top1 for score in group.top1])
        assert difference is not None  # there is a score
        values = (
            difference.n,
            difference.mean + entry.top1,
            entry.top1,
            difference.mean,
            difference.low,
            difference.high,
        )
        said = _verdict(group, difference, results.rule, entry.selection)
        rows.append((*group.place, *values, said, entry.source, entry.origin, entry.selection, entry.seeds))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _verdict(group: Group, difference: statistics.Difference, rule: str, theirs: str) -> str:
    trial = group.records[0].trial
    other = [
        word
        for word, differs in (
            ("other data", trial.data.label != numbers.DATASET),
            ("other schedule", not trial.recipe.published()),
            ("another epoch counts", theirs not in (rule, numbers.UNKNOWN)),
            ("they do not say which epoch counts", theirs == numbers.UNKNOWN),
        )
        if differs
    ]
    if other:
        return f"not comparable: {', '.join(other)}"
    if difference.significant is None:
        return "the same in all seeds: no test" if difference.untestable else "one seed: no interval"
    return "differs" if difference.significant else "agrees"
