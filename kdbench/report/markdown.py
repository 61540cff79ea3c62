"""The tables as Markdown documents."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Collection, Sequence

import pandas as pd

from kdbench.report import cost, fidelity, linear_probes, versus_study
from kdbench.report.comparison import Comparison, comparison_tables, sentences
from kdbench.report.tables import Column, layout, rows_of, tables, wide

EMPTY = "No results yet: no trial has been recorded."


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line; underscores inside words need no escape."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\`*\[\]|~#$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", line)


def accuracy_document(frame: pd.DataFrame, notes: Sequence[str], ties: Collection[tuple[Column, str]] = ()) -> str:
    """The accuracy tables and their notes; `alike` are the places that cannot be told apart from the best."""

    def table(dataset: str, recipe: str) -> pd.DataFrame:
        return wide(frame, dataset, recipe, bold=lambda text: f"**{text}**", second="<br>", ties=ties)

    return _document("Top-1 accuracy (%)", frame, table, notes)


def cost_document(frame: pd.DataFrame) -> str:
    """The cost tables and what they mean."""

    def table(dataset: str, recipe: str) -> pd.DataFrame:
        return layout(rows_of(frame, dataset, recipe), cost.cell)

    return _document("Cost of a training epoch", frame, table, cost.notes(frame))


def transfer_document(frame: pd.DataFrame, notes: Sequence[str]) -> str:
    """The transfer tables and their notes."""
    shown = linear_probes.headed(frame)

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


def comparison_document(studies: Sequence[Comparison]) -> str:
    """What can be said of each study, its differences to the baseline, average ranks and wins."""
    lines = ["# Comparison", ""]
    for study in studies:
        lines += [f"## {escape(study.dataset)}, {escape(study.recipe)}", ""]
        lines += [*(f"- {escape(words)}" for words in sentences(study)), ""]
        for title, table in comparison_tables(study):
            lines += [f"### {escape(title)}", "", *_lines(table), ""]
    return "\n".join(lines if studies else [*lines, EMPTY, ""])


def versus_study_document(frame: pd.DataFrame, notes: Sequence[str]) -> str:
    """The differences to another results folder, and what else differs."""

    def table(dataset: str, recipe: str) -> pd.DataFrame:
        return versus_study.wide(rows_of(frame, dataset, recipe))

    return _document("Against another study (points)", frame, table, notes)


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
