"""The accuracy tables for a paper: booktabs, the best bold, the second underlined, deviations small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdbench.report import published
from kdbench.report.tables import (
    MISSING,
    Column,
    best,
    cell,
    cell_key,
    column,
    column_label,
    method_order,
    row_label,
    rows_of,
    tables,
)

SAME = 7
"""The paper's first table has its seven pairs of one family, its second the others."""

HEAD = "% needs \\usepackage{booktabs}\n"


def document(frame: pd.DataFrame) -> str:
    """Every (dataset, recipe), in the paper's two tables."""
    parts = [HEAD]
    for dataset, recipe in tables(frame):
        rows = rows_of(frame, dataset, recipe)
        for columns in _split(list(dict.fromkeys(map(column, rows)))):
            mine = [row for row in rows if column(row) in columns]
            parts.append(_table(f"{dataset}, {recipe}: top-1 accuracy (%), mean and standard deviation", mine))
    return "\n".join(parts)


def _split(columns: Sequence[Column]) -> list[list[Column]]:
    """The paper's same-family pairs, then its others and all that it does not have; at most SAME in one table."""
    order = published.pairs()
    first = [column for column in columns if order.get(column[:2], SAME) < SAME]
    rest = [column for column in columns if column not in first]
    return [part for part in (first, *(rest[start : start + SAME] for start in range(0, len(rest), SAME))) if part]


def _table(caption: str, rows: Sequence[dict[str, Any]]) -> str:
    methods, columns = method_order(rows), list(dict.fromkeys(map(column, rows)))
    by_cell, first, second = {cell_key(row): row for row in rows}, best(rows), _second(rows)
    cells = {
        (escape(column[0]), escape(column[1])): [
            _cell(row, cell_key(row) in first, cell_key(row) in second)
            if (row := by_cell.get((column, method)))
            else "--"
            for method in methods
        ]
        for column in columns
    }
    shown = pd.DataFrame(cells, index=[escape(row_label(method)) for method in methods], dtype="object")
    shown.columns = pd.MultiIndex.from_tuples(list(cells), names=["Teacher", "Student"])
    text: str = shown.style.to_latex(
        column_format="l" + "c" * len(columns),
        hrules=True,
        multicol_align="c",
        position="t",
        position_float="centering",
        caption=escape(caption),
    )
    said = [f"{row['method']}, {column_label(column(row))}: {row['reason']}" for row in rows if row["status"] != "done"]
    notes = "".join(f"\\par{{\\scriptsize {escape(fromkey)}}}\n" for fromkey in dict.fromkeys(said))
    return text.replace("\\end{tabular}\n", "\\end{tabular}\n" + notes)


def _second(rows: Sequence[dict[str, Any]]) -> set[tuple[Column, str]]:
    winners = best(rows)
    return best([row for row in rows if cell_key(row) not in winners])


def _cell(row: dict[str, Any], first: bool, second: bool) -> str:
    if row["top1_mean"] is None:
        return escape(cell(row)).replace(MISSING, "--")
    number = f"{row['top1_mean']:.2f}"
    if first or second:
        number = f"\\{'textbf' if first else 'underline'}{{{number}}}"
    spread = "" if row["top1_sd"] is None else f" {{\\scriptsize $\\pm${row['top1_sd']:.2f}}}"
    word = "" if row["status"] == "done" else f" {{\\scriptsize {escape(row['status'])}}}"
    return number + spread + word


_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\to$",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
}


def escape(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(_ESCAPES.get(char, char) for char in " ".join(text.split()))
