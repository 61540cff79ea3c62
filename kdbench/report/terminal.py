"""The accuracy tables for a terminal. Nothing is cut off: what does not fit beside goes below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdbench.report.tables import MISSING, beside, best, cell, method_order, row_label, rows_of, tables

WIDTH = 100
_EDGES = 3  # a column's padding and its rule
_LABEL = 0.3  # of the width: method expressions longer than this are folded
_BEST = "*"  # beside bold, which is lost where the output is plain text


def render(frame: pd.DataFrame, notes: Sequence[str], width: int = WIDTH) -> list[RenderableType]:
    """One table per (dataset, recipe), split into several where its pairs are wider than `width`; then the notes."""
    parts: list[RenderableType] = []
    for dataset, recipe in tables(frame):
        parts += _tables(dataset, recipe, rows_of(frame, dataset, recipe), width)
    if not parts:
        parts.append(Text("No results yet."))
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


def _tables(dataset: str, recipe: str, rows: Sequence[dict[str, Any]], width: int) -> list[RenderableType]:
    methods = method_order(rows)
    winners = best(rows)
    by_place = {(row["teacher"], row["student"], row["method"]): row for row in rows}
    first = [Text("method"), *(Text(row_label(method)) for method in methods)]
    columns: list[list[Text]] = []
    for teacher, student in dict.fromkeys((row["teacher"], row["student"]) for row in rows):
        column = [Text(f"{teacher} →\n{student}" if teacher else f"\n{student}")]
        column += [
            _cell(by_place.get((teacher, student, method)), (teacher, student, method) in winners) for method in methods
        ]
        columns.append(column)
    chunks = _chunks(columns, width - min(_wide(first), int(width * _LABEL)) - _EDGES - 1)
    parts: list[RenderableType] = []
    for number, chunk in enumerate(chunks, 1):
        title = f"{dataset}, {recipe}: top-1 accuracy (%)" + (f", part {number} of {len(chunks)}" if chunks[1:] else "")
        table = Table(box=box.SIMPLE_HEAD, show_edge=True, pad_edge=True)
        table.add_column(first[0], overflow="fold", max_width=int(width * _LABEL), vertical="top")
        for column in chunk:
            table.add_column(column[0], overflow="fold")
        for place in range(1, len(first)):
            table.add_row(first[place], *(column[place] for column in chunk))
        parts.append(Group(Text(title, style="bold", overflow="fold"), table))
    return parts


def _cell(row: dict[str, Any] | None, winner: bool) -> Text:
    if row is None:
        return Text(MISSING)
    text = Text(cell(row) + _BEST, style="bold") if winner else Text(cell(row))
    if beside(row):
        text.append(f"\n{beside(row)}", style="not bold")
    return text


def _wide(column: Sequence[Text]) -> int:
    return max(line.cell_len for text in column for line in text.split("\n", allow_blank=True))


def _chunks(columns: Sequence[list[Text]], room: int) -> list[list[list[Text]]]:
    """Columns gathered into tables that fit; a single column that does not is folded by the table."""
    chunks: list[list[list[Text]]] = [[]]
    left = room
    for column in columns:
        need = _wide(column) + _EDGES
        if chunks[-1] and need > left:
            chunks.append([])
            left = room
        chunks[-1].append(column)
        left -= need
    return chunks
