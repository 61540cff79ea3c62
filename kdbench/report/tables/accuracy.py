"""Top-1 accuracy of each method and pair, in the paper's layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kdbench.report import published
from kdbench.report.comparison import Comparison
from kdbench.report.model import Cell, Sheet, Table, table
from kdbench.report.results import StudyResults
from kdbench.report.scores import best, cell_key, column, grid, places, rows_of, score_cell

SAME = 7
"""The paper's first table has its seven pairs of one family, its second the others."""

TIE_NOTE = (
    "≈: cannot be told apart from the best method of its column (paired by seed, 5 %, Holm-corrected in the column)."
)


@table("accuracy", order=10, terminal=True)
def accuracy(results: StudyResults) -> Sheet:
    """Mean ± sample standard deviation (seeds); the number that was published below it."""
    frame, studies = results.accuracy, {(study.dataset, study.recipe): study for study in results.comparisons}
    tables = [_table(results, place, rows_of(frame, *place), studies.get(place)) for place in places(frame)]
    return Sheet("Top-1 accuracy (%)", frame, tables, [*results.notes, *[TIE_NOTE] * bool(results.ties)])


def _table(
    results: StudyResults, place: tuple[str, str], rows: Sequence[dict[str, Any]], study: Comparison | None
) -> Table:
    first = best(rows)
    second = best([row for row in rows if cell_key(row) not in first])

    def cell(row: dict[str, Any]) -> Cell:
        key = cell_key(row)
        return replace(
            score_cell(row),
            best=key in first,
            second_best=key in second,
            tied=key in results.ties,
            tip=_difference(row, study),
            trials=(*place, row["teacher"], row["student"], row["method"]),
        )

    columns = list(dict.fromkeys(map(column, rows)))
    same = sum(published.pairs().get(of[:2], SAME) < SAME for of in columns)
    return grid("", place, rows, cell, parts=[same] if 0 < same < len(columns) else [])


def _difference(row: dict[str, Any], study: Comparison | None) -> str:
    difference = study.over_seeds.get((row["method"], (row["teacher"], row["student"]))) if study else None
    if study is None or difference is None:
        return ""
    text = f"{difference.mean:+.2f} points to {study.baseline}, n = {difference.n}"
    if difference.low is not None and difference.high is not None:
        text += f", 95 % [{difference.low:+.2f}, {difference.high:+.2f}]"
    return text
