"""Records -> tables and charts. Everything here is derived and can be rebuilt; importing it loads nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.core.files import write_atomic
from kdbench.plan.study import check_baseline

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from kdbench.core.record import Record
    from kdbench.report.model import Place, Sheet
    from kdbench.report.results import StudyResults
    from kdbench.results import Folders

__all__ = ["import_report", "load", "printed_sheets", "write_picture", "write_report", "write_sheet"]


def load(folders: Folders, requested: Sequence[Record] = (), baseline: str = "kd", rule: str = "last") -> StudyResults:
    """The results of folders, with all that lies beside their records.

    Where a row has several variants, that of the records in `requested` is taken. Raises UserError if the records lack
    the baseline.
    """
    from kdbench.report.results import StudyResults

    records = folders.records()
    check_baseline((record.trial.method for record in records), baseline)
    return StudyResults(
        records,
        {record.trial.variant for record in requested},
        baseline,
        rule,
        transfers=folders.probe_records(),
        read_epochs=folders.epochs,
        measured=_measured(folders.root),
        folder_notes=folders.notes,
    )


def write_report(results: StudyResults, out: Path) -> list[Path]:
    """Write `report.html`, `tables/*.{csv,md,tex}` and `charts/*.{png,svg}` under `out`, each file whole.

    Returns what was written. Raises UserError if no record has the accuracy of the rule.
    """
    from kdbench.report.model import registered_tables
    from kdbench.report.renderers.page import page

    made = {item.name: sheet for item in registered_tables() if (sheet := results.sheet(item)) is not None}
    paths = [path for name, sheet in made.items() for path in write_sheet(sheet, name, out)]
    drawn: dict[Place, dict[str, bytes]] = {}
    for place, name, files in _charts(results):
        for stem, content in files.items():
            paths.append(write_atomic(out / "charts" / stem, content))
            if stem.endswith(".svg"):
                drawn.setdefault(place, {})[name] = content
    paths.append(write_atomic(out / "report.html", page(results, list(made.values()), drawn).encode()))
    return paths


def import_report() -> None:
    """Import what a report needs, which takes a second or two."""
    from kdbench.report.model import registered_charts, registered_tables
    from kdbench.report.renderers import page, terminal  # noqa: F401

    registered_tables()
    registered_charts()


def printed_sheets(results: StudyResults) -> list[Sheet]:
    """What a command prints when a study has ended; the first table last, where it stays in sight."""
    from kdbench.report.model import registered_tables

    shown = [item for item in reversed(registered_tables()) if item.terminal]
    return [sheet for item in shown if (sheet := results.sheet(item)) is not None]


def write_sheet(sheet: Sheet, name: str, out: Path) -> list[Path]:
    """Write `tables/NAME.{csv,md,tex}` under `out`, each file whole."""
    from kdbench.report.renderers import csv, latex, markdown

    renderers = {"csv": csv.document, "md": markdown.document, "tex": latex.document}
    return [
        write_atomic(out / "tables" / f"{name}.{ending}", document(sheet).encode())
        for ending, document in renderers.items()
    ]


def _measured(out: Path) -> pd.DataFrame | None:
    """What the command `figures` wrote, if it did and it can be read."""
    import pandas as pd

    from kdbench.report.tables.fidelity import fidelity

    try:
        found = pd.read_csv(out / "tables" / "fidelity.csv")
    except (OSError, ValueError):
        return None
    return found if set(fidelity([]).columns) <= set(found.columns) else None


def write_picture(figure: Figure, name: str, words: Sequence[str], out: Path) -> list[Path]:
    """Write `charts/NAME.WORDS.{png,svg}` under `out`, each file whole."""
    from kdbench.report.charts import style

    stem = ".".join((name, *map(_plain, words)))
    return [write_atomic(out / "charts" / f"{stem}.{kind}", content) for kind, content in style.save(figure).items()]


def _charts(results: StudyResults) -> list[tuple[Place, str, dict[str, bytes]]]:
    """Of each table and chart: the files' names and contents."""
    if not results.groups:
        return []
    from kdbench.report.charts import style
    from kdbench.report.model import registered_charts
    from kdbench.report.scores import places

    taken: set[str] = set()
    drawn = []
    for place in places(results.accuracy):
        stem = _file_name(*place, taken)
        with style.house_style():
            for item in registered_charts():
                if (figure := item.make(results, place)) is not None:
                    files = {f"{item.name}.{stem}.{kind}": content for kind, content in style.save(figure).items()}
                    drawn.append((place, item.name, files))
    return drawn


def _plain(word: str) -> str:
    """A word as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9+=@_-]+", "-", word).strip("-")[:80]


def _file_name(dataset: str, recipe: str, taken: set[str]) -> str:
    """`DATASET.RECIPE` in characters that every file system takes, different for each table."""
    plain = name = f"{_plain(dataset)}.{_plain(recipe)}"
    number = 1
    while name.lower() in taken:
        number += 1
        name = f"{plain}-{number}"
    taken.add(name.lower())
    return name
