"""Test accuracy by epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kdbench.core.record import EpochMetrics
from kdbench.core.trial import VANILLA
from kdbench.report.charts import style
from kdbench.report.charts.panels import TOP1, groups_of, make_panels
from kdbench.report.groups import TEACHER
from kdbench.report.model import Place, chart
from kdbench.report.results import StudyResults
from kdbench.report.scores import method_order, rows_of
from kdbench.report.statistics import Pair

_CORNERS = 60  # of a band's edge: more are not seen at its width, and make large files


@chart("curves", order=20)
def curves(results: StudyResults, place: Place) -> Figure | None:
    """A panel per pair: test accuracy by epoch, the mean over finished seeds and the band from lowest to highest.

    Trials whose epochs cannot be read are left out; None if nothing is left.
    """
    lines: dict[Pair, dict[str, list[Sequence[EpochMetrics]]]] = {}
    for group in groups_of(results, place):
        seeds = [epochs for record in group.done if (epochs := results.curves.get(record.trial.id))]
        if seeds:
            lines.setdefault((group.teacher, group.student), {})[group.method] = seeds
    if not lines:
        return None
    rows = rows_of(results.accuracy, *place)
    ordered = method_order([{"method": method} for of_pair in lines.values() for method in of_pair])
    methods = _named([method for method in ordered if method != VANILLA], rows, results.baseline)
    teachers = {(r["teacher"], r["student"]): r["top1_mean"] for r in rows if r["method"] == TEACHER}
    keys = [_line_key(method, index) for index, method in enumerate(methods)]
    if others := len(set(ordered) - {VANILLA, *methods}):
        keys.append(Line2D([], [], color=style.GRAY, linewidth=0.5, label=f"{others} others, of lower mean"))
    if VANILLA in ordered:
        keys.insert(0, Line2D([], [], color="black", linewidth=2, label=f"{VANILLA} student"))
    if any(teachers.get(pair) is not None for pair in lines):
        keys.insert(0, Line2D([], [], color="black", linestyle=":", linewidth=1.4, label=f"{TEACHER} (last epoch)"))
    title = f"{', '.join(place)}: test accuracy by epoch"
    figure, panels = make_panels(list(lines), keys, title, 0.45, 1.7, xlabel="epoch", ylabel=TOP1)
    for pair, axes in panels:
        _draw_lines(axes, lines[pair], methods)
        height = teachers.get(pair)
        if height is not None:
            axes.axhline(height, color="black", linestyle=":", linewidth=1.4)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        floor = _floor(lines[pair].values())
        axes.set_ylim(bottom=floor if floor is None or height is None else min(floor, height - 0.5))
    return figure


def _named(methods: Sequence[str], rows: Sequence[Mapping[str, Any]], baseline: str) -> list[str]:
    """All methods, or of many the best by their mean over pairs, and the baseline: more lines cannot be told apart."""
    if len(methods) <= style.MANY:
        return list(methods)
    means = {
        method: [row["top1_mean"] for row in rows if row["method"] == method and row["top1_mean"] is not None]
        for method in methods
    }
    best = sorted(methods, key=lambda method: -fmean(means[method] or [0.0]))[: style.MANY // 2]
    return [method for method in methods if method in best or method == baseline]


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
    bands: list[NDArray[np.float64]] = []
    colors: list[str] = []
    for method, seeds in lines.items():
        values = [{epoch.epoch: epoch.top1 for epoch in epochs} for epochs in seeds]
        epochs = sorted(set.intersection(*(set(of_seed) for of_seed in values)))
        if not epochs:
            continue
        top1 = np.array([[of_seed[epoch] for epoch in epochs] for of_seed in values])  # [seeds, epochs]
        mean = top1.mean(axis=0)
        if method not in (VANILLA, *methods):
            axes.plot(epochs, mean, color=style.GRAY, linewidth=0.5, zorder=1.5)
            continue
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
            bands.append(band(epochs, top1.min(axis=0).tolist(), top1.max(axis=0).tolist()))
            colors.append(color)
    axes.add_collection(PolyCollection(bands, facecolors=colors, alpha=0.12, linewidths=0, zorder=2))


def band(epochs: Sequence[int], low: Sequence[float], high: Sequence[float]) -> NDArray[np.float64]:
    """An outline [N, 2] around all points, of at most about 2 _CORNERS corners however many epochs there are."""
    step = ceil(len(epochs) / _CORNERS)
    corners = [*range(0, len(epochs) - 1, step), len(epochs) - 1]
    near = [slice(max(0, corner - step // 2), corner + step // 2 + 1) for corner in corners]
    upper = [(epochs[corner], max(high[of])) for corner, of in zip(corners, near, strict=True)]
    lower = [(epochs[corner], min(low[of])) for corner, of in zip(corners, near, strict=True)]
    return np.array([*upper, *reversed(lower)], dtype=np.float64)
