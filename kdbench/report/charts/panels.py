"""What charts with a panel a pair share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kdbench.report.charts import style
from kdbench.report.groups import Group
from kdbench.report.model import Place
from kdbench.report.results import StudyResults
from kdbench.report.statistics import Pair

TOP1 = "top-1 accuracy (%)"
_PANEL = 2.6  # inches a panel, at least


def groups_of(results: StudyResults, place: Place) -> list[Group]:
    """The groups of one table."""
    return [group for group in results.groups if (group.dataset, group.recipe) == place]


def make_panels(
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


def legend_below(figure: Figure, keys: Sequence[Line2D | Patch]) -> None:
    """In as many columns as fit."""
    widest = max(style.text_width(str(key.get_label())) for key in keys) + 0.55
    columns = max(1, min(len(keys), int(figure.get_figwidth() / widest)))
    figure.legend(handles=list(keys), loc="outside lower center", ncols=columns)
