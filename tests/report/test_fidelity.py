"""The second table, and the pictures of a pair."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from kdbench.core.record import Record
from kdbench.report import write_picture, write_sheet
from kdbench.report.charts import pictures, style
from kdbench.report.results import StudyResults
from kdbench.report.tables.fidelity import Measured, metrics, sheet
from tests.report.factory import PAIR, trained

PLACE = ("digits", "digits", "resnet20", "resnet8")


def test_means_over_seeds_and_absent_measures(tmp_path: Path) -> None:
    measured = [Measured(*PLACE, "icd", seed, {"agreement": 80.0 + seed, "cka": 0.5}) for seed in range(3)]
    measured.append(Measured(*PLACE, "teacher", 0, {"ece": 3.0}))
    made = sheet(measured)
    frame, (table, document, _) = made.frame, write_sheet(made, "fidelity", tmp_path)
    rows = {str(row["method"]): row for row in frame.to_dict("records")}
    assert list(rows) == ["teacher", "icd"]
    assert [rows["icd"][name] for name in ("n", "agreement_mean", "agreement_sd", "cka_sd")] == [3, 81.0, 1.0, 0.0]
    assert rows["teacher"]["ece_mean"] == 3.0
    assert all(math.isnan(rows["teacher"][name]) for name in ("ece_sd", "agreement_mean"))
    assert table.read_text().splitlines()[0].startswith("dataset,recipe,teacher,student,method,n,top1_mean,top1_sd")
    text = document.read_text("utf-8")
    assert "|  | seeds | agreement % | CKA | ECE % |" in text  # measures that nobody has are left out
    assert "| icd | 3 | 81.00 ± 1.00 | 0.500 ± 0.000 | – |" in text
    assert "## digits, digits" in text
    assert "### resnet20 → resnet8" in text


def test_measurements_of_networks_that_were_trained_again_are_not_shown() -> None:
    place = "cifar100", "paper", PAIR[0], PAIR[1]

    def record(method: str, seed: int, weights: str) -> Record:
        return replace(trained(method, 70.0, seed), weights_sha256=weights * 64, metrics={"kl": 0.1})

    def shown(records: list[Record]) -> list[tuple[str, str, str]]:
        frame = sheet(
            [Measured(*place, "kd", seed, {"kl": 0.9}, weights * 64) for seed, weights in enumerate("ab")]
        ).frame
        (table,) = metrics(StudyResults(records, measured=frame)).tables
        kl = [heading for (heading,) in table.columns].index("KL to teacher")
        return [(row.label, row.cells[0].text, row.cells[kl].text) for row in table.rows]

    same = [record("kd", 0, "a"), record("kd", 1, "b")]
    assert shown(same) == [("kd", "2", "0.900 ± 0.000")]
    assert shown([*same, record("crd", 0, "c")]) == [("kd", "2", "0.900 ± 0.000"), ("crd", "1", "0.100")]
    assert shown([record("kd", 0, "a"), record("kd", 1, "x")]) == [("kd", "2", "0.100 ± 0.000")]


def panels(figure: object) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_title(loc="left")]  # type: ignore[attr-defined]


def test_correlation_panels_share_one_scale(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    differences = {name: scale * stream.random((10, 10)) for name, scale in (("kd", 1.0), ("icd", 3.0))}
    with style.house_style():
        figure = pictures.correlation_chart(differences, "digits; n = 360")
        ranges = {axes.images[0].get_clim() for axes in panels(figure)}
        assert ranges == {(0, differences["icd"].max())}
        titles = [axes.get_title(loc="left") for axes in panels(figure)]
        assert titles[0] == f"kd\nmean {differences['kd'].mean():.3f}, max {differences['kd'].max():.2f}"
        paths = write_picture(figure, "correlation", ("a:b", "s0"), tmp_path)
    assert [path.name for path in paths] == ["correlation.a-b.s0.png", "correlation.a-b.s0.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")


def test_scatter_panels_have_every_class_and_a_legend() -> None:
    points = {name: np.random.default_rng(0).random((30, 2)) for name in ("teacher", "kd")}
    labels, names = np.arange(30) % 3, ["cat", "dog", "a name that is much too long for a legend"]
    with style.house_style():
        figure = pictures.scatter_chart(points, labels, names, "logits", "digits; seed 0; n = 30")
    for axes in panels(figure):
        assert [np.shape(drawn.get_offsets())[0] for drawn in axes.collections] == [10, 10, 10]
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words[:2] == ["cat", "dog"]
    assert words[2].endswith("…")
    assert "n = 30" in str(figure.get_supxlabel())


def test_reliability_panels_show_the_error() -> None:
    curve = (np.array([0.2, 0.9]), np.array([0.1, 0.95]), 4.2)
    with style.house_style():
        figure = pictures.reliability_chart({"teacher": curve, "kd": curve}, "digits")
    assert [axes.get_title(loc="left") for axes in panels(figure)] == ["teacher\nECE 4.2 %", "kd\nECE 4.2 %"]
    assert panels(figure)[0].lines[1].get_xydata() == pytest.approx(np.array([[0.2, 0.1], [0.9, 0.95]]))
