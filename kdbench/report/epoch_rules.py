"""Which epoch of a training counts: the rules in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kdbench.core.errors import UserError
from kdbench.core.record import Record

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
