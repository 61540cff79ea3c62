from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from kdbench.core.record import Record
from kdbench.core.trial import VANILLA
from kdbench.report import published
from kdbench.report.charts import style
from kdbench.report.charts.accuracy import accuracy
from kdbench.report.charts.curves import band, curves
from kdbench.report.charts.ranks import ranks
from kdbench.report.results import StudyResults
from tests.report.factory import epochs, study, trained
from tests.report.test_comparison import known

METHODS = [
    *("kd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "fsp", "nst", "crd", "crd+kd"),
    *("icd", "icd+kd", "rrd", "rrd+kd", "icd(alpha=0.1, icd_weight=2.5)+kd", "at(at_weight=500.0, kd_temperature=2)"),
]
Draw = Callable[[Sequence[Record]], Figure | None]


def by_method(records: Sequence[Record]) -> Figure | None:
    return accuracy(StudyResults(records), ("cifar100", "paper"))


def by_epoch(records: Sequence[Record], count: int = 24) -> Figure | None:
    found = {record.trial.id: epochs(record.top1, count) for record in records if record.top1 is not None}
    return curves(StudyResults(records, read_epochs=found.__getitem__), ("cifar100", "paper"))


def visible(figure: Figure) -> list[Text]:
    """The texts that carry words: titles, axis and tick labels, legend, words in place of points."""
    figure.draw_without_rendering()
    found = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible()]
    boxed = [text for text in found if text.get_text().strip() and text.get_window_extent().width > 0]
    # An axis keeps labels for ticks beyond its limits, which are not drawn.
    beyond = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        beyond |= {id(tick.label1) for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    return [text for text in boxed if id(text) not in beyond]


def numbers(values: object) -> list[float]:
    return [float(value) for value in np.asarray(values, dtype=float)]


@pytest.mark.parametrize("draw", [by_method, by_epoch])
@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_no_label_covers_another_or_leaves_the_picture(draw: Draw, pairs: int) -> None:
    records = study(METHODS, list(published.pairs())[:pairs], seeds=2)
    with style.house_style():
        figure = draw(records)
        assert figure is not None
        boxes: list[tuple[str, Bbox]] = [(t.get_text(), t.get_window_extent().padded(-1)) for t in visible(figure)]
    assert len(boxes) > len(METHODS)
    for place, (text, box) in enumerate(boxes):
        inside = Bbox.intersection(box, figure.bbox)
        assert inside is not None, text
        assert inside.size == pytest.approx(box.size, abs=2), text  # pixels
        for other, its in boxes[place + 1 :]:
            assert not box.overlaps(its), (text, other)


def test_twenty_methods_in_thirteen_pairs_take_seconds() -> None:
    records = study(METHODS, list(published.pairs()))
    assert len(METHODS) == 20
    start = time.perf_counter()
    with style.house_style():
        for figure in (by_method(records), by_epoch(records)):
            assert figure is not None
            assert len(figure.axes) == 13
            assert style.save(figure)["png"].startswith(b"\x89PNG")
    assert time.perf_counter() - start < 40  # about 6 s on an idle core


def test_points_bars_and_references() -> None:
    records = [trained(VANILLA, 68.0), trained("kd", 70.0), trained("kd", 72.0, 1), trained("crd", 71.0)]
    records.append(trained("fsp", status="n/a", reason="maps"))
    with style.house_style():
        figure = by_method(records)
        assert figure is not None
        (axes,) = figure.axes
        assert axes.get_xlabel() == "top-1 accuracy (%)"
        assert [label.get_text() for label in axes.get_yticklabels()] == ["kd", "crd", "fsp"]
        assert axes.yaxis_inverted()  # the first method on top
        assert [text.get_text() for text in axes.texts] == ["n/a"]
        lines = [(line.get_linestyle(), numbers(line.get_xdata())) for line in axes.lines]
        assert ("--", [68.0, 68.0]) in lines  # vanilla
        assert (":", [72.5, 72.5]) in lines  # teacher
        assert ("None", [70.0, 72.0]) in lines  # the seeds of kd
        (bar,) = [
            c.lines[2][0].get_segments() for c in axes.containers if isinstance(c, ErrorbarContainer) and c.has_xerr
        ]
        assert numbers(bar[0][:, 0]) == pytest.approx([71 - 2**0.5, 71 + 2**0.5])  # sd of 70 and 72 is sqrt(2)
        words = [text.get_text() for text in figure.legends[0].get_texts()]
        assert words == ["method: mean ± sd", "one seed", "vanilla student", "teacher"]


def test_a_method_that_collapsed_does_not_press_the_others_together() -> None:
    records = [trained(VANILLA, 68.0), *(trained(f"m{number}", 69 + number / 2) for number in range(5))]
    records += [trained("kd", 1.0), trained("kd", 2.0, 1)]
    with style.house_style():
        figure = by_method(records)
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_xlim()[0] > 60
    assert [text.get_text() for text in axes.texts] == ["◂ 1.50"]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["method", "vanilla student", "teacher", "far below: its mean"]  # no seeds and no sd are drawn
    failed = trained("kd", status="failed", reason="x", seed=2)
    for scores in ([62.0], [1.0, 70.0]):  # near; and one of two seeds
        with style.house_style():
            near = by_method([*records[:-2], *(trained("kd", top1, seed) for seed, top1 in enumerate(scores))])
        assert near is not None
        assert near.axes[0].get_xlim()[0] < min(scores)
        assert not near.axes[0].texts
    with style.house_style():
        two = by_method([trained("crd", 70.0), *records[-2:], failed])
    assert two is not None
    assert two.axes[0].get_xlim()[0] > 60
    assert [text.get_text() for text in two.axes[0].texts] == ["◂ 1.50 failed"]
    with style.house_style():
        plain = by_method([trained(VANILLA, 1.0), *(trained(f"m{number}", 69 + number / 2) for number in range(5))])
    assert plain is not None
    assert plain.axes[0].get_xlim()[0] < 1  # the lines that methods are compared with are always drawn
    assert not plain.axes[0].texts


def test_a_figure_grows_with_its_methods() -> None:
    def height(count: int) -> float:
        with style.house_style():
            figure = by_method(study(METHODS[:count], [("resnet56", "resnet20")], seeds=1))
        assert figure is not None
        return figure.get_figheight()

    sizes = [height(count) for count in (2, 8, 20)]
    assert all(later - sooner >= 1 for sooner, later in pairwise(sizes))


def test_curves_are_means_over_seeds() -> None:
    records = [trained("kd", 60.0), trained("kd", 80.0, 1), trained("kd", seed=2, status="diverged", reason="x")]
    with style.house_style():
        figure = by_epoch(records, count=6)
        assert figure is not None
        (axes,) = figure.axes
        line = next(line for line in axes.lines if len(numbers(line.get_xdata())) == 6)
        assert numbers(line.get_xdata()) == [1, 2, 3, 4, 5, 6]
        assert numbers(line.get_ydata())[-1] == pytest.approx(70.0)
        band = axes.collections[0].get_paths()[0].get_extents()
        assert band.y1 == pytest.approx(80.0)
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "top-1 accuracy (%)")


def test_of_many_methods_the_curves_of_the_best_have_names_and_the_others_stay() -> None:
    records = [trained(f"m{number:02}", 60 + number / 10) for number in range(30)] + [trained("kd", 50.0)]
    with style.house_style():
        figure = by_epoch(records)
    assert figure is not None
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["teacher (last epoch)", "kd", *(f"m{n}" for n in range(20, 30)), "20 others, of lower mean"]
    (axes,) = figure.axes
    assert sum(len(numbers(line.get_xdata())) == 24 for line in axes.lines) == 31


def test_a_band_of_few_corners_still_holds_all_points() -> None:
    stream = np.random.default_rng(0)
    low, high = stream.uniform(40, 50, 500), stream.uniform(50, 60, 500)
    outline = band(range(1, 501), list(low), list(high))
    assert len(outline) <= 2 * 62
    upper, lower = outline[: len(outline) // 2], outline[len(outline) // 2 :][::-1]
    assert (upper[0, 0], upper[-1, 0]) == (1, 500)
    for edge, values, extreme in ((upper, high, max), (lower, low, min)):
        for epoch, corner in edge:  # as far as half the way to the next corner
            near = values[max(0, int(epoch) - 1 - 4) : int(epoch) + 4]
            assert corner == extreme(near)
    exact = band(range(1, 11), list(low[:10]), list(high[:10]))
    assert exact[:10, 1].tolist() == high[:10].tolist()
    assert exact[10:, 1].tolist() == low[:10][::-1].tolist()


def test_nothing_to_draw() -> None:
    with style.house_style():
        assert by_method([trained("kd", status="failed", reason="x")]) is None
        assert by_method([trained(VANILLA)]) is None
        assert by_epoch([trained("kd", status="failed", reason="x")]) is None


@pytest.mark.parametrize("draw", [by_method, by_epoch])
def test_svg_is_the_same_each_time(draw: Draw) -> None:
    records = study(["kd", "crd", "icd+kd"], [("resnet56", "resnet20"), ("a$b", "c$d")])

    def svg() -> bytes:
        with style.house_style():
            figure = draw(records)
            assert figure is not None
            return style.save(figure)["svg"]

    first = svg()
    assert first == svg()
    assert b"<dc:date>" not in first


def test_looks_differ() -> None:
    looks = [style.line_style(index) for index in range(120)]
    assert len({(line_style.color, line_style.marker, str(line_style.dashes)) for line_style in looks}) == 120
    assert all(a.marker != b.marker and a.color != b.color for a, b in pairwise(looks))


def test_settings_outside_are_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    with style.house_style():
        assert matplotlib.rcParams["svg.hashsalt"] == "kdbench"
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("pairs", "bars"), [(3, False), (6, True)])
def test_ranks_over_few_pairs_are_drawn_without_a_test(pairs: int, bars: bool) -> None:
    results = StudyResults(known(pairs=pairs))
    (study,) = results.comparisons
    figure = ranks(results, (study.dataset, study.recipe))
    assert figure is not None
    (words,) = [text.get_text() for text in figure.findobj(Text) if text.get_text().startswith("left is better")]
    assert ("Nemenyi" in words) == bars
    assert ("with fewer than 5 pairs ranks are not tested" in words) != bars
