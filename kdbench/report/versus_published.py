"""Ours beside theirs: every published number that the study has a counterpart of, and what can be said of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from kdbench.report import published, statistics
from kdbench.report.groups import Group

if TYPE_CHECKING:
    from kdbench.report.results import StudyResults

COLUMNS = (
    *("dataset", "recipe", "teacher", "student", "method", "n", "ours", "published", "difference", "low", "high"),
    *("verdict", "source", "origin", "published_selection", "published_seeds"),
)
"""Of published.csv in tables/: `difference` is ours - published, with the interval of our mean where n > 1."""


def versus_published(results: StudyResults) -> pd.DataFrame:
    """A row for each (dataset, recipe, teacher, student, method) that was published."""
    entries = published.entries()
    rows = []
    for group in results.groups:
        entry = entries.get((group.teacher, group.student, group.method))
        if entry is None or not group.done:
            continue
        difference = statistics.difference([score - entry.top1 for score in group.top1])
        assert difference is not None  # there is a score
        place = (group.dataset, group.recipe, group.teacher, group.student, group.method)
        numbers = (
            difference.n,
            difference.mean + entry.top1,
            entry.top1,
            difference.mean,
            difference.low,
            difference.high,
        )
        said = _verdict(group, difference, results.rule, entry.selection)
        rows.append((*place, *numbers, said, entry.source, entry.origin, entry.selection, entry.seeds))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _verdict(group: Group, difference: statistics.Difference, rule: str, theirs: str) -> str:
    trial = group.records[0].trial
    other = [
        word
        for word, differs in (
            ("other data", trial.data.label != published.DATASET),
            ("other schedule", not trial.recipe.published()),
            ("another epoch counts", theirs not in (rule, published.UNKNOWN)),
            ("they do not say which epoch counts", theirs == published.UNKNOWN),
        )
        if differs
    ]
    if other:
        return f"not comparable: {', '.join(other)}"
    if difference.significant is None:
        return "the same in all seeds: no test" if difference.untestable else "one seed: no interval"
    return "differs" if difference.significant else "agrees"
