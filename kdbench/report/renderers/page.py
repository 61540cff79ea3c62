"""The whole report as one file that needs nothing else: `report.html`."""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from kdbench.core.record import Record
from kdbench.report.commands import command
from kdbench.report.groups import Group, finished
from kdbench.report.model import Place, Sheet, Table
from kdbench.report.results import StudyResults
from kdbench.report.scores import ROW_LABELS, places

TITLE = "Knowledge distillation, compared"
NOTHING = "No pair of teacher and student has been trained."


@dataclass(frozen=True)
class Section:
    """All of one (dataset, recipe)."""

    name: str
    answer: str
    words: Sequence[str]
    tables: Sequence[tuple[str, Table]]  # with their titles
    charts: Sequence[Mapping[str, str]]  # name and drawing


def page(results: StudyResults, sheets: Sequence[Sheet], charts: Mapping[Place, Mapping[str, bytes]]) -> str:
    """The page. `charts` are SVG files by table and name."""
    sections: list[Section] = []
    for place in places(results.accuracy):
        name = ", ".join(place)
        shown = [
            (", ".join(filter(None, (sheet.title, table.title))), table)
            for sheet in sheets
            for table in sheet.tables
            if table.place == place
        ]
        pictures = [
            {
                "name": f"{kind}: {name}",
                "drawing": inline(content.decode(), f"{kind}: {name}", f"{len(sections)}{kind}"),
            }
            for kind, content in charts.get(place, {}).items()
        ]
        answers = [table for _, table in shown if table.lead]
        answer = " ".join(sentence for table in answers for sentence in table.lead) or NOTHING
        words = [note for table in answers for note in table.notes if note not in answer]
        sections.append(Section(name, answer, words, shown, pictures))
    records = results.records
    newest = max((finished(record) for record in records), default=None)
    subtitle = f"{len(records)} trials" + (f", the latest from {newest:%Y-%m-%d}" if newest else "")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    source = files("kdbench.report.renderers").joinpath("page.html.jinja").read_text("utf-8")
    return environment.from_string(source).render(
        title=TITLE,
        subtitle=subtitle,
        studies=sections,
        failures=_failures(records),
        sheets=sheets,
        environment=_environment(records),
        numbers={group.place: number for number, group in enumerate(results.groups)},
        details=[_details(group) for group in results.groups],
        kinds=results.kinds,
        expressions={label: method for method, label in ROW_LABELS.items()},
    )


def inline(svg: str, name: str, prefix: str) -> str:
    """A drawing as a part of a page: in the page's colors, without its own background, with ids of its own.

    Of matplotlib's SVG black becomes the color of the text, white areas are left out, and the grid is as faint as lines
    of tables; white letters stay, since they lie on a color.
    """
    drawing = svg[svg.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawing)
    drawing = re.sub(r'(<path d="[^"]*"\s+style="fill: )#ffffff', r"\1none", drawing)
    drawing = drawing.replace("#000000", "currentColor").replace("#d9d9d9", "var(--line)")
    drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", drawing)
    label = html.escape(name, quote=True)
    return drawing.replace("<svg", f'<svg role="img" aria-label="{label}" fill="currentColor"', 1)


def _number(value: float | None, decimals: int = 2) -> str:
    return "" if value is None or value != value else f"{value:.{decimals}f}"


def _details(group: Group) -> dict[str, Any]:
    header = ["seed", "status", "top-1", "top-5", "best (optimistic)", "s/epoch", "finished", "reason", "id"]
    trials = []
    for record in group.records:
        numbers = (record.top1, record.top5, record.best_top1, record.seconds_per_epoch)
        row = [str(record.trial.seed), record.status, *map(_number, numbers), record.finished[:19], record.reason or ""]
        trials.append({"row": [*row, record.trial.id], "command": command(record)})
    pair = " → ".join(filter(None, (group.teacher, group.student)))
    title = f"{pair}, {group.method} ({group.dataset}, {group.recipe})"
    return {"title": title, "header": header, "trials": trials}


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
    known = dict.fromkeys(name for record in records for name in record.environment)
    for record in records:
        for name in known:
            values[name][str(record.environment.get(name, "–"))] = None
    return [(name, ", ".join(names)) for name, names in values.items() if name != "host"]  # reports are passed on
