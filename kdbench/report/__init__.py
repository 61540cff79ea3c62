"""Records -> tables and charts. Everything here is derived and can be rebuilt; importing it loads nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.core.errors import UserError, unknown_name
from kdbench.core.files import write_atomic
from kdbench.core.record import EpochMetrics, ProbeRecord
from kdbench.plan.study import RunOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from kdbench.report.comparison import Comparison
    from kdbench.report.fidelity import Measured
    from kdbench.report.groups import Selection
    from kdbench.report.results import StudyResults
    from kdbench.results import Store

__all__ = [
    "Report",
    "write_fidelity",
    "write_folder",
    "write_picture",
    "write_report",
    "write_transfers",
    "write_versus_study",
]


@dataclass(frozen=True)
class Report:
    """What was written, and what it was written from."""

    frame: pd.DataFrame  # the long form, see `tables.COLUMNS`
    notes: tuple[str, ...]
    paths: tuple[Path, ...]


def write_report(
    results: StudyResults,
    curve: Callable[[str], Sequence[EpochMetrics]],
    out: Path,
    transfers: Sequence[ProbeRecord] = (),
) -> Report:
    """Write `report.html`, `tables/*.{csv,md,tex}` and `charts/*.{png,svg}` under `out`, each file whole.

    `curve` gives the epochs of a trial by its id; where it fails, the charts by epoch do without that trial.
    """
    from kdbench.report import comparison, epoch_rules, fidelity, latex, markdown, page, tables, versus_published

    records, selection, epoch_rule = results.records, results.selection, epoch_rules.RULES[results.rule][1]
    chosen_by_rule, versus = epoch_rules.rule_table(results), versus_published.versus_published(results)
    frame, cost_frame, comparisons, ties = results.accuracy, results.costs, results.comparisons, results.ties
    notes = results.notes + [tables.TIE_NOTE] * bool(ties)
    curves, unread = _read_curves(selection, curve)
    if unread:
        notes.append(f"Charts by epoch do without {unread} finished trial{'s' * (unread > 1)}: no epochs to be read.")
    paths = [
        write_atomic(out / "tables" / "accuracy.csv", _csv(frame)),
        write_atomic(out / "tables" / "cost.csv", _csv(cost_frame)),
        write_atomic(out / "tables" / "selection.csv", _csv(chosen_by_rule)),
        write_atomic(out / "tables" / "published.csv", _csv(versus)),
        write_atomic(out / "tables" / "comparison.csv", _csv(comparison.frame(comparisons), decimals=8)),
        write_atomic(out / "tables" / "ranks.csv", _csv(comparison.ranks(comparisons), decimals=8)),
        write_atomic(out / "tables" / "accuracy.md", markdown.accuracy_document(frame, notes, ties).encode()),
        write_atomic(out / "tables" / "cost.md", markdown.cost_document(cost_frame).encode()),
        write_atomic(out / "tables" / "comparison.md", markdown.comparison_document(comparisons).encode()),
        write_atomic(out / "tables" / "accuracy.tex", latex.document(frame).encode()),
    ]
    drawn: dict[tuple[str, str], dict[str, bytes]] = {}
    if selection.groups:
        for table, kind, path, content in _charts(
            frame, cost_frame, comparisons, selection, curves, out / "charts", epoch_rule
        ):
            paths.append(write_atomic(path, content))
            if path.suffix == ".png":
                drawn.setdefault(table, {})[kind] = content
    measured = fidelity.fidelity(fidelity.from_records(selection.groups))
    paths.append(write_atomic(out / "tables" / "metrics.csv", _csv(measured)))
    drawn_before = _fidelity(out)
    other_tables = page.further_tables(
        transfers, measured if drawn_before is None else drawn_before, versus, chosen_by_rule
    )
    html = page.page(
        records, selection.groups, frame, cost_frame, comparisons, notes, drawn, ties, other_tables, epoch_rule
    )
    paths.append(write_atomic(out / "report.html", html.encode()))
    return Report(frame, tuple(notes), tuple(paths))


def write_folder(store: Store, results: StudyResults) -> Report:
    """Write everything that is derived from a results folder. Raises UserError if it lacks the baseline or the rule."""
    known = dict.fromkeys(record.trial.method for record in results.stored)
    if results.baseline not in known and results.baseline != RunOptions.baseline:
        raise unknown_name("baseline", results.baseline, known, f"trained are {', '.join(known)}")
    transfers = store.probe_records()
    report = write_report(results, store.epochs, store.root, transfers)
    return replace(report, paths=(*report.paths, *(write_transfers(transfers, store.root) if transfers else ())))


def _fidelity(out: Path) -> pd.DataFrame | None:
    """What the command `figures` wrote, if it did and it can be read."""
    import pandas as pd

    try:
        return pd.read_csv(out / "tables" / "fidelity.csv")
    except (OSError, ValueError):
        return None


def write_transfers(records: Sequence[ProbeRecord], out: Path) -> tuple[Path, ...]:
    """Write `tables/transfer.{csv,md}` under `out`, each file whole."""
    from kdbench.report import linear_probes, markdown

    frame = linear_probes.transfers(records)
    document = markdown.transfer_document(frame, linear_probes.notes(frame))
    return (
        write_atomic(out / "tables" / "transfer.csv", _csv(frame)),
        write_atomic(out / "tables" / "transfer.md", document.encode()),
    )


def write_versus_study(
    here: StudyResults, there: StudyResults, out: Path
) -> tuple[pd.DataFrame, list[str], tuple[Path, ...]]:
    """Write `tables/against.{csv,md}` under `out`, each file whole; returns the long form and its notes too."""
    from kdbench.report import markdown, versus_study

    frame, notes = versus_study.versus_study(here, there), versus_study.notes(here, there)
    paths = (
        write_atomic(out / "tables" / "against.csv", _csv(frame, decimals=8)),
        write_atomic(out / "tables" / "against.md", markdown.versus_study_document(frame, notes).encode()),
    )
    return frame, notes, paths


def write_fidelity(measured: Sequence[Measured], out: Path) -> tuple[pd.DataFrame, tuple[Path, ...]]:
    """Write `tables/fidelity.{csv,md}` under `out`, each file whole; returns the long form too."""
    from kdbench.report import fidelity, markdown

    frame = fidelity.fidelity(measured)
    return frame, (
        write_atomic(out / "tables" / "fidelity.csv", _csv(frame)),
        write_atomic(out / "tables" / "fidelity.md", markdown.fidelity_document(frame).encode()),
    )


def write_picture(figure: Figure, name: str, words: Sequence[str], out: Path) -> list[Path]:
    """Write `charts/NAME.WORDS.{png,svg}` under `out`, each file whole."""
    from kdbench.report import style

    stem = ".".join((name, *map(_plain, words)))
    return [write_atomic(out / "charts" / f"{stem}.{kind}", content) for kind, content in style.save(figure).items()]


def _read_curves(
    selection: Selection, curve: Callable[[str], Sequence[EpochMetrics]]
) -> tuple[dict[str, Sequence[EpochMetrics]], int]:
    curves: dict[str, Sequence[EpochMetrics]] = {}
    wanted = dict.fromkeys(record.trial.id for group in selection.groups for record in group.done)
    for trial in wanted:
        try:
            epochs = curve(trial)
        except (OSError, ValueError, LookupError, TypeError, UserError):  # missing, torn or written by something else
            continue
        if epochs:
            curves[trial] = epochs
    return curves, len(wanted) - len(curves)


def _csv(frame: pd.DataFrame, decimals: int = 4) -> bytes:
    """Numbers rounded, empty cells empty. Text that a spreadsheet would run gets a leading apostrophe."""
    safe = frame.round(decimals)
    for name in frame.columns[frame.dtypes == "object"]:
        safe[name] = [f"'{text}" if re.match(r"[=+\-@\t\r]", text) else text for text in map(str, frame[name])]
    return str(safe.to_csv(index=False, lineterminator="\n")).encode()


Drawn = tuple[tuple[str, str], str, Path, bytes]
"""A chart's table, what it shows, its file and its content."""


def _charts(
    frame: pd.DataFrame,
    cost_frame: pd.DataFrame,
    comparisons: Sequence[Comparison],
    selection: Selection,
    curves: dict[str, Sequence[EpochMetrics]],
    folder: Path,
    epoch_rule: str,
) -> Iterator[Drawn]:
    from kdbench.report import charts, comparison_charts, style, tables

    by_table = {(study.dataset, study.recipe): study for study in comparisons}
    taken: set[str] = set()
    for dataset, recipe in tables.tables(frame):
        name = _file_name(dataset, recipe, taken)
        with style.house_style():
            figures = {
                "accuracy": charts.accuracy_chart(frame, selection.groups, dataset, recipe, epoch_rule),
                "curves": charts.curves_chart(frame, selection.groups, curves, dataset, recipe),
                "cost": comparison_charts.cost_chart(frame, cost_frame, dataset, recipe),
            }
            if study := by_table.get((dataset, recipe)):
                figures["gains"] = comparison_charts.gains_chart(study)
                figures["ranks"] = comparison_charts.rank_chart(study)
            for kind, figure in figures.items():
                if figure is not None:
                    for ending, content in style.save(figure).items():
                        yield (dataset, recipe), kind, folder / f"{kind}.{name}.{ending}", content


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
