"""The accuracy tables as a Markdown document."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

import pandas as pd

from kdbench.report.tables import tables, wide

EMPTY = "No results yet: no trial has been recorded."


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line; underscores inside words need no escape."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\`*\[\]|~#$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", line)


def document(frame: pd.DataFrame, notes: Sequence[str]) -> str:
    """A heading and a table per (dataset, recipe), then the notes."""
    lines = ["# Top-1 accuracy (%)", ""]
    for dataset, recipe in tables(frame):
        lines += [f"## {escape(dataset)}, {escape(recipe)}", "", *_table(frame, dataset, recipe), ""]
    if len(frame) == 0:
        lines += [EMPTY, ""]
    if notes:
        lines += ["## Notes", "", *(f"- {escape(note)}" for note in notes), ""]
    return "\n".join(lines)


def _table(frame: pd.DataFrame, dataset: str, recipe: str) -> list[str]:
    table = wide(frame, dataset, recipe, bold=lambda text: f"**{text}**", second="<br>")
    rows = [["", *(escape(str(pair)) for pair in table.columns)], ["---"] * (1 + len(table.columns))]
    for label, cells in zip(table.index, table.to_numpy().tolist(), strict=True):
        rows.append([escape(str(label)), *(str(text) for text in cells)])
    return [f"| {' | '.join(row)} |" for row in rows]
