"""The charts of a comparison: ranks, gains by pair, accuracy against cost. Drawn and saved in `style.house_style()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdbench.core.trial import VANILLA
from kdbench.report import style
from kdbench.report.comparison import Comparison
from kdbench.report.groups import TEACHER
from kdbench.report.tables import pair_label, rows_of


def rank_chart(study: Comparison) -> Figure | None:
    """A critical-difference diagram (Demšar 2006): average ranks, with bars over methods that cannot be told apart.

    None where there are fewer than three methods or two pairs.
    """
    ranking = study.ranking
    if ranking is None or ranking.nemenyi is None:
        return None
    import scikit_posthocs

    names = [str(method) for method in ranking.ranks]
    side = max(style.text_width(f"{name} (88.8)") for name in names)
    title = f"{study.dataset}, {study.recipe}: average ranks over {ranking.pairs} pairs"
    figure = style.blank(3.6 + 2 * side, 1.1 + 0.17 * len(names), title)
    axes = figure.subplots()
    colors = dict.fromkeys(names, "black")
    scikit_posthocs.critical_difference_diagram(
        dict(ranking.ranks),
        ranking.nemenyi,
        ax=axes,
        color_palette=colors,
        label_props={"fontsize": style.FONT},
        crossbar_props={"color": style.PALETTE[0], "linewidth": 3},
    )
    axes.grid(visible=False)
    words = "left is better; a bar joins methods that cannot be told apart (Nemenyi, 5 %)"
    figure.supxlabel(words, fontsize=style.FONT, x=0.01, ha="left")
    return figure


def gains_chart(study: Comparison) -> Figure | None:
    """A heat map: points gained over the baseline, a row a method and a column a pair; None without any."""
    if not study.over_seeds:
        return None
    methods = [method for method in study.methods if method != study.baseline]
    pairs = list(dict.fromkeys(pair for _, pair in study.over_seeds))
    table = np.full((len(methods), len(pairs)), np.nan)
    for (method, pair), difference in study.over_seeds.items():
        table[methods.index(method), pairs.index(pair)] = difference.mean
    left = max(map(style.text_width, methods))
    names = [pair_label(*pair) for pair in pairs]
    below = max(map(style.text_width, names)) * 0.75
    title = f"{study.dataset}, {study.recipe}: points above {study.baseline}"
    figure = style.blank(1.2 + left + 0.62 * len(pairs), 1.2 + below + 0.24 * len(methods), title)
    axes = figure.subplots()
    limit = float(np.nanmax(np.abs(table))) or 1.0
    shown = axes.imshow(table, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for row, column in np.ndindex(table.shape):
        value = table[row, column]
        if not np.isnan(value):
            difference = study.over_seeds[methods[row], pairs[column]]
            color = "white" if abs(value) > 0.6 * limit else "black"
            weight = "bold" if difference.significant else "normal"
            axes.text(column, row, f"{value:+.1f}", ha="center", va="center", color=color, fontweight=weight)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_xticks(range(len(pairs)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    figure.colorbar(shown, ax=axes, label="points")
    if any(difference.significant is not None for difference in study.over_seeds.values()):
        words = "bold: the 95 % interval leaves out zero (paired by seed, uncorrected)"
        figure.supxlabel(words, fontsize=style.FONT, x=0.01, ha="left")
    return figure


def cost_chart(accuracy: pd.DataFrame, cost: pd.DataFrame, dataset: str, recipe: str) -> Figure | None:
    """Accuracy against cost, both beside the plain student and averaged over pairs, with the Pareto front.

    None where no pair has its plain student.
    """
    points = pareto_points(rows_of(accuracy, dataset, recipe), rows_of(cost, dataset, recipe))
    if len(points) < 2:
        return None
    figure = style.blank(6.4, 3.8, f"{dataset}, {recipe}: what a gain costs")
    axes = figure.subplots()
    front = pareto_front(points)
    for method, (times, gain) in points.items():
        on = method in front
        axes.plot(times, gain, "o" if on else "s", color=style.PALETTE[0] if on else style.GRAY, markersize=5)
        axes.annotate(method, (times, gain), textcoords="offset points", xytext=(5, 3), fontsize=style.FONT)
    line = [points[method] for method in front]
    axes.step([x for x, _ in line], [y for _, y in line], where="post", color=style.PALETTE[0], linewidth=1)
    axes.axhline(0, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel(f"seconds of an epoch, teacher included (times those of the {VANILLA} student)")
    axes.set_ylabel(f"top-1 above the {VANILLA} student (points)")
    axes.margins(x=0.12, y=0.12)
    keys = [
        Line2D([], [], linestyle="none", marker="o", color=style.PALETTE[0], label="nothing is better and cheaper"),
        Line2D([], [], linestyle="none", marker="s", color=style.GRAY, label="another method is better and cheaper"),
    ]
    figure.legend(handles=keys, loc="outside lower left", ncols=2)
    return figure


def pareto_points(
    accuracy: Sequence[Mapping[str, Any]], cost: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[float, float]]:
    """Method -> mean over its pairs of (times the plain student's seconds, points above the plain student)."""
    plain = {(row["teacher"], row["student"]): row["top1_mean"] for row in accuracy if row["method"] == VANILLA}
    times = {(row["teacher"], row["student"], row["method"]): row["times_vanilla"] for row in cost}
    points: dict[str, list[tuple[float, float]]] = {}
    for row in accuracy:
        base = plain.get((row["teacher"], row["student"]))
        spent = times.get((row["teacher"], row["student"], row["method"]))
        if row["method"] not in (TEACHER, VANILLA) and None not in (base, spent, row["top1_mean"]):
            points.setdefault(row["method"], []).append((spent, row["top1_mean"] - base))  # type: ignore[arg-type]
    most = max(map(len, points.values()), default=0)
    return {
        method: (sum(x for x, _ in of) / len(of), sum(y for _, y in of) / len(of))
        for method, of in points.items()
        if len(of) == most  # means over other pairs cannot be compared
    }


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The methods to which none is at once no dearer and better, or cheaper and no worse; cheapest first."""
    return sorted(
        (
            method
            for method, (x, y) in points.items()
            if not any((a <= x and b > y) or (a < x and b >= y) for a, b in points.values())
        ),
        key=lambda method: points[method],
    )
