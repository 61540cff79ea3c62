"""The published accuracies that stand beside ours, and the order in which the paper lists its pairs."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kdbench.core.recipe import Recipe
from kdbench.core.trial import VANILLA

SOURCES = ("icd-2024-07", "wttm-2024")
"""The published tables that are compared with; of two numbers for one cell the first counts."""

UNKNOWN = "not stated"
"""The selection of numbers whose paper does not say which epoch they are of."""

TRANSFER_SOURCE = "icd-2024-09"
"""Which of them has transfers."""

DATASET = "cifar100"
"""The label of the data set on which the published students were trained."""


def comparable(label: str, recipe: Recipe) -> bool:
    """Whether results on a data set of this label, under this recipe, stand next to published ones."""
    return label == DATASET and recipe.published()


def path() -> Path | None:
    """The CSV beside this module (a built wheel) or in `results/` (the source tree); None if there is neither."""
    here = Path(__file__).resolve()
    candidates = (here.with_name("published.csv"), here.parents[2] / "results" / "published.csv")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@dataclass(frozen=True)
class Entry:
    """One published number, and what is known of it."""

    top1: float
    source: str  # the table that it was read in
    origin: str  # the paper that measured it
    selection: str  # which epoch it is of
    seeds: str  # how many it is the mean of; empty where that is not known


@cache
def numbers(evaluated_on: str = DATASET) -> Mapping[tuple[str, str, str], float]:
    """(teacher, student, method) -> top-1 in %, in the paper's order; the paper's `student` rows are our `vanilla`."""
    return {place: entry.top1 for place, entry in entries(evaluated_on).items()}


@cache
def entries(evaluated_on: str = DATASET) -> Mapping[tuple[str, str, str], Entry]:
    """`numbers` with all that is known of each."""
    sources = SOURCES if evaluated_on == DATASET else (TRANSFER_SOURCE,)
    location = path()
    if location is None:  # a report without the comparison is worth more than none
        return {}
    with location.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] in sources and row["evaluated_on"] == evaluated_on]
    rows.sort(key=lambda row: sources.index(row["source"]))
    own = {"student": VANILLA}
    entries: dict[tuple[str, str, str], Entry] = {}
    for row in rows:
        place = row["teacher"], row["student"], own.get(row["method"], row["method"])
        entry = Entry(float(row["top1"]), row["source"], row["origin"], row["selection"], row["seeds"])
        entries.setdefault(place, entry)
    return entries


@cache
def pairs() -> Mapping[tuple[str, str], int]:
    """(teacher, student) -> its place in the paper's list."""
    return {pair: place for place, pair in enumerate(dict.fromkeys((t, s) for t, s, _ in numbers()))}
