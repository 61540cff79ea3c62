"""Which epoch of a training counts: the rules in use, and how far they are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from kdbench.core.errors import UserError
from kdbench.core.record import Record

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.report.results import StudyResults

RULES: dict[str, tuple[Callable[[Record], float | None], str]] = {
    "last": (lambda record: record.top1, "the last epoch"),
    "last10": (lambda record: record.last10_top1, "the mean of the last 10 epochs"),
    "validation": (lambda record: record.validated_top1, "the best epoch on held-out training images (--val-fraction)"),
    "best": (lambda record: record.best_top1, "the best epoch on the test split: optimistic"),
}
"""Name -> (top-1 under the rule, what it means)."""


def apply_rule(records: Sequence[Record], rule: str) -> list[Record]:
    """The records with the accuracy of a rule as their headline. Raises UserError if none of them has it."""
    if rule == "last":
        return list(records)
    value = RULES[rule][0]
    changed = [replace(record, top1=value(record), top5=None) for record in records]
    if records and all(record.top1 is None for record in changed):
        raise UserError(f"--select {rule}: no record has {RULES[rule][1]}")
    return changed


def rule_table(results: StudyResults) -> pd.DataFrame:
    """A row for each (dataset, recipe, teacher, student, method): its mean under every rule; absent: NaN."""
    import pandas as pd

    rows = []
    stored = {record.trial.id: record for record in results.stored}  # those of the groups have one rule already
    for group in results.groups:
        own = [stored[record.trial.id] for record in group.records]
        done = [record for record in own if record.status == "done" and record.top1 is not None]
        place = (group.dataset, group.recipe, group.teacher, group.student, group.method)
        means = []
        for value, _ in RULES.values():
            known = [score for record in done if (score := value(record)) is not None]
            means.append(fmean(known) if known and len(known) == len(done) else float("nan"))
        rows.append((*place, len(done), *means))
    return pd.DataFrame(rows, columns=["dataset", "recipe", "teacher", "student", "method", "n", *RULES])
