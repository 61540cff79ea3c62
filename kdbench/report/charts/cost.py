"""Accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdbench.core.trial import VANILLA
from kdbench.report.charts import style
from kdbench.report.groups import TEACHER
from kdbench.report.model import Place, chart
from kdbench.report.results import StudyResults
from kdbench.report.scores import rows_of
from kdbench.report.tables.cost import costs


@chart("cost", order=30)
def cost(results: StudyResults, place: Place) -> Figure | None:
    """Accuracy against cost, both beside the plain student and averaged over pairs, with the Pareto front.

    None where no pair has its plain student.
    """
    points = pareto_points(rows_of(results.accuracy, *place), rows_of(costs(results), *place))
    if len(points) < 2:
        return None
    figure = style.blank(6.4, 3.8, f"{', '.join(place)}: what a gain costs")
    axes = figure.subplots()
    front = pareto_front(points)
    for method, (times, gain) in points.items():
        on = method in front
        axes.plot(times, gain, "o" if on else "s", color=style.PALETTE[0] if on else style.GRAY, markersize=5)
        if on or method == results.baseline or len(points) <= style.MANY:
            axes.annotate(method, (times, gain), textcoords="offset points", xytext=(5, 3), fontsize=style.FONT)
    line = [points[method] for method in front]
    axes.step([x for x, _ in line], [y for _, y in line], where="post", color=style.PALETTE[0], linewidth=1)
    axes.axhline(0, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel(f"seconds of an epoch, teacher included (times those of the {VANILLA} student)")
    axes.set_ylabel(f"top-1 above the {VANILLA} student (points)")
    axes.margins(x=0.12, y=0.12)
    keys = [
        Line2D(
            [], [], linestyle="none", marker="o", color=style.PALETTE[0], label="no method is both better and cheaper"
        ),
        Line2D([], [], linestyle="none", marker="s", color=style.GRAY, label="some method is both better and cheaper"),
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
        if row["method"] in (TEACHER, VANILLA) or base is None or spent is None or row["top1_mean"] is None:
            continue
        points.setdefault(row["method"], []).append((spent, row["top1_mean"] - base))
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
