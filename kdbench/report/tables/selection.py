"""Which epoch counts: the mean of each method under every rule."""

from __future__ import annotations

from statistics import fmean

import pandas as pd

from kdbench.report.epoch_rules import RULES
from kdbench.report.model import Cell, Row, Sheet, Table, table
from kdbench.report.results import StudyResults
from kdbench.report.scores import pair_label, places, rows_of


@table("selection", order=80)
def selection(results: StudyResults) -> Sheet:
    """Mean top-1 over seeds; absent where not every seed has the accuracy of a rule."""
    frame = _frame(results)
    meanings = "; ".join(f"{rule}: {meaning}" for rule, (_, meaning) in RULES.items())
    tables = [
        Table(
            "",
            place,
            [(rule,) for rule in RULES],
            [
                Row(
                    f"{pair_label(row['teacher'], row['student'])}: {row['method']}",
                    [Cell(row[rule]) for rule in RULES],
                )
                for row in rows_of(frame, *place)
            ],
            corner="pair: method",
        )
        for place in places(frame)
    ]
    return Sheet("Which epoch counts", frame, tables, [f"Mean top-1 % over seeds. {meanings}."])


def _frame(results: StudyResults) -> pd.DataFrame:
    """A row for each (dataset, recipe, teacher, student, method): its mean under every rule; absent: NaN."""
    stored = {record.trial.id: record for record in results.stored}  # those of the groups have one rule already
    rows = []
    for group in results.groups:
        own = [stored[record.trial.id] for record in group.records]
        done = [record for record in own if record.status == "done" and record.top1 is not None]
        means = []
        for value, _ in RULES.values():
            known = [score for record in done if (score := value(record)) is not None]
            means.append(fmean(known) if known and len(known) == len(done) else float("nan"))
        rows.append((*group.place, len(done), *means))
    return pd.DataFrame(rows, columns=["dataset", "recipe", "teacher", "student", "method", "n", *RULES])
