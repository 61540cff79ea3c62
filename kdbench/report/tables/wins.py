"""In how many pairs each method is better than, equal to and worse than each other."""

from __future__ import annotations

import pandas as pd

from kdbench.report import statistics
from kdbench.report.comparison import Comparison
from kdbench.report.model import Cell, Row, Sheet, Table, table
from kdbench.report.results import StudyResults

COLUMNS = ("dataset", "recipe", "method", "other", "won", "tied", "lost")
"""Of wins.csv: pairs, by means to two decimals."""


@table("wins", order=35)
def wins(results: StudyResults) -> Sheet:
    """Rows against columns, of tables that can be ranked."""
    studies = [study for study in results.comparisons if study.ranking]
    rows = [
        (study.dataset, study.recipe, method, other, *counts)
        for study in studies
        for (method, other), counts in _counts(study).items()
    ]
    return Sheet(
        "Pairs won / tied / lost, row against column",
        pd.DataFrame(rows, columns=list(COLUMNS)),
        [_table(study) for study in studies],
    )


def _counts(study: Comparison) -> dict[tuple[str, str], tuple[int, int, int]]:
    means = {method: study.means(method) for method in study.methods}
    return {
        (row, column): statistics.wins(means[row], means[column]) for row in means for column in means if row != column
    }


def _table(study: Comparison) -> Table:
    counts = _counts(study)

    def cell(row: str, column: str) -> Cell:
        return Cell("/".join(map(str, counts[row, column])) if row != column else None)

    rows = [Row(row, [cell(row, column) for column in study.methods]) for row in study.methods]
    columns = [(method,) for method in study.methods]
    return Table("", (study.dataset, study.recipe), columns, rows)
