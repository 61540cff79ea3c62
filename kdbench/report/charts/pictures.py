"""Pictures of what one pair's networks learned. To be drawn, and saved, within `style.house_style()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from textwrap import shorten

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from kdbench.report.charts import style

_PANEL = 2.1  # inches
_CAPTION = 0.45
Array = NDArray[np.float64]


def correlation_chart(differences: Mapping[str, Array], caption: str) -> Figure:
    """A panel a method: |student - teacher| by true class and logit, [C, C]; one color scale from 0 for all."""
    figure, panels = _panels(list(differences), "Difference to the teacher, standardized logits by class", caption, 0.7)
    highest = max(float(difference.max()) for difference in differences.values()) or 1.0
    for axes, (method, matrix) in zip(panels, differences.items(), strict=True):
        shown = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=highest, interpolation="nearest")
        axes.set_title(f"{method}\nmean {matrix.mean():.3f}, max {matrix.max():.2f}", loc="left")
        axes.grid(visible=False)
        axes.set_xlabel("logit")
        axes.set_ylabel("true class")
    figure.colorbar(shown, ax=panels, shrink=0.8, label="|student − teacher|")
    return figure


def scatter_chart(
    points: Mapping[str, Array], labels: NDArray[np.int64], names: Sequence[str], what: str, caption: str
) -> Figure:
    """A panel a network: t-SNE points [N, 2], the same images in each, a color and a marker a class."""
    keys = [shorten(name, 18, placeholder="…") for name in names]
    legend = max(style.text_width(key) for key in keys) + 0.5
    figure, panels = _panels(list(points), f"t-SNE of the {what}", caption, legend)
    for axes, (network, where) in zip(panels, points.items(), strict=True):
        for number in range(len(names)):
            line, of_class = style.line_style(number), where[labels == number]
            axes.scatter(
                of_class[:, 0], of_class[:, 1], s=9, color=line.color, marker=line.marker, alpha=0.7, linewidths=0
            )
        axes.set_title(network, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
    handles = [
        Line2D([], [], linestyle="none", color=line_style.color, marker=line_style.marker, markersize=5, label=key)
        for key, line_style in ((key, style.line_style(number)) for number, key in enumerate(keys))
    ]
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def reliability_chart(curves: Mapping[str, tuple[Array, Array, float]], caption: str) -> Figure:
    """A panel a network: accuracy by confidence, and the expected calibration error in per cent."""
    figure, panels = _panels(list(curves), "Reliability: accuracy by confidence", caption, 0.0)
    for axes, (network, (confidence, accuracy, error)) in zip(panels, curves.items(), strict=True):
        axes.plot([0, 1], [0, 1], color=style.GRAY, linestyle="--", linewidth=1)
        axes.fill_between(confidence, confidence, accuracy, color=style.PALETTE[1], alpha=0.2, linewidth=0)
        axes.plot(confidence, accuracy, color=style.PALETTE[0], marker="o", markersize=3.5)
        axes.set_title(f"{network}\nECE {error:.1f} %", loc="left")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
    return figure


def _panels(names: Sequence[str], title: str, caption: str, legend_width: float) -> tuple[Figure, list[Axes]]:
    """A grid of square panels with the caption below; `beside`: inches on the right."""
    across = min(len(names), 4)
    down = ceil(len(names) / across)
    width = across * (_PANEL + 0.45) + legend_width
    figure = style.blank(width, down * (_PANEL + 0.75) + 0.4 + _CAPTION, title, 0.0)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=style.FONT, color=style.GRAY, wrap=True)
    grid = figure.subplots(down, across, squeeze=False)
    panels = list(grid.flat)
    for spare in panels[len(names) :]:
        spare.remove()
    for axes in panels[: len(names)]:
        axes.set_box_aspect(1)
    return figure, panels[: len(names)]
