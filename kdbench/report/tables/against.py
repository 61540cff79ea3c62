"""Two results folders side by side: other versions, machines or people, the same trials."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kdbench.report import statistics
from kdbench.report.groups import Group
from kdbench.report.model import Cell, Sheet
from kdbench.report.results import StudyResults
from kdbench.report.scores import grid, places, rows_of
from kdbench.report.statistics import Difference

COLUMNS = (
    *("dataset", "recipe", "teacher", "student", "method", "n"),
    *("top1_here", "top1_there", "difference", "low", "high", "p", "p_holm"),
)
"""Of against.csv. Rows where both folders have seeds in common; differences are here - there, paired by seed."""

NOTE = (
    "Here minus there in points, paired by seed: mean [95 % interval] (seeds), intervals by Student's t; "
    "no interval for one seed or where the differences are the same in all seeds."
)


def against(here: StudyResults, there: StudyResults) -> Sheet:
    """Written as `tables/against.*` by `report --against`."""
    frame = versus_study(here, there)
    tables = [grid("", place, rows_of(frame, *place), _cell) for place in places(frame)]
    return Sheet("Points above the other study", frame, tables, _notes(here, there), decimals=8)


def versus_study(here: StudyResults, there: StudyResults) -> pd.DataFrame:
    """One row per (dataset, recipe, teacher, student, method) of which both have finished seeds in common."""
    other = {group.place: group for group in there.groups}
    rows: list[dict[str, Any]] = []
    for group in here.groups:
        match = other.get(group.place)
        mine, theirs = _by_seed(group), _by_seed(match) if match else {}
        if difference := statistics.by_seed(mine, theirs):
            both = mine.keys() & theirs.keys()
            means = (sum(of[seed] for seed in both) / len(both) for of in (mine, theirs))
            rows.append(
                dict(zip(COLUMNS, (*group.place, difference.n, *means, *_numbers(difference), None), strict=True))
            )
    for row, p in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _by_seed(group: Group) -> dict[int, float]:
    return {record.trial.seed: record.top1 for record in group.done if record.top1 is not None}


def _numbers(difference: Difference) -> tuple[float | None, ...]:
    return difference.mean, difference.low, difference.high, difference.p


def _cell(row: dict[str, Any]) -> Cell:
    """`+0.31 [-0.10, +0.72] (5)`."""
    interval = None if row["low"] is None else (row["low"], row["high"])
    return Cell(row["difference"], "+.2f", interval=interval, n=row["n"])


def _notes(here: StudyResults, there: StudyResults) -> list[str]:
    """In what the two folders differ beside their numbers."""
    lines, sides = [NOTE], (here.records, there.records)
    names = sorted({name for records in sides for record in records for name in record.environment} - {"host"})
    for name in names:
        left, right = (sorted({str(r.environment[name]) for r in of if name in r.environment}) for of in sides)
        if left != right:
            lines.append(f"{name}: here {', '.join(left) or 'unknown'}; there {', '.join(right) or 'unknown'}.")
    codes: dict[str, tuple[set[str], set[str]]] = {}
    for side, records in enumerate(sides):
        for record in records:
            codes.setdefault(record.trial.base, (set(), set()))[side].add(record.trial.code)
    changed = [base for base, (left, right) in codes.items() if left and right and left != right]
    if changed:
        lines.append(f"Other code of the method: {', '.join(sorted(changed))}.")
    return lines
