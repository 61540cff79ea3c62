"""The house style of all charts, in one place: colors, markers, sizes.

The palette is Okabe and Ito's, without its yellow, which is too light for lines on white, and its black, which is kept
for references. No two neighbours share a marker, so that charts can be read in grayscale and without color vision.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
GRAY = "#6b6b6b"
GRID: Any = {"color": "#d9d9d9", "linewidth": 0.6}
FAMILY = "DejaVu Sans"  # comes with matplotlib: charts are the same everywhere
FONT = 8.0  # points
TITLE = 9.0
DPI = 150
MANY = 20  # methods, above which a chart names only some of them
SETTINGS: Any = {  # rcParams; their type has changed between releases of matplotlib
    "font.family": FAMILY,
    "font.size": FONT,
    "axes.titlesize": TITLE,
    "axes.labelsize": FONT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "legend.fontsize": FONT,
    "figure.titlesize": TITLE + 2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID["color"],
    "grid.linewidth": GRID["linewidth"],
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.parse_math": False,  # a label may hold dollar signs
    "svg.hashsalt": "kdbench",  # the same chart gives the same bytes
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class LineStyle:
    color: str
    marker: str
    dashes: Any


def line_style(index: int) -> LineStyle:
    """The line of the index-th method: color, marker and dashes together are different for the first 120."""
    dashes = DASHES[index // len(PALETTE) % len(DASHES)]
    return LineStyle(PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)], dashes)


@contextmanager
def house_style() -> Iterator[None]:
    """Drawing and saving both happen in here; settings outside are left as they were."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own style file must not change the charts
        matplotlib.rcParams.update(SETTINGS)
        yield


def blank(
    width: float, height: float, title: str, legend: float = 0.0, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """A figure in inches with a title at the left, widened where the title needs it beside a legend on the right.

    Without a `layout` everything stays where it is put.
    """
    figure = Figure(figsize=(max(width, title_width(title) + legend), height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    place: dict[str, Any] = {} if layout else {"y": 1 - 0.06 / height, "va": "top"}
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", **place)
    return figure


def title_width(title: str) -> float:
    """Inches that a figure with this title has at least."""
    return text_width(title, TITLE + 2) * 1.15 + 0.3  # bold letters are wider


@cache
def text_width(text: str, size: float = FONT) -> float:
    """How wide a line of text is, in inches."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(family=FAMILY, size=size), False)
    return float(width) / 72


def save(figure: Figure) -> dict[str, bytes]:
    """The figure as PNG and as SVG, without dates.

    It is laid out once, and drawn once for each: `savefig` would draw it once more before, for the layout.
    """
    png, svg = io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    figure.set_layout_engine("none")
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
    return {"png": png.getvalue(), "svg": svg.getvalue()}
