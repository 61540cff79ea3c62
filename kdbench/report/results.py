"""The records of a study, selected, grouped and compared once: what all tables, charts and pages read."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from kdbench.core.record import Record
from kdbench.report import cost, epoch_rules, footnotes, published, tables
from kdbench.report.groups import Group, Selection, select

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.report.comparison import Comparison

log = logging.getLogger("kdbench")


@dataclass(frozen=True)
class StudyResults:
    """`stored` records as they lie in a folder.

    Where a row has several variants (`Trial.variant`), one of those requested is shown, else the one finished last.
    `baseline` is what the others are compared with, `rule` says which epoch counts, and `evaluated_on` chooses the
    published numbers. Raises UserError, when they are asked for, if no record has the accuracy of the rule.
    """

    stored: Sequence[Record]
    requested: Collection[str] = ()
    baseline: str = "kd"
    rule: str = "last"
    evaluated_on: str = published.DATASET

    @cached_property
    def records(self) -> Sequence[Record]:
        """With the accuracy of the rule as their headline."""
        return epoch_rules.apply_rule(self.stored, self.rule)

    @cached_property
    def selection(self) -> Selection:
        return select(self.records, self.requested)

    @property
    def groups(self) -> Sequence[Group]:
        return self.selection.groups

    @cached_property
    def rows(self) -> list[tables.Row]:
        """Of the accuracy table, in its order."""
        return tables.accuracy_rows(self)

    @cached_property
    def accuracy(self) -> pd.DataFrame:
        """The long form of the accuracy table, with the columns `tables.COLUMNS`."""
        return tables.frame(self.rows)

    @cached_property
    def costs(self) -> pd.DataFrame:
        """The long form of the cost table, with the columns `cost.COLUMNS`."""
        return cost.costs(self)

    @cached_property
    def comparisons(self) -> Sequence[Comparison]:
        """One for each (dataset, recipe) that has a pair; none, with a warning, where no library of tests is."""
        from kdbench.report import comparison

        try:
            return comparison.comparisons(self)
        except ImportError as error:
            log.warning("the comparison is left out of the report: %s", error)
            return []

    @cached_property
    def ties(self) -> set[tuple[tables.Column, str]]:
        """Cells that cannot be told apart from the best of their column."""
        return {((*pair, ""), method) for study in self.comparisons for pair, method in study.ties()}

    @cached_property
    def notes(self) -> list[str]:
        """What a reader must know beside the cells of the accuracy table."""
        return footnotes.footnotes(self)
