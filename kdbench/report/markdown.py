"""The tables as Markdown documents."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence

import pandas as pd

from kdbench.report import cost, fidelity, transfer
from kdbench.report.tables import layout, rows_of, tables, wide

EMPTY = "No results yet: no trial has been recorded."


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line; underscores inside words need no escape."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\`*\[\]|~#$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", line)


def accuracy_document(frame: pd.DataFrame, notes: Sequence[str]) -> str:
    """The accuracy tables and their notes."""

    def table(dataset: str, recipe: str) -> pd.DataFrame:
        return wide(frame, dataset, recipe, bold=lambda text: f"**{text}**", second="<br>")

    return _document("Top-1 accuracy (%)", frame, table, notes)


def cost_document(frame: pd.DataFrame) -> str:
    """The cost tables and what they mean."""

    def table(dataset: str, recipe: str) -> pd.DataFrame:
        return layout(rows_of(frame, dataset, recipe), cost.cell)

    return _document("Cost of a training epoch", frame, table, [cost.NOTE] if len(frame) else [])


def transfer_document(frame: pd.DataFrame, notes: Sequence[str]) -> str:
    """The transfer tables and their notes."""
    shown = transfer.headed(frame)

    def table(dataset: str, recipe: str) -> pd.DataFrame:
        return wide(shown, dataset, recipe, bold=lambda text: f"**{text}**", second="<br>")

    return _document("Top-1 accuracy after transfer (%)", shown, table, notes)


def fidelity_document(frame: pd.DataFrame) -> str:
    """A table a pair, rows methods and columns measures, and what they mean."""
    lines = ["# Fidelity and calibration", ""]
    for pair in fidelity.pairs(frame):
        dataset, recipe, teacher, student = map(escape, pair)
        lines += [f"## {dataset}, {recipe}: {teacher} → {student}", "", *_lines(fidelity.wide(frame, pair)), ""]
    return "\n".join([*lines, "## Notes", "", *(f"- {escape(note)}" for note in fidelity.NOTES), ""])


def _document(title: str, frame: pd.DataFrame, table: Callable[[str, str], pd.DataFrame], notes: Sequence[str]) -> str:
    """A heading and a table per (dataset, recipe), then the notes."""
    lines = [f"# {title}", ""]
    for dataset, recipe in tables(frame):
        lines += [f"## {escape(dataset)}, {escape(recipe)}", "", *_lines(table(dataset, recipe)), ""]
    if len(frame) == 0:
        lines += [EMPTY, ""]
    if notes:
        lines += ["## Notes", "", *(f"- {escape(note)}" for note in notes), ""]
    return "\n".join(lines)


def _lines(table: pd.DataFrame) -> list[str]:
    rows = [["", *(escape(str(pair)) for pair in table.columns)], ["---"] * (1 + len(table.columns))]
    for label, cells in zip(table.index, table.to_numpy().tolist(), strict=True):
        rows.append([escape(str(label)), *(str(text) for text in cells)])
    return [f"| {' | '.join(row)} |" for row in rows]
