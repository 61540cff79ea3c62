"""A sheet for a terminal. Nothing is cut off: what does not fit beside goes below."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from kdbench.report.model import Cell, Heading, Sheet, Table

WIDTH = 100
_EDGES = 3  # a column's padding and its rule
_LABEL = 0.3  # of the width: method expressions longer than this are folded
_BEST = "*"  # beside bold, which is lost where the output is plain text


def render(sheet: Sheet, width: int = WIDTH) -> list[RenderableType]:
    """Each table, in parts where its columns are wider than `width`; then the notes."""
    parts: list[RenderableType] = []
    for table in sheet.tables:
        title = f"{', '.join(table.place)}: {sheet.title}" + (f", {table.title}" if table.title else "")
        parts += _parts(title, table, width) if table.rows else [Text(title, style="bold", overflow="fold")]
        parts += [Text(" ".join(table.lead) + "\n", overflow="fold")] * bool(table.lead)
        parts += _notes(table.notes)
    return (parts or [Text(f"{sheet.title}: no results yet.")]) + _notes(sheet.notes)


def _notes(notes: Sequence[str]) -> list[RenderableType]:
    if not notes:
        return []
    lines = Grid.grid(padding=(0, 1, 0, 0))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for note in notes:
        lines.add_row("-", Text(note.replace("Bold:", f"Bold and {_BEST}:", 1) if note.startswith("Bold:") else note))
    return [lines]


def _parts(title: str, table: Table, width: int) -> list[RenderableType]:
    first = [Text(table.corner), *(Text(row.label) for row in table.rows)]
    deepest = max((len(heading) for heading in table.columns), default=1)
    columns = [
        [_heading(heading, deepest), *(_cell(row.cells[place]) for row in table.rows)]
        for place, heading in enumerate(table.columns)
    ]
    chunks = _chunks(columns, width - min(_wide(first), int(width * _LABEL)) - _EDGES - 1)
    parts: list[RenderableType] = []
    for number, chunk in enumerate(chunks, 1):
        caption = title + (f", part {number} of {len(chunks)}" if chunks[1:] else "")
        grid = Grid(box=box.SIMPLE_HEAD, show_edge=True, pad_edge=True)
        grid.add_column(first[0], overflow="fold", max_width=int(width * _LABEL), vertical="top")
        for cells in chunk:
            grid.add_column(cells[0], overflow="fold")
        for line in range(1, len(first)):
            grid.add_row(first[line], *(cells[line] for cells in chunk))
        parts.append(Group(Text(caption, style="bold", overflow="fold"), grid))
    return parts


def _heading(heading: Heading, deepest: int) -> Text:
    return Text("\n" * (deepest - len(heading)) + " →\n".join(heading))


def _cell(cell: Cell) -> Text:
    text = Text(cell.text + _BEST, style="bold") if cell.best else Text(cell.text)
    if cell.second:
        text.append(f"\n{cell.second}", style="not bold")
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
