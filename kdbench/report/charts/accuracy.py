"""Accuracy by method and pair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from math import isnan, nan
from statistics import median_high
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from kdbench.core.trial import VANILLA
from kdbench.report.charts import style
from kdbench.report.charts.panels import TOP1, groups_of, make_panels
from kdbench.report.epoch_rules import RULES
from kdbench.report.groups import PLUS, TEACHER
from kdbench.report.model import Place, chart
from kdbench.report.results import StudyResults
from kdbench.report.scores import method_order, rows_of

_ROW = 0.2  # inches a method
_FAR = 20.0  # points below the best, beside three times as far as the median lies below it


@chart("accuracy", order=10)
def accuracy(results: StudyResults, place: Place) -> Figure | None:
    """A panel per pair: mean ± sd of each method, its seeds as dots, teacher and vanilla as lines; None if empty."""
    rows = [row for row in rows_of(results.accuracy, *place) if row["teacher"]]
    methods = method_order([row for row in rows if row["method"] not in (TEACHER, VANILLA)])
    if not any(row["n"] and row["method"] in methods for row in rows):
        return None
    seeds = {(group.teacher, group.student, group.method): group.top1 for group in groups_of(results, place)}
    pairs = list(dict.fromkeys((row["teacher"], row["student"]) for row in rows))
    labels = max(style.text_width(method) for method in methods)
    title = f"{', '.join(place)}: accuracy, {RULES[results.rule][1]}"
    panels_of = {pair: [row for row in rows if (row["teacher"], row["student"]) == pair] for pair in pairs}
    far = {pair: _far_below([row for row in of if row["method"] in methods], seeds) for pair, of in panels_of.items()}
    drawn = [row for pair, mine in panels_of.items() for row in mine if row["method"] not in far[pair]]
    keys = _keys(drawn, methods)
    if any(far.values()):
        keys.append(Line2D([], [], color=style.GRAY, marker="<", linestyle="none", label="far below: its mean"))
    figure, panels = make_panels(pairs, keys, title, labels, _ROW * (len(methods) + 0.2), TOP1)
    for pair, axes in panels:
        axes.grid(visible=False, axis="y")  # a collection is drawn much faster than as many ticks' lines
        axes.hlines(range(len(methods)), 0, 1, transform=axes.get_yaxis_transform(), zorder=0.5, **style.GRID)
        mine = {row["method"]: row for row in panels_of[pair]}
        _references(axes, mine)
        _points(axes, [mine.get(method) for method in methods], [seeds.get((*pair, m), ()) for m in methods], far[pair])
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    first = figure.axes[0]  # the others share its vertical axis
    first.set_yticks(range(len(methods)), methods)
    first.set_ylim(len(methods) - 0.4, -0.6)  # the first method on top
    for axes in figure.axes:
        axes.tick_params(axis="y", length=0)
    return figure


def _far_below(rows: Sequence[Mapping[str, Any]], seeds: Mapping[tuple[str, str, str], Sequence[float]]) -> set[str]:
    """Methods of a pair whose seeds all lie so far below other methods that these would be pressed together."""
    best = {
        row["method"]: max(seeds.get((row["teacher"], row["student"], row["method"])) or [row["top1_mean"]])
        for row in rows
        if row["top1_mean"] is not None
    }
    if not best:
        return set()
    highest = max(best.values())
    least = highest - _FAR - 3 * (highest - median_high(best.values()))
    return {method for method, top1 in best.items() if top1 < least}


def _points(
    axes: Axes, rows: Sequence[Mapping[str, Any] | None], seeds: Sequence[Sequence[float]], far: Collection[str]
) -> None:
    """A line a row; what looks alike is drawn at once. Of methods that lie far below the mean is written."""
    alike: defaultdict[tuple[str, str, str], list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for place, row in enumerate(rows):
        if row is not None and row["top1_mean"] is not None and row["method"] not in far:
            color, marker = _kind(row["method"])
            face = color if row["status"] == "done" else "white"  # hollow: some seeds did not get this far
            alike[color, marker, face].append((place, row))
        elif row is not None:  # a word where there is no point
            word = "" if row["status"] == "done" else row["status"]
            if row["top1_mean"] is not None:
                word = f"◂ {row['top1_mean']:.2f} {word}".strip()
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            look: dict[str, Any] = {"va": "center", "color": style.GRAY, "style": "italic", "bbox": box}
            axes.text(0.03, place, word, transform=axes.get_yaxis_transform(), **look)
    dots = [
        (score, place)
        for place, (row, scores) in enumerate(zip(rows, seeds, strict=True))
        if len(scores) > 1 and row is not None and row["method"] not in far
        for score in scores
    ]
    if dots:
        axes.plot(*zip(*dots, strict=True), ".", color=style.GRAY, markersize=3.5, zorder=4)
    for (color, marker, face), of in alike.items():
        spreads = [nan if row["top1_sd"] is None else row["top1_sd"] for _, row in of]
        axes.errorbar(
            [row["top1_mean"] for _, row in of],
            [place for place, _ in of],
            xerr=None if all(map(isnan, spreads)) else spreads,
            fmt=marker,
            color=color,
            markerfacecolor=face,
            markersize=5,
            capsize=2.5,
            elinewidth=1.1,
            zorder=3,
        )


def _kind(method: str) -> tuple[str, str]:
    """Plain methods and their `+kd` forms differ in color and in marker."""
    index = 1 if method.endswith(PLUS) else 0
    return style.PALETTE[index], style.MARKERS[index]


def _references(axes: Axes, rows: Mapping[str, Mapping[str, Any]]) -> None:
    vanilla, teacher = rows.get(VANILLA), rows.get(TEACHER)
    if vanilla and vanilla["top1_mean"] is not None:
        mean, spread = vanilla["top1_mean"], vanilla["top1_sd"]
        if spread:
            axes.axvspan(mean - spread, mean + spread, color="#000000", alpha=0.08, linewidth=0)
        axes.axvline(mean, color="black", linestyle="--", linewidth=1)
    if teacher and teacher["top1_mean"] is not None:
        axes.axvline(teacher["top1_mean"], color="black", linestyle=":", linewidth=1.4)


def _keys(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[Line2D | Patch]:
    """The legend, without keys for what the chart does not show."""
    shown = [row for row in rows if row["top1_mean"] is not None]
    kinds = {row["method"] for row in shown}
    keys: list[Line2D | Patch] = []
    for label, wanted in (("method", False), (f"method {PLUS}", True)):
        if any(method in kinds and method.endswith(PLUS) == wanted for method in methods):
            color, marker = _kind(label)
            spread = any(row["top1_sd"] is not None and row["method"] in methods for row in shown)
            text = f"{label}: mean ± sd" if spread else label
            keys.append(Line2D([], [], color=color, marker=marker, markersize=5, linewidth=1.1, label=text))
    if any(row["n"] > 1 and row["method"] in methods for row in shown):
        keys.append(Line2D([], [], color=style.GRAY, marker=".", markersize=3.5, linestyle="none", label="one seed"))
    if any(row["status"] != "done" and row["method"] in methods for row in shown):
        label = "hollow: a seed failed or diverged"
        hollow = Line2D([], [], color="black", marker="o", markerfacecolor="white", linestyle="none", label=label)
        keys.append(hollow)
    if VANILLA in kinds:
        keys.append(Line2D([], [], color="black", linestyle="--", linewidth=1, label=f"{VANILLA} student"))
        if any(row["method"] == VANILLA and row["top1_sd"] for row in shown):
            keys.append(Patch(color="black", alpha=0.08, linewidth=0, label=f"{VANILLA} ± sd"))
    if TEACHER in kinds:
        keys.append(Line2D([], [], color="black", linestyle=":", linewidth=1.4, label=TEACHER))
    return keys
