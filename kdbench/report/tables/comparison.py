"""Differences to the baseline: over pairs as a table, within pairs in the long form; and what may be said of them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kdbench.core.trial import VANILLA
from kdbench.report import statistics
from kdbench.report.comparison import Comparison, answer, sentences
from kdbench.report.model import Cell, Row, Sheet, Table, table
from kdbench.report.results import StudyResults
from kdbench.report.statistics import Difference, Pair

COLUMNS = (
    *("dataset", "recipe", "teacher", "student", "method", "baseline", "n"),
    *("difference", "low", "high", "p", "p_holm", "relative_improvement"),
)
"""Of comparison.csv. Rows over all pairs have no teacher and no student, and n counts pairs instead of seeds."""


@table("comparison", order=20, terminal=True)
def comparison(results: StudyResults) -> Sheet:
    """Points above the baseline over pairs, with interval and corrected p."""
    tables = [_table(study) for study in results.comparisons]
    return Sheet("Comparison", _frame(results), tables, decimals=8)


def _table(study: Comparison) -> Table:
    rows = [
        Row(
            method,
            [
                Cell(difference.mean, "+.2f"),
                Cell(
                    None
                    if difference.low is None or difference.high is None
                    else f"[{difference.low:+.2f}, {difference.high:+.2f}]"
                ),
                Cell(study.corrected[method, None], ".4f"),
                Cell(difference.n, "d"),
            ],
        )
        for method, difference in study.over_pairs.items()
    ]
    columns = [("points",), ("95 % interval",), ("p (Holm)",), ("pairs",)]
    title = f"points above {study.baseline}, over pairs" if study.baseline else ""
    lead = answer(study)
    rest = [sentence for sentence in sentences(study) if sentence not in lead]
    return Table(title, (study.dataset, study.recipe), columns, rows, lead, rest)


def _frame(results: StudyResults) -> pd.DataFrame:
    """The long form: a row for each method and pair, and one for each method over all pairs."""
    rows: list[dict[str, Any]] = []
    for study in results.comparisons:
        if study.baseline is None:
            continue
        base = study.means(study.baseline)
        plain = study.means(VANILLA) if VANILLA in study.values else {}
        for (method, pair), difference in study.over_seeds.items():
            rows.append(_row(study, method, pair, difference, study.corrected[method, pair], None))
        for method, difference in study.over_pairs.items():
            own = study.means(method)
            gain = None if study.baseline == VANILLA else statistics.relative_improvement(own, base, plain)
            rows.append(_row(study, method, ("", ""), difference, study.corrected[method, None], gain))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(
    study: Comparison, method: str, pair: Pair, difference: Difference, corrected: float | None, gain: float | None
) -> dict[str, Any]:
    place = (study.dataset, study.recipe, *pair, method, study.baseline)
    values = (difference.n, difference.mean, difference.low, difference.high, difference.p, corrected, gain)
    return dict(zip(COLUMNS, (*place, *values), strict=True))
