"""The charts of one (dataset, recipe): accuracy by method and pair, and test accuracy by epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from kdbench.core.record import EpochMetrics
from kdbench.core.trial import VANILLA
from kdbench.report import style
from kdbench.report.groups import PLUS, TEACHER, Group
from kdbench.report.tables import method_order, rows_of

TOP1 = "top-1 accuracy (%)"
_ROW = 0.2  # inches a method
_PANEL = 2.6  # inches a panel, at least
Curves = Mapping[str, Sequence[EpochMetrics]]
Pair = tuple[str, str]


def accuracy_chart(
    frame: pd.DataFrame, groups: Sequence[Group], dataset: str, recipe: str, epoch_rule: str = "the last epoch"
) -> Figure | None:
    """A panel per pair: mean ± sd of each method, its seeds as dots, teacher and vanilla as lines; None if it is empty.

    `when` says which epoch counts.

    To be called, and its figure to be saved, within `style.house_style()`.
    """
    rows = [row for row in rows_of(frame, dataset, recipe) if row["teacher"]]
    methods = method_order([row for row in rows if row["method"] not in (TEACHER, VANILLA)])
    if not any(row["n"] and row["method"] in methods for row in rows):
        return None
    seeds = {(group.teacher, group.student, group.method): group.top1 for group in _of_table(groups, dataset, recipe)}
    pairs = list(dict.fromkeys((row["teacher"], row["student"]) for row in rows))
    labels = max(style.text_width(method) for method in methods)
    height = 0.75 + _ROW * (len(methods) + 0.6)
    title = f"{dataset}, {recipe}: accuracy, {epoch_rule}"
    figure, panels = _panels(pairs, title, labels, height, legend_width=0.0, legend_height=0.5, xlabel=TOP1)
    for pair, axes in panels:
        mine = {row["method"]: row for row in rows if (row["teacher"], row["student"]) == pair}
        _references(axes, mine)
        for place, method in enumerate(methods):
            _point(axes, place, mine.get(method), seeds.get((*pair, method), ()))
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_yticks(range(len(methods)), methods)
        axes.set_ylim(len(methods) - 0.4, -0.6)  # the first method on top
        axes.tick_params(axis="y", length=0)
    _legend_below(figure, _accuracy_keys(rows, methods))
    return figure


def _of_table(groups: Sequence[Group], dataset: str, recipe: str) -> list[Group]:
    return [group for group in groups if (group.dataset, group.recipe) == (dataset, recipe)]


def _point(axes: Axes, place: int, row: Mapping[str, Any] | None, seeds: Sequence[float]) -> None:
    if row is None:
        return
    if row["top1_mean"] is None:  # a word where there is no number
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        where = axes.get_yaxis_transform()
        axes.text(0.03, place, row["status"], transform=where, va="center", color=style.GRAY, style="italic", bbox=box)
        return
    color, marker = _kind(row["method"])
    if len(seeds) > 1:
        axes.plot(seeds, [place] * len(seeds), ".", color=style.GRAY, markersize=3.5, zorder=4)
    face = color if row["status"] == "done" else "white"  # hollow: some seeds did not get this far
    axes.errorbar(
        row["top1_mean"],
        place,
        xerr=row["top1_sd"],
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


def _accuracy_keys(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[Line2D | Patch]:
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


def curves_chart(
    frame: pd.DataFrame, groups: Sequence[Group], curves: Curves, dataset: str, recipe: str
) -> Figure | None:
    """A panel per pair: test accuracy by epoch, the mean over finished seeds and the band from lowest to highest.

    `curves` holds the epochs by trial id; trials without are left out. None if nothing is left.
    """
    lines: dict[Pair, dict[str, list[Sequence[EpochMetrics]]]] = {}
    for group in _of_table(groups, dataset, recipe):
        seeds = [curves[record.trial.id] for record in group.done if curves.get(record.trial.id)]
        if seeds:
            lines.setdefault((group.teacher, group.student), {})[group.method] = seeds
    if not lines:
        return None
    rows = rows_of(frame, dataset, recipe)
    ordered = method_order([{"method": method} for of_pair in lines.values() for method in of_pair])
    methods = [method for method in ordered if method != VANILLA]
    teachers = {(r["teacher"], r["student"]): r["top1_mean"] for r in rows if r["method"] == TEACHER}
    keys = [_line_key(method, index) for index, method in enumerate(methods)]
    if VANILLA in ordered:
        keys.insert(0, Line2D([], [], color="black", linewidth=2, label=f"{VANILLA} student"))
    if any(teachers.get(pair) is not None for pair in lines):
        keys.insert(0, Line2D([], [], color="black", linestyle=":", linewidth=1.4, label=f"{TEACHER} (last epoch)"))
    words = [str(key.get_label()) for key in keys]
    legend_width = max(style.text_width(word) for word in words) + 0.7
    legend_height = 0.3 + 0.17 * len(words)
    title = f"{dataset}, {recipe}: test accuracy by epoch"
    figure, panels = _panels(list(lines), title, 0.45, 2.3, legend_width, legend_height, xlabel="epoch", ylabel=TOP1)
    for pair, axes in panels:
        _draw_lines(axes, lines[pair], methods)
        height = teachers.get(pair)
        if height is not None:
            axes.axhline(height, color="black", linestyle=":", linewidth=1.4)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        floor = _floor(lines[pair].values())
        axes.set_ylim(bottom=floor if floor is None or height is None else min(floor, height - 0.5))
    figure.legend(handles=keys, loc="outside right upper", handlelength=3.2)
    return figure


def _floor(lines: Iterable[Sequence[Sequence[EpochMetrics]]]) -> float | None:
    """Where the axis starts: long runs leave out the climb of their first eighth, which would flatten all the rest."""
    points = [epoch for seeds in lines for epochs in seeds for epoch in epochs]
    last = max(epoch.epoch for epoch in points)
    if last < 16:
        return None
    settled = [epoch.top1 for epoch in points if epoch.epoch > last / 8]
    return min(settled) - 0.04 * (max(settled) - min(settled)) - 0.1


def _line_key(method: str, index: int) -> Line2D:
    line_style = style.line_style(index)
    return Line2D(
        [],
        [],
        color=line_style.color,
        linestyle=line_style.dashes,
        marker=line_style.marker,
        markersize=4,
        label=method,
    )


def _draw_lines(axes: Axes, lines: Mapping[str, Sequence[Sequence[EpochMetrics]]], methods: Sequence[str]) -> None:
    for method, seeds in lines.items():
        values = [{epoch.epoch: epoch.top1 for epoch in epochs} for epochs in seeds]
        epochs = sorted(set.intersection(*(set(of_seed) for of_seed in values)))
        if not epochs:
            continue
        columns = [[of_seed[epoch] for of_seed in values] for epoch in epochs]
        mean = [sum(column) / len(column) for column in columns]
        if method == VANILLA:
            color: str = "black"
            axes.plot(epochs, mean, color=color, linewidth=2, zorder=4)
        else:
            index = methods.index(method)
            line_style = style.line_style(index)
            color, step = line_style.color, max(1, len(epochs) // 6)
            axes.plot(
                epochs,
                mean,
                color=color,
                linestyle=line_style.dashes,
                marker=line_style.marker,
                markersize=4,
                markevery=(index % step, step),  # neighbours' markers fall on different epochs
                zorder=3,
            )
        if len(values) > 1:
            low, high = [min(column) for column in columns], [max(column) for column in columns]
            axes.fill_between(epochs, low, high, color=color, alpha=0.12, linewidth=0, zorder=2, rasterized=True)


def _panels(
    pairs: Sequence[Pair],
    title: str,
    labels: float,
    height: float,
    legend_width: float,
    legend_height: float,
    xlabel: str,
    ylabel: str = "",
) -> tuple[Figure, Iterator[tuple[Pair, Axes]]]:
    """A grid of titled panels, wide enough for their titles; `labels`: room in inches for tick labels at the left."""
    count = len(pairs)
    across = count if count <= 3 else 2 if count == 4 else 3 if count <= 9 else 4
    down = ceil(count / across)
    words = [name for pair in pairs for name in pair]
    panel = max(_PANEL, max(style.text_width(word, style.TITLE) for word in words) + 0.4)
    sideways = legend_width > 0
    size_y = 0.4 + down * (height + 0.3)
    size_y = max(size_y, legend_height + 0.4) if sideways else size_y + legend_height
    figure = style.blank(labels + across * panel + legend_width, size_y, title, legend_width)
    grid = figure.subplots(down, across, squeeze=False, sharey=not ylabel)
    for place, axes in enumerate(grid.flat):
        if place >= count:
            axes.remove()
            continue
        teacher, student = pairs[place]
        axes.set_title(f"{teacher} →\n{student}" if teacher else student, loc="left")
        if place + across >= count:  # nothing below it
            axes.set_xlabel(xlabel)
        if ylabel and place % across == 0:
            axes.set_ylabel(ylabel)
    return figure, zip(pairs, grid.flat, strict=False)


def _legend_below(figure: Figure, keys: Sequence[Line2D | Patch]) -> None:
    widest = max(style.text_width(str(key.get_label())) for key in keys) + 0.55
    columns = max(1, min(len(keys), int(figure.get_figwidth() / widest)))
    figure.legend(handles=list(keys), loc="outside lower center", ncols=columns)
