"""The critical-difference diagram."""

from __future__ import annotations

from matplotlib.figure import Figure

from kdbench.report.charts import style
from kdbench.report.model import Place, chart
from kdbench.report.results import StudyResults
from kdbench.report.statistics import MIN_PAIRS


@chart("ranks", order=50)
def ranks(results: StudyResults, place: Place) -> Figure | None:
    """A critical-difference diagram (Demšar 2006): average ranks, with bars over methods that cannot be told apart.

    With fewer than MIN_PAIRS pairs there are ranks, and no bars. None where there are fewer than three methods or two
    pairs.
    """
    ranking = study.ranking if (study := results.comparison(place)) else None
    if ranking is None or ranking.nemenyi is None:
        return None
    import scikit_posthocs

    tested = ranking.pairs >= MIN_PAIRS
    names = [str(method) for method in ranking.ranks]
    side = max(style.text_width(f"{name} (88.8)") for name in names)
    title = f"{', '.join(place)}: average ranks over {ranking.pairs} pairs"
    figure = style.blank(3.6 + 2 * side, 1.1 + 0.17 * len(names), title)
    axes = figure.subplots()
    colors = dict.fromkeys(names, "black")
    scikit_posthocs.critical_difference_diagram(
        dict(ranking.ranks),
        ranking.nemenyi if tested else ranking.nemenyi * 0,
        ax=axes,
        color_palette=colors,
        label_props={"fontsize": style.FONT},
        crossbar_props={"color": style.PALETTE[0], "linewidth": 3},
    )
    axes.grid(visible=False)
    said = "a bar joins methods that cannot be told apart (Nemenyi, 5 %)"
    words = f"left is better; {said if tested else f'with fewer than {MIN_PAIRS} pairs ranks are not tested'}"
    figure.supxlabel(words, fontsize=style.FONT, x=0.01, ha="left")
    return figure
