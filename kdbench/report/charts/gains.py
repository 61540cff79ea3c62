"""Points gained over the baseline, by method and pair."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from kdbench.report.charts import style
from kdbench.report.model import Place, chart
from kdbench.report.results import StudyResults
from kdbench.report.scores import pair_label

_FAR = 3.0  # times the usual difference, from which a few failures no longer set the scale of the colors
_BOLD = "bold: the 95 % interval leaves out zero (paired by seed, uncorrected)"
_DARK = "#1a1a1a"  # not black, which the page draws in the color of its text: cells keep theirs


@chart("gains", order=40)
def gains(results: StudyResults, place: Place) -> Figure | None:
    """A heat map: points gained over the baseline, a row a method and a column a pair; None without any."""
    study = results.comparison(place)
    if study is None or not study.over_seeds:
        return None
    methods = [method for method in study.methods if method != study.baseline]
    pairs = list(dict.fromkeys(pair for _, pair in study.over_seeds))
    table = np.full((len(methods), len(pairs)), np.nan)
    for (method, pair), difference in study.over_seeds.items():
        table[methods.index(method), pairs.index(pair)] = difference.mean
    left = max(map(style.text_width, methods))
    names = [pair_label(*pair) for pair in pairs]
    below = max(map(style.text_width, names)) * 0.75
    title = f"{', '.join(place)}: points above {study.baseline}"
    width = max(1.2 + left + 0.62 * len(pairs), style.text_width(_BOLD) + 0.2)
    figure = style.blank(width, 1.2 + below + 0.24 * len(methods), title)
    axes = figure.subplots()
    largest, usual = (float(np.nanquantile(np.abs(table), part)) for part in (1.0, 0.9))
    limit = (usual if 0 < _FAR * usual < largest else largest) or 1.0
    shown = axes.imshow(table, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for row, column in np.ndindex(table.shape):
        value = table[row, column]
        if not np.isnan(value):
            difference = study.over_seeds[methods[row], pairs[column]]
            color = "white" if abs(value) > 0.6 * limit else _DARK
            weight = "bold" if difference.significant else "normal"
            axes.text(column, row, f"{value:+.1f}", ha="center", va="center", color=color, fontweight=weight)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_xticks(range(len(pairs)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    figure.colorbar(shown, ax=axes, label="points", extend="both" if largest > limit else "neither")
    if any(difference.significant is not None for difference in study.over_seeds.values()):
        figure.supxlabel(_BOLD, fontsize=style.FONT, x=0.01, ha="left")
    return figure
