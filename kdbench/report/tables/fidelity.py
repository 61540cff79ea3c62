"""How alike students and their teacher are, and how well calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from kdbench.report.groups import method_key, pair_key
from kdbench.report.model import Cell, Row, Sheet, Table, table
from kdbench.report.results import StudyResults
from kdbench.report.scores import pair_label

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

TITLE = "Fidelity and calibration"
_PLACE = ("dataset", "recipe", "teacher", "student", "method")

NOTES = (
    "Over the test split, after the last epoch; mean ± sample standard deviation (ddof = 1) over n seeds.",
    "agreement: images to which student and teacher give the same first class. KL to teacher: mean "
    "KL(teacher ‖ student) in nats, temperature 1. CKA: linear, between embeddings.",
    "corr. mean, corr. max: of the difference between student and teacher in their standardized logits by true class, "
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
    weights: str = ""  # SHA-256 of the network, if it is known


def fidelity(measured: Sequence[Measured]) -> pd.DataFrame:
    """One row per (dataset, recipe, teacher, student, method): n, and mean and sd of each measure; absent: NaN."""
    groups: dict[tuple[str, ...], list[Measured]] = {}
    for item in measured:
        groups.setdefault(tuple(getattr(item, name) for name in _PLACE), []).append(item)
    rows: list[dict[str, Any]] = []
    for place, of in sorted(groups.items(), key=lambda item: _order(item[0])):
        row: dict[str, Any] = dict(zip(_PLACE, place, strict=True)) | {"n": len(of)}
        row["weights"] = " ".join(item.weights[:12] for item in of if item.weights)
        for name in MEASURES:
            known = [item.values[name] for item in of if name in item.values]
            row[f"{name}_mean"] = fmean(known) if known else float("nan")
            row[f"{name}_sd"] = stdev(known) if len(known) > 1 else float("nan")
        rows.append(row)
    columns = [*_PLACE, "n", *(f"{name}_{part}" for name in MEASURES for part in ("mean", "sd")), "weights"]
    return pd.DataFrame(rows, columns=columns)


def from_records(results: StudyResults) -> list[Measured]:
    """What the records themselves hold of the last epoch, which needs no networks."""
    last = {record.trial.id: record.top1 for record in results.stored}  # whatever the rule
    return [
        Measured(
            *group.place,
            record.trial.seed,
            {"top1": top1, **{name: record.metrics[name] for name in MEASURES if name in record.metrics}},
            record.weights_sha256 or "",
        )
        for group in results.groups
        if group.teacher
        for record in group.done
        if record.metrics and (top1 := last[record.trial.id]) is not None
    ]


def _order(place: tuple[str, ...]) -> tuple[Any, ...]:
    dataset, recipe, teacher, student, method = place
    return dataset, recipe, pair_key(teacher, student), method_key(method)


@table("metrics", order=50)
def metrics(results: StudyResults) -> Sheet:
    """What the records hold, which needs no networks; shown is what `figures` measured of the same networks."""
    own = fidelity(from_records(results))
    return Sheet(TITLE, own, _tables(_shown(results, own)), NOTES)


def _shown(results: StudyResults, own: pd.DataFrame) -> pd.DataFrame:
    """What was measured of the pairs whose networks are still the same; for all else what is recorded."""
    if results.measured is None:
        return own
    current = {(record.weights_sha256 or "")[:12] for group in results.groups for record in group.done}
    pairs: dict[tuple[Any, ...], list[dict[Any, Any]]] = {}
    for row in results.measured.fillna({"weights": ""}).to_dict("records"):
        pairs.setdefault(tuple(row[name] for name in _PLACE[:4]), []).append(row)
    rows = {tuple(row[name] for name in _PLACE): row for row in own.to_dict("records")}
    for of_pair in pairs.values():
        if {word for row in of_pair for word in str(row["weights"]).split()} <= current:
            rows |= {tuple(row[name] for name in _PLACE): row for row in of_pair}
    return pd.DataFrame([rows[place] for place in sorted(rows, key=_order)], columns=own.columns)


def sheet(measured: Sequence[Measured]) -> Sheet:
    """Written as `tables/fidelity.*` by the command `figures`."""
    frame = fidelity(measured)
    return Sheet(TITLE, frame, _tables(frame), NOTES, decimals=8)  # the report rounds what it reads there


def _tables(frame: pd.DataFrame) -> list[Table]:
    """A table a pair: a line a method, a column a measure that some method has."""
    tables = []
    for pair in dict.fromkeys(frame[list(_PLACE[:4])].itertuples(index=False, name=None)):
        mine = [row for row in frame.to_dict("records") if tuple(row[name] for name in _PLACE[:4]) == pair]
        known = [name for name in MEASURES if any(row[f"{name}_mean"] == row[f"{name}_mean"] for row in mine)]
        rows = [Row(row["method"], [Cell(row["n"], "d"), *(_cell(row, name) for name in known)]) for row in mine]
        columns = [("seeds",), *((MEASURES[name][0],) for name in known)]
        tables.append(Table(pair_label(*pair[2:]), pair[:2], columns, rows))
    return tables


def _cell(row: dict[Any, Any], name: str) -> Cell:
    mean, sd = row[f"{name}_mean"], row[f"{name}_sd"]
    return Cell(mean, f".{MEASURES[name][1]}f", spread=None if sd != sd else sd)
