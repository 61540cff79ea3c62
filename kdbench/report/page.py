"""The whole report as one file that needs nothing else: `report.html`."""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from kdbench.core.record import ProbeRecord, Record
from kdbench.report import comparison, cost, fidelity, linear_probes, tables
from kdbench.report.commands import command
from kdbench.report.comparison import Comparison
from kdbench.report.epoch_rules import RULES
from kdbench.report.groups import Group, finished

TITLE = "Knowledge distillation, compared"
_LEADING = re.compile(r"[+-]?\d+(\.\d+)?")


@dataclass(frozen=True)
class Cell:
    """One cell of a table; `details` names an entry of the page's details."""

    text: str
    sort: str = ""
    best: bool = False
    small: str = ""
    tip: str = ""
    details: str = ""


@dataclass(frozen=True)
class Table:
    """One table of the page."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """All of one (dataset, recipe)."""

    name: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Mapping[str, str]] = field(default_factory=tuple)


def page(
    records: Sequence[Record],
    groups: Sequence[Group],
    frame: pd.DataFrame,
    cost_frame: pd.DataFrame,
    studies: Sequence[Comparison],
    notes: Sequence[str],
    charts: Mapping[tuple[str, str], Mapping[str, bytes]],
    ties: Collection[tuple[tables.Column, str]] = (),
    other_tables: Sequence[tuple[tuple[str, str], Table]] = (),
    epoch_rule: str = "the last epoch",
) -> str:
    """The page. `charts` are PNG files by table and name, `alike` places that cannot be told apart from the best,
    `when` the epoch that counts."""
    by_cell = {(study.dataset, study.recipe): study for study in studies}
    details: dict[str, Any] = {}
    sections = []
    for table in tables.tables(frame):
        study, name = by_cell.get(table), ", ".join(table)
        rows = tables.rows_of(frame, *table)
        mine = {(g.teacher, g.student, g.method): g for g in groups if (g.dataset, g.recipe) == table}
        shown = [_accuracy(name, rows, mine, study, ties, details, epoch_rule)]
        if costs := tables.rows_of(cost_frame, *table):
            shown.append(_cost(costs))
        if study:
            shown += [_text(title, of) for title, of in comparison.comparison_tables(study)]
        shown += [each for where, each in other_tables if where == table]
        pictures = [
            {"name": f"{kind}: {name}", "data": base64.b64encode(content).decode()}
            for kind, content in charts.get(table, {}).items()
        ]
        words = comparison.sentences(study) if study else ["No pair of teacher and student has been trained."]
        sections.append(Section(name, words, shown, pictures))
    newest = max((finished(record) for record in records), default=None)
    subtitle = f"{len(records)} trials" + (f", the newest of {newest:%Y-%m-%d}" if newest else "")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    source = files("kdbench.report").joinpath("page.html.jinja").read_text("utf-8")
    return environment.from_string(source).render(
        title=TITLE,
        subtitle=subtitle,
        studies=sections,
        failures=_failures(records),
        notes=list(notes),
        environment=_environment(records),
        details=details,
    )


def _number(value: float | None, decimals: int = 2, sign: bool = False) -> str:
    return "" if value is None or value != value else f"{value:{'+' if sign else ''}.{decimals}f}"


def _accuracy(
    name: str,
    rows: Sequence[dict[str, Any]],
    groups: Mapping[tuple[str, str, str], Group],
    study: Comparison | None,
    ties: Collection[tuple[tables.Column, str]],
    details: dict[str, Any],
    epoch_rule: str,
) -> Table:
    best, by_cell = tables.best(rows), {tables.cell_key(row): row for row in rows}
    columns = list(dict.fromkeys(map(tables.column, rows)))
    lines = []
    for number, method in enumerate(tables.method_order(rows)):
        line = [Cell(tables.row_label(method), str(number))]
        for pair_column in columns:
            row = by_cell.get((pair_column, method))
            group = groups.get((*pair_column[:2], method))
            key = ""
            if group:
                key = f"c{len(details)}"
                details[key] = _details(f"{tables.column_label(pair_column)}, {method} ({name})", group.records)
            made = _accuracy_cell(row, (pair_column, method) in best, key, study)
            line.append(replace(made, text=made.text + tables.TIE) if (pair_column, method) in ties else made)
        lines.append(line)
    header = ["method", *map(tables.column_label, columns)]
    note = f"Top-1 %, {epoch_rule}: mean ± sd (seeds). Click a cell for its trials; hover for the difference."
    return Table("Accuracy", header, lines, note)


def _accuracy_cell(row: dict[str, Any] | None, best: bool, key: str, study: Comparison | None) -> Cell:
    if row is None:
        return Cell(tables.MISSING)
    tip = [row["reason"]] if row["reason"] else []
    pair = (row["teacher"], row["student"])
    if study and (difference := study.over_seeds.get((row["method"], pair))):
        text = f"{difference.mean:+.2f} points to {study.baseline}, n = {difference.n}"
        if difference.low is not None and difference.high is not None:
            text += f", 95 % [{difference.low:+.2f}, {difference.high:+.2f}]"
        tip.append(text)
    return Cell(
        tables.cell(row), _number(row["top1_mean"], 4), best, tables.published_note(row), "; ".join(tip), details=key
    )


def _details(title: str, records: Sequence[Record]) -> dict[str, Any]:
    header = ["seed", "status", "top-1", "top-5", "best (optimistic)", "s an epoch", "finished", "reason", "id"]
    trials = []
    for record in records:
        numbers = (record.top1, record.top5, record.best_top1, record.seconds_per_epoch)
        row = [str(record.trial.seed), record.status, *map(_number, numbers), record.finished[:19], record.reason or ""]
        trials.append({"row": [*row, record.trial.id], "command": command(record.trial)})
    return {"title": title, "header": header, "trials": trials}


def _cost(rows: Sequence[dict[str, Any]]) -> Table:
    by_cell, columns = {tables.cell_key(row): row for row in rows}, list(dict.fromkeys(map(tables.column, rows)))
    lines = []
    for number, method in enumerate(tables.method_order(rows)):
        line = [Cell(tables.row_label(method), str(number))]
        for pair_column in columns:
            row = by_cell.get((pair_column, method))
            if row is None:
                line.append(Cell(tables.MISSING))
                continue
            rate, extra = (_number(row[key], 0) for key in ("images_per_second", "extra_parameters"))
            tip = f"{rate} images/s; {extra or 'unknown'} extra parameters"
            line.append(Cell(cost.cell(row), _number(row["seconds_per_epoch"], 6), tip=tip))
        lines.append(line)
    return Table(
        "Cost of a training epoch",
        ["method", *map(tables.column_label, columns)],
        lines,
        " ".join(cost.notes(pd.DataFrame(rows))),
    )


def _text(title: str, frame: pd.DataFrame, corner: str = "method", note: str = "") -> Table:
    """A table of text; columns are sorted by the number that a cell begins with."""
    lines = []
    for label, texts in zip(frame.index, frame.to_numpy().tolist(), strict=True):
        cells = (Cell(str(text), number[0] if (number := _LEADING.match(str(text))) else "") for text in texts)
        lines.append([Cell(str(label), str(label)), *cells])
    return Table(title, [corner, *map(str, frame.columns)], lines, note)


def further_tables(
    transfers: Sequence[ProbeRecord], measured: pd.DataFrame | None, published_note: pd.DataFrame, rules: pd.DataFrame
) -> list[tuple[tuple[str, str], Table]]:
    """What other commands found, as tables of the (dataset, recipe) of the networks' training."""
    found_tables = []
    moved = linear_probes.transfers(transfers)
    for dataset, recipe, protocol in dict.fromkeys(moved[["dataset", "recipe", "protocol"]].itertuples(index=False)):
        rows = tables.rows_of(moved[moved["protocol"] == protocol], dataset, recipe)
        shown = tables.layout(rows, lambda row: " ".join(filter(None, (tables.cell(row), tables.published_note(row)))))
        found_tables.append(((dataset, recipe), _text(f"Top-1 % after transfer, {protocol}", shown)))
    if measured is not None:
        for pair in fidelity.pairs(measured):
            title = f"Fidelity and calibration: {tables.pair_label(*pair[2:])}"
            shown = fidelity.wide(measured, pair)
            shown = shown.loc[:, (shown != tables.MISSING).any()]  # records have fewer measures than `figures`
            found_tables.append((pair[:2], _text(title, shown, "method (n)", " ".join(fidelity.NOTES))))
    for where in tables.tables(rules):
        lines = {
            f"{tables.pair_label(row['teacher'], row['student'])}: {row['method']}": [
                _number(row[rule]) or tables.MISSING for rule in RULES
            ]
            for row in tables.rows_of(rules, *where)
        }
        shown = pd.DataFrame.from_dict(lines, orient="index", columns=list(RULES))
        note = "; ".join(f"{rule}: {meaning}" for rule, (_, meaning) in RULES.items())
        found_tables.append(
            (where, _text("Which epoch counts", shown, "pair: method", f"Mean top-1 % over seeds. {note}."))
        )
    for where in dict.fromkeys(published_note[["dataset", "recipe"]].itertuples(index=False, name=None)):
        rows = tables.rows_of(published_note, *where)
        cells = {
            f"{tables.pair_label(row['teacher'], row['student'])}: {row['method']}": {
                "ours (n)": f"{row['ours']:.2f} ({row['n']})",
                "published": f"{row['published']:.2f}",
                "difference": f"{row['difference']:+.2f}{_interval(row)}",
                "verdict": row["verdict"],
                "seeds there": row["published_seeds"] or "unknown",
            }
            for row in rows
        }
        shown = pd.DataFrame.from_dict(cells, orient="index")
        note = f"Published: {rows[0]['source']}; the interval is that of our mean over seeds."
        found_tables.append((where, _text("Ours and published", shown, "pair: method", note)))
    return found_tables


def _interval(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None else f" [{row['low']:+.2f}, {row['high']:+.2f}]"


def _failures(records: Sequence[Record]) -> list[dict[str, str]]:
    places: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for record in records:
        if record.status != "done":
            teacher = f"{record.trial.teacher} → " if record.trial.teacher else ""
            where = f"{record.trial.method}, {teacher}{record.trial.arch}, seed {record.trial.seed}"
            places[record.status, record.reason or "no reason was recorded"].append(where)
    return [
        {"status": status, "reason": reason, "where": "; ".join(where)} for (status, reason), where in places.items()
    ]


def _environment(records: Sequence[Record]) -> list[tuple[str, str]]:
    values: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for record in records:
        for name, value in record.environment.items():
            values[name][str(value)] = None
    return [(name, ", ".join(names)) for name, names in values.items() if name != "host"]  # reports are passed on
