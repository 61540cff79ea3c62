"""How alike students and their teacher are, and how well calibrated: the second table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from kdbench.report.groups import Group, method_key, pair_key
from kdbench.report.tables import MISSING

MEASURES = {
    "top1": ("top-1 %", 2),
    "agreement": ("agreement %", 2),
    "kl": ("KL to teacher", 3),
    "cka": ("CKA", 3),
    "correlation_mean": ("corr. mean", 3),
    "correlation_max": ("corr. max", 3),
    "ece": ("ECE %", 2),
    "nll": ("NLL", 3),
}
"""Name in fidelity.csv -> heading and decimals."""

_PLACE = ("dataset", "recipe", "teacher", "student", "method")

NOTES = (
    "Over the test split, after the last epoch; mean ± sample standard deviation (ddof = 1) over n seeds.",
    "agreement: images to which student and teacher give the same first class. KL to teacher: mean "
    "KL(teacher ‖ student) in nats, temperature 1. CKA: linear, between embeddings.",
    "corr. mean, corr. max: of the difference between student and teacher in their standardised logits by true class, "
    "the diagonal left out.",
    "ECE: expected calibration error, 15 bins, in per cent. NLL: negative log-likelihood in nats.",
)


@dataclass(frozen=True)
class Measured:
    """One network beside its teacher; `values` has some of MEASURES."""

    dataset: str
    recipe: str
    teacher: str
    student: str
    method: str
    seed: int
    values: dict[str, float]


def fidelity(measured: Sequence[Measured]) -> pd.DataFrame:
    """One row per (dataset, recipe, teacher, student, method): n, and mean and sd of each measure; absent: NaN."""
    groups: dict[tuple[str, ...], list[Measured]] = {}
    for item in measured:
        groups.setdefault(tuple(getattr(item, name) for name in _PLACE), []).append(item)
    rows: list[dict[str, Any]] = []
    for place, of in sorted(groups.items(), key=lambda item: _order(item[0])):
        row: dict[str, Any] = dict(zip(_PLACE, place, strict=True)) | {"n": len(of)}
        for name in MEASURES:
            known = [item.values[name] for item in of if name in item.values]
            row[f"{name}_mean"] = fmean(known) if known else float("nan")
            row[f"{name}_sd"] = stdev(known) if len(known) > 1 else float("nan")
        rows.append(row)
    columns = [*_PLACE, "n", *(f"{name}_{part}" for name in MEASURES for part in ("mean", "sd"))]
    return pd.DataFrame(rows, columns=columns)


def from_records(groups: Sequence[Group]) -> list[Measured]:
    """What the records themselves hold, which needs no networks: top-1, agreement, KL, ECE and NLL."""
    return [
        Measured(
            group.dataset,
            group.recipe,
            group.teacher,
            group.student,
            group.method,
            record.trial.seed,
            {"top1": record.top1, **{name: record.metrics[name] for name in MEASURES if name in record.metrics}},
        )
        for group in groups
        if group.teacher
        for record in group.done
        if record.metrics and record.top1 is not None
    ]


def _order(place: tuple[str, ...]) -> tuple[Any, ...]:
    dataset, recipe, teacher, student, method = place
    return dataset, recipe, pair_key(teacher, student), method_key(method)


def pairs(frame: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """The (dataset, recipe, teacher, student) of each table."""
    return list(dict.fromkeys(frame[list(_PLACE[:4])].itertuples(index=False, name=None)))


def wide(frame: pd.DataFrame, pair: tuple[str, str, str, str], spread: bool = True) -> pd.DataFrame:
    """One pair's rows as text: a row a method, a column a measure, with or without standard deviations."""
    mine = [row for row in frame.to_dict("records") if tuple(row[name] for name in _PLACE[:4]) == pair]
    columns = {
        heading: [_cell(row[f"{name}_mean"], row[f"{name}_sd"] if spread else float("nan"), decimals) for row in mine]
        for name, (heading, decimals) in MEASURES.items()
    }
    index = [f"{row['method']} ({row['n']})" for row in mine]
    return pd.DataFrame(columns, index=index, dtype="object")


def _cell(mean: float, spread: float, decimals: int) -> str:
    if mean != mean:
        return MISSING
    return f"{mean:.{decimals}f}" + ("" if spread != spread else f" ± {spread:.{decimals}f}")
