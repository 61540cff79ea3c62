"""Average ranks over pairs, with Friedman's test over the whole table."""

from __future__ import annotations

import pandas as pd

from kdbench.report.model import Cell, Row, Sheet, Table, table
from kdbench.report.results import StudyResults


@table("ranks", order=30)
def ranks(results: StudyResults) -> Sheet:
    """Of the methods that have every pair; 1 is the best."""
    found = [
        (study.dataset, study.recipe, ranking)
        for study in results.comparisons
        if (ranking := study.ranking) is not None
    ]
    rows = [
        (dataset, recipe, method, rank, ranking.pairs, ranking.friedman)
        for dataset, recipe, ranking in found
        for method, rank in ranking.ranks.items()
    ]
    tables = [
        Table(
            "",
            (dataset, recipe),
            [(f"over {ranking.pairs} pair{'s' * (ranking.pairs > 1)}",)],
            [Row(method, [Cell(rank)]) for method, rank in ranking.ranks.items()],
        )
        for dataset, recipe, ranking in found
    ]
    columns = ["dataset", "recipe", "method", "average_rank", "pairs", "friedman_p"]
    return Sheet("Average ranks", pd.DataFrame(rows, columns=columns), tables, decimals=8)
