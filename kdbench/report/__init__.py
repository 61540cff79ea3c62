"""Records -> tables and charts. Everything here is derived and can be rebuilt; importing it loads nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.spec import Epoch, Record, TransferRecord, UserError
from kdbench.store.files import write_whole

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from kdbench.report.fidelity import Measured
    from kdbench.report.groups import Selection

__all__ = ["Report", "write_fidelity", "write_picture", "write_report", "write_transfers"]


@dataclass(frozen=True)
class Report:
    """What was written, and what it was written from."""

    frame: pd.DataFrame  # the long form, see `tables.COLUMNS`
    notes: tuple[str, ...]
    paths: tuple[Path, ...]


def write_report(
    records: Sequence[Record], curve: Callable[[str], Sequence[Epoch]], out: Path, asked: Collection[str] = ()
) -> Report:
    """Write `tables/{accuracy,cost}.{csv,md}` and `charts/*.png|svg` under `out`, each file whole.

    `curve` gives the epochs of a trial by its id; where it fails, the charts by epoch do without that trial.
    Where a row has several variants, one of `asked` is shown, else the newest.
    """
    from kdbench.report import cost, markdown, tables
    from kdbench.report.groups import select

    selection = select(records, asked)
    frame = tables.accuracy(records, asked)
    spent = cost.costs(records, asked)
    notes = tables.footnotes(records, asked)
    curves, unread = _read_curves(selection, curve)
    if unread:
        notes.append(f"Charts by epoch do without {unread} finished trial{'s' * (unread > 1)}: no epochs to be read.")
    paths = [
        write_whole(out / "tables" / "accuracy.csv", _csv(frame)),
        write_whole(out / "tables" / "cost.csv", _csv(spent)),
        write_whole(out / "tables" / "accuracy.md", markdown.accuracy_document(frame, notes).encode()),
        write_whole(out / "tables" / "cost.md", markdown.cost_document(spent).encode()),
    ]
    if selection.groups:
        paths += _charts(frame, selection, curves, out / "charts")
    return Report(frame, tuple(notes), tuple(paths))


def write_transfers(records: Sequence[TransferRecord], out: Path) -> tuple[Path, ...]:
    """Write `tables/transfer.{csv,md}` under `out`, each file whole."""
    from kdbench.report import markdown, transfer

    frame = transfer.transfers(records)
    document = markdown.transfer_document(frame, transfer.notes(frame))
    return (
        write_whole(out / "tables" / "transfer.csv", _csv(frame)),
        write_whole(out / "tables" / "transfer.md", document.encode()),
    )


def write_fidelity(measured: Sequence[Measured], out: Path) -> tuple[pd.DataFrame, tuple[Path, ...]]:
    """Write `tables/fidelity.{csv,md}` under `out`, each file whole; returns the long form too."""
    from kdbench.report import fidelity, markdown

    frame = fidelity.fidelity(measured)
    return frame, (
        write_whole(out / "tables" / "fidelity.csv", _csv(frame)),
        write_whole(out / "tables" / "fidelity.md", markdown.fidelity_document(frame).encode()),
    )


def write_picture(figure: Figure, name: str, words: Sequence[str], out: Path) -> list[Path]:
    """Write `charts/NAME.WORDS.{png,svg}` under `out`, each file whole."""
    from kdbench.report import style

    stem = ".".join((name, *map(_plain, words)))
    return [write_whole(out / "charts" / f"{stem}.{kind}", content) for kind, content in style.save(figure).items()]


def _read_curves(
    selection: Selection, curve: Callable[[str], Sequence[Epoch]]
) -> tuple[dict[str, Sequence[Epoch]], int]:
    found: dict[str, Sequence[Epoch]] = {}
    wanted = dict.fromkeys(record.trial.id for group in selection.groups for record in group.done)
    for trial in wanted:
        try:
            epochs = curve(trial)
        except (OSError, ValueError, LookupError, TypeError, UserError):  # missing, torn or written by something else
            continue
        if epochs:
            found[trial] = epochs
    return found, len(wanted) - len(found)


def _csv(frame: pd.DataFrame) -> bytes:
    """Numbers to 4 decimals, empty cells empty. Text that a spreadsheet would run gets a leading apostrophe."""
    safe = frame.round(4)
    for name in frame.columns[frame.dtypes == "object"]:
        safe[name] = [f"'{text}" if re.match(r"[=+\-@\t\r]", text) else text for text in map(str, frame[name])]
    return str(safe.to_csv(index=False, lineterminator="\n")).encode()


def _charts(frame: pd.DataFrame, selection: Selection, curves: dict[str, Sequence[Epoch]], folder: Path) -> list[Path]:
    from kdbench.report import charts, style, tables

    paths: list[Path] = []
    taken: set[str] = set()
    for dataset, recipe in tables.tables(frame):
        name = _file_name(dataset, recipe, taken)
        with style.house_style():
            figures = {
                "accuracy": charts.accuracy_chart(frame, selection.groups, dataset, recipe),
                "curves": charts.curves_chart(frame, selection.groups, curves, dataset, recipe),
            }
            for kind, figure in figures.items():
                if figure is not None:
                    files = style.save(figure).items()
                    paths += [write_whole(folder / f"{kind}.{name}.{ending}", content) for ending, content in files]
    return paths


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
