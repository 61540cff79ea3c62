"""The house style of all charts, in one place: colors, markers, sizes.

The palette is Okabe and Ito's, without its yellow, which is too light for lines on white, and its black, which is kept
for references. No two neighbours share a marker, so that charts can be read in grayscale and without color vision.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
GRAY = "#6b6b6b"
FONT = 8.0  # points
TITLE = 9.0
DPI = 150
SETTINGS: Any = {  # rcParams; their type has changed between releases of matplotlib
    "font.family": "DejaVu Sans",  # comes with matplotlib: charts are the same everywhere
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
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
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


def blank(width: float, height: float, title: str, legend: float = 0.0) -> Figure:
    """A figure in inches with a title at the left, widened where the title needs it beside a legend on the right."""
    needed = text_width(title, TITLE + 2) * 1.08 + 0.3 + legend  # bold letters are wider
    figure = Figure(figsize=(max(width, needed), height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def text_width(text: str, size: float = FONT) -> float:
    """About how wide a line of text is, in inches; a little too wide rather than too narrow."""
    return len(text) * size * 0.62 / 72


def save(figure: Figure) -> dict[str, bytes]:
    """The figure as PNG and as SVG, without dates. It is laid out once."""
    files: dict[str, bytes] = {}
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine("none")
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
        files[kind] = buffer.getvalue()
    return files
