"""The records of a study, selected, grouped and compared once: what all tables, charts and pages read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from kdbench.core.errors import UserError
from kdbench.core.record import EpochMetrics, ProbeRecord, Record
from kdbench.report import epoch_rules, footnotes, published
from kdbench.report.groups import Group, Selection, select
from kdbench.report.model import MakeSheet, Place, Registered, Sheet
from kdbench.report.scores import Column, Score, accuracy_rows, frame

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
    transfers: Sequence[ProbeRecord] = ()
    read_epochs: Callable[[str], Sequence[EpochMetrics]] | None = None
    """The epochs of a trial by its id; where it fails, what is drawn by epoch does without that trial."""
    measured: pd.DataFrame | None = None
    """What the command `figures` wrote: the long form of its fidelity table."""
    folder_notes: Sequence[str] = ()
    """Of records that lie in several folders."""
    _sheets: dict[str, Sheet | None] = field(default_factory=dict, init=False, repr=False, compare=False)

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
    def scores(self) -> list[Score]:
        """One a method and pair, in the order of tables."""
        return accuracy_rows(self)

    @cached_property
    def accuracy(self) -> pd.DataFrame:
        """The long form of the accuracy table, with the columns `scores.COLUMNS`."""
        return frame(self.scores)

    @cached_property
    def comparisons(self) -> Sequence[Comparison]:
        """One for each (dataset, recipe) that has a pair; none, with a warning, where no library of tests is."""
        from kdbench.report import comparison

        try:
            return comparison.comparisons(self)
        except ImportError as error:
            log.warning("the comparison is left out of the report: %s", error)
            return []

    def comparison(self, place: Place) -> Comparison | None:
        """Of one table."""
        return next((study for study in self.comparisons if (study.dataset, study.recipe) == place), None)

    @cached_property
    def ties(self) -> set[tuple[Column, str]]:
        """Cells that cannot be told apart from the best of their column."""
        return {((*pair, ""), method) for study in self.comparisons for pair, method in study.ties()}

    @cached_property
    def notes(self) -> list[str]:
        """What a reader must know beside the cells of the accuracy table."""
        notes = [*footnotes.footnotes(self), *self.folder_notes]
        if self.read_epochs and (unread := len(self._finished()) - len(self.curves)):
            notes.append(
                f"Charts by epoch do without {unread} finished trial{'s' * (unread > 1)}: no epochs to be read."
            )
        return notes

    @cached_property
    def curves(self) -> Mapping[str, Sequence[EpochMetrics]]:
        """The epochs of finished trials, by their ids, as far as they can be read."""
        found: dict[str, Sequence[EpochMetrics]] = {}
        read = self.read_epochs or (lambda trial: ())
        for trial in self._finished():
            with suppress(OSError, ValueError, LookupError, TypeError, UserError):  # missing, torn, or another's
                if epochs := read(trial):
                    found[trial] = epochs
        return found

    def _finished(self) -> list[str]:
        return list(dict.fromkeys(record.trial.id for group in self.groups for record in group.done))

    @cached_property
    def kinds(self) -> Mapping[str, str]:
        """What each method distills, as far as its records say so."""
        return {group.method: kind for group in self.groups if (kind := group.records[0].trial.kind)}

    def sheet(self, table: Registered[MakeSheet]) -> Sheet | None:
        """The sheet of a registered table, made once; None if these results have nothing of it."""
        if table.name not in self._sheets:
            self._sheets[table.name] = table.make(self)
        return self._sheets[table.name]
