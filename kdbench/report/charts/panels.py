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
# Inches. Room is reckoned rather than measured: constrained layout would cost as much as drawing.
_PANEL = 2.6  # a panel's width, at least
_TITLE = 0.35  # the figure's title
_HEAD = 0.4  # a panel's title of two lines
_NUMBERS = 0.22  # those of a horizontal axis
_FOOT = 0.42  # and its label
_EDGE = 0.15
_KEY = 0.165  # a line of the legend
_HANDLE = 0.7  # a legend's line, beside its words


def groups_of(results: StudyResults, place: Place) -> list[Group]:
    """The groups of one table."""
    return [group for group in results.groups if (group.dataset, group.recipe) == place]


def make_panels(
    pairs: Sequence[Pair],
    keys: Sequence[Line2D | Patch],
    title: str,
    labels: float,
    height: float,
    xlabel: str,
    ylabel: str = "",
) -> tuple[Figure, Iterator[tuple[Pair, Axes]]]:
    """A grid of titled panels, wide enough for their titles, and a legend.

    Panels with a `ylabel` have vertical axes of their own and the legend beside them; the others share theirs, and have
    it below. `labels`: inches for the tick labels of a vertical axis.
    """
    count = len(pairs)
    across = count if count <= 3 else 2 if count == 4 else 3 if count <= 9 else 4
    down = ceil(count / across)
    panel = max(_PANEL, max(style.text_width(name, style.TITLE) for pair in pairs for name in pair) + 0.4)
    words = [style.text_width(str(key.get_label())) + _HANDLE for key in keys]
    right = _EDGE + (max(words) if ylabel else 0)
    left = labels + 0.15
    width = max(left + across * panel + right, style.title_width(title) + right)
    columns = 1 if ylabel else len(keys) if sum(words) <= width else max(1, int(width / max(words)))
    legend = _KEY * ceil(len(keys) / columns) + _EDGE
    below = 0 if ylabel else legend
    between = _HEAD + (_NUMBERS if count % across == 0 else _FOOT)  # some panel above the last row has a label too
    fixed = _TITLE + _HEAD + (down - 1) * between + _FOOT + below
    whole = max(fixed + down * height, _TITLE + legend if ylabel else 0)
    gap = left if ylabel else 0.2
    room = {
        "left": left / width,
        "right": 1 - right / width,
        "top": 1 - (_TITLE + _HEAD) / whole,
        "bottom": (below + _FOOT) / whole,
        "wspace": gap * across / (width - left - right - gap * (across - 1)),
        "hspace": between * down / (whole - fixed),
    }
    figure = style.blank(width, whole, title, layout=None)
    grid = figure.subplots(down, across, squeeze=False, sharey=not ylabel, gridspec_kw=room)
    for place, axes in enumerate(grid.flat):
        if place >= count:
            axes.remove()
            continue
        teacher, student = pairs[place]
        axes.set_title(f"{teacher} →\n{student}" if teacher else student, loc="left")
        if place + across >= count:  # nothing below it
            axes.set_xlabel(xlabel)
        if not ylabel:
            axes.yaxis.set_visible(place % across == 0)
        elif place % across == 0:
            axes.set_ylabel(ylabel)
    if ylabel:
        figure.legend(handles=list(keys), loc="outside right upper", ncols=columns, handlelength=3.2)
    else:
        figure.legend(handles=list(keys), loc="outside lower center", ncols=columns)
    return figure, zip(pairs, grid.flat, strict=False)
