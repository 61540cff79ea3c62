"""The tables for a terminal. Nothing is cut off: what does not fit beside goes below."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdbench.report import cost, fidelity, linear_probes, versus_study
from kdbench.report.comparison import Comparison, sentences
from kdbench.report.tables import (
    MISSING,
    Column,
    best,
    cell,
    cell_key,
    column,
    column_label,
    method_order,
    published_note,
    row_label,
    rows_of,
    tables,
)

WIDTH = 100
_EDGES = 3  # a column's padding and its rule
_LABEL = 0.3  # of the width: method expressions longer than this are folded
_BEST = "*"  # beside bold, which is lost where the output is plain text


def render(frame: pd.DataFrame, notes: Sequence[str], width: int = WIDTH) -> list[RenderableType]:
    """One table per (dataset, recipe), split into several where its pairs are wider than `width`; then the notes."""
    parts: list[RenderableType] = []
    for dataset, recipe in tables(frame):
        rows = rows_of(frame, dataset, recipe)
        title = f"{dataset}, {recipe}: top-1 accuracy (%)"
        parts += _tables(title, rows, width, partial(_cell, winners=best(rows)))
    if not parts:
        parts.append(Text("No results yet."))
    return parts + _notes(notes)


def render_costs(frame: pd.DataFrame, width: int = WIDTH) -> list[RenderableType]:
    """The cost tables, in the same layout."""
    parts: list[RenderableType] = []
    for dataset, recipe in tables(frame):
        title = f"{dataset}, {recipe}: cost of a training epoch"
        parts += _tables(title, rows_of(frame, dataset, recipe), width, lambda row: Text(cost.cell(row)))
    return parts + _notes(cost.notes(frame))


def render_comparison(studies: Sequence[Comparison]) -> list[RenderableType]:
    """What can be said of each study, in words."""
    parts: list[RenderableType] = []
    for study in studies:
        parts.append(Text(f"{study.dataset}, {study.recipe}: comparison", style="bold", overflow="fold"))
        parts += _notes(sentences(study))
    return parts


def render_versus_study(frame: pd.DataFrame, notes: Sequence[str], width: int = WIDTH) -> list[RenderableType]:
    """The differences to another results folder, in the layout of the tables."""
    parts: list[RenderableType] = []
    for dataset, recipe in tables(frame):
        title = f"{dataset}, {recipe}: points above the other study"
        parts += _tables(title, rows_of(frame, dataset, recipe), width, lambda row: Text(versus_study.cell(row)))
    return (parts or [Text("No trial of one study corresponds to one of the other.")]) + _notes(notes)


def render_transfers(frame: pd.DataFrame, notes: Sequence[str], width: int = WIDTH) -> list[RenderableType]:
    """The transfer tables, in the same layout."""
    shown, parts = linear_probes.headed(frame), list[RenderableType]()
    for dataset, recipe in tables(shown):
        rows = rows_of(shown, dataset, recipe)
        title = f"{dataset}, {recipe}: top-1 accuracy after transfer (%)"
        parts += _tables(title, rows, width, partial(_cell, winners=best(rows)))
    return parts + _notes(notes)


def render_fidelity(frame: pd.DataFrame) -> list[RenderableType]:
    """A table a pair, rows methods and columns measures; their spread would not fit and is in the files."""
    parts: list[RenderableType] = []
    for pair in fidelity.pairs(frame):
        dataset, recipe, teacher, student = pair
        wide = fidelity.wide(frame, pair, spread=False)
        table = Table("method (n)", *map(str, wide.columns), box=box.SIMPLE_HEAD)
        for label, cells in zip(wide.index, wide.to_numpy().tolist(), strict=True):
            table.add_row(Text(str(label)), *map(Text, cells))
        parts.append(Group(Text(f"{dataset}, {recipe}: {teacher} → {student}", style="bold", overflow="fold"), table))
    return parts + _notes(fidelity.NOTES)


def _notes(notes: Sequence[str]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if notes:
        lines = Table.grid(padding=(0, 1, 0, 0))
        lines.add_column(no_wrap=True)
        lines.add_column(overflow="fold")
        for note in notes:
            lines.add_row("-", Text(note.replace("Bold:", f"Bold and {_BEST}:", 1) if _is_key(note) else note))
        parts.append(lines)
    return parts


def _is_key(note: str) -> bool:
    return note.startswith("Bold:")


def _tables(
    title: str, rows: Sequence[dict[str, Any]], width: int, text: Callable[[dict[str, Any]], Text]
) -> list[RenderableType]:
    methods = method_order(rows)
    by_cell = {cell_key(row): row for row in rows}
    first = [Text("method"), *(Text(row_label(method)) for method in methods)]
    columns: list[list[Text]] = []
    for pair_column in dict.fromkeys(map(column, rows)):
        heading = column_label(pair_column, " →\n")
        cells = [text(row) if (row := by_cell.get((pair_column, method))) else Text(MISSING) for method in methods]
        columns.append([Text(heading if pair_column[0] else f"\n{heading}"), *cells])
    chunks = _chunks(columns, width - min(_wide(first), int(width * _LABEL)) - _EDGES - 1)
    parts: list[RenderableType] = []
    for number, chunk in enumerate(chunks, 1):
        caption = title + (f", part {number} of {len(chunks)}" if chunks[1:] else "")
        table = Table(box=box.SIMPLE_HEAD, show_edge=True, pad_edge=True)
        table.add_column(first[0], overflow="fold", max_width=int(width * _LABEL), vertical="top")
        for cells in chunk:
            table.add_column(cells[0], overflow="fold")
        for line in range(1, len(first)):
            table.add_row(first[line], *(cells[line] for cells in chunk))
        parts.append(Group(Text(caption, style="bold", overflow="fold"), table))
    return parts


def _cell(row: dict[str, Any], winners: Collection[tuple[Column, str]]) -> Text:
    text = Text(cell(row) + _BEST, style="bold") if cell_key(row) in winners else Text(cell(row))
    if published_note(row):
        text.append(f"\n{published_note(row)}", style="not bold")
    return text


def _wide(column: Sequence[Text]) -> int:
    return max(line.cell_len for text in column for line in text.split("\n", allow_blank=True))


def _chunks(columns: Sequence[list[Text]], room: int) -> list[list[list[Text]]]:
    """Columns gathered into tables that fit; a single column that does not is folded by the table."""
    chunks: list[list[list[Text]]] = [[]]
    left = room
    for cells in columns:
        need = _wide(cells) + _EDGES
        if chunks[-1] and need > left:
            chunks.append([])
            left = room
        chunks[-1].append(cells)
        left -= need
    return chunks
