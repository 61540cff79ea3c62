"""A sheet for a paper: booktabs, the best bold, the second underlined, deviations small."""

from __future__ import annotations

import re

import pandas as pd

from kdbench.report.model import MISSING, Cell, Row, Sheet, Table

WIDEST = 7  # columns of one table

HEAD = "% needs \\usepackage{booktabs}\n"


def document(sheet: Sheet) -> str:
    """Each table, in parts where it is too wide for a page."""
    parts = [HEAD]
    for table in filter(lambda table: table.rows, sheet.tables):
        caption = f"{', '.join(table.place)}: {', '.join(filter(None, (sheet.title, table.title)))}"
        parts += [_table(caption, table, columns) for columns in _split(table)]
    return "\n".join(parts)


def _split(table: Table) -> list[range]:
    ends = [*table.parts, len(table.columns)]
    parts = [range(first, end) for first, end in zip([0, *table.parts], ends, strict=True)]
    return [part[start : start + WIDEST] for part in parts for start in range(0, len(part), WIDEST)]


def _table(caption: str, table: Table, columns: range) -> str:
    rows = [row for row in table.rows if any(row.cells[column] != Cell() for column in columns)]
    depth = max(len(table.columns[column]) for column in columns)
    headings = [_heading(table.columns[column], depth) for column in columns]
    cells = {place: [_cell(row.cells[column]) for row in rows] for place, column in enumerate(columns)}
    shown = pd.DataFrame(cells, index=[escape(row.label) for row in rows], dtype="object")
    shown.columns = pd.MultiIndex.from_tuples(headings) if depth > 1 else pd.Index([of for (of,) in headings])
    if depth == 2:
        shown.columns.names = ["Teacher", "Student"]
    text: str = shown.style.to_latex(
        column_format="l" + "c" * len(columns),
        hrules=True,
        multicol_align="c",
        position="t",
        position_float="centering",
        caption=escape(caption),
    )
    notes = "".join(f"\\par{{\\scriptsize {escape(note)}}}\n" for note in dict.fromkeys(_reasons(table, rows, columns)))
    return text.replace("\\end{tabular}\n", "\\end{tabular}\n" + notes)


def _heading(heading: tuple[str, ...], depth: int) -> tuple[str, ...]:
    return (*[""] * (depth - len(heading)), *map(escape, heading))


def _reasons(table: Table, rows: list[Row], columns: range) -> list[str]:
    return [
        f"{row.label}, {' → '.join(table.columns[column])}: {row.cells[column].reason}"
        for column in columns
        for row in rows
        if row.cells[column].status
    ]


def _cell(cell: Cell) -> str:
    if not cell.number:
        return escape(cell.text).replace(MISSING, "--")
    number = re.sub(r"^-(?=\d)", "$-$", escape(cell.number))
    if cell.best or cell.second_best:
        number = f"\\{'textbf' if cell.best else 'underline'}{{{number}}}"
    spread = "" if cell.spread is None else f" {{\\scriptsize $\\pm${cell.spread:{cell.form}}}}"
    interval = "" if cell.interval is None else " [{:+.2f}, {:+.2f}]".format(*cell.interval)
    aside = f" {escape(cell.aside)}" if cell.aside else ""
    word = f" {{\\scriptsize {escape(cell.status)}}}" if cell.status else ""
    return number + spread + interval + aside + word


_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\to$",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≈": r"$\approx$",
    "‖": r"$\Vert$",
}


def escape(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(_ESCAPES.get(char, char) for char in " ".join(text.split()))
