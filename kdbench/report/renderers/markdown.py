"""A sheet as a Markdown document."""

from __future__ import annotations

import html
import re

from kdbench.report.model import Cell, Sheet, Table, by_place

EMPTY = "No results yet: nothing of this kind has been recorded."


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line; underscores inside words need no escape."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\`*\[\]|~#$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", line)


def document(sheet: Sheet) -> str:
    """The best of a column bold, second lines below; then the notes."""
    lines = [f"# {escape(sheet.title)}", ""]
    for place, tables in by_place(sheet.tables):
        lines += [f"## {escape(', '.join(place))}", ""]
        for table in tables:
            if table.lead:
                lines += [escape(" ".join(table.lead)), ""]
            if table.notes:
                lines += [*(f"- {escape(note)}" for note in table.notes), ""]
            lines += [f"### {escape(table.title)}", ""] if table.title else []
            lines += [*_lines(table), ""] if table.rows else []
    if not sheet.tables:
        lines += [EMPTY, ""]
    if sheet.notes:
        lines += ["## Notes", "", *(f"- {escape(note)}" for note in sheet.notes), ""]
    return "\n".join(lines)


def _lines(table: Table) -> list[str]:
    rows = [["", *(escape(" → ".join(column)) for column in table.columns)], ["---"] * (1 + len(table.columns))]
    rows += [[escape(row.label), *map(_cell, row.cells)] for row in table.rows]
    return [f"| {' | '.join(row)} |" for row in rows]


def _cell(cell: Cell) -> str:
    text = escape(cell.text) if isinstance(cell.value, str) else cell.text  # numbers have nothing to escape
    return (f"**{text}**" if cell.best else text) + (f"<br>{cell.second}" if cell.second else "")
