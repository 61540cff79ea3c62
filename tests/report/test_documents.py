"""Terminal and Markdown."""

from __future__ import annotations

import re

from kdbench.core.record import Record
from kdbench.core.trial import VANILLA
from kdbench.report import published
from kdbench.report.renderers.markdown import document, escape
from kdbench.report.results import StudyResults
from kdbench.report.tables.accuracy import accuracy
from tests.report.factory import CIFAR10, SHORT, printed, study, trained

LONG = ("timm/convnextv2_base.fcmae_ft_in22k_in1k_384", "timm/resnet18.a1_in1k")


def shown(records: list[Record], width: int = 100) -> str:
    return printed(accuracy(StudyResults(records)), width)


def accuracy_document(records: list[Record]) -> str:
    return document(accuracy(StudyResults(records)))


def ends() -> list[Record]:
    return [
        trained("kd", 70.0),
        trained("crd", status="failed", reason="RuntimeError: <script>alert(1)</script> | a_b _c_"),
        trained("icd", status="diverged", reason="total is not finite in epoch 3"),
        trained("fsp", status="n/a", reason="maps of unequal size"),
    ]


def test_thirteen_pairs_fit_a_hundred_columns_whole() -> None:
    methods = ["kd", "crd", "icd(alpha=0.1, icd_weight=2.5, kd_temperature=2)+kd"]
    records = study(methods, list(published.pairs()))
    text = shown(records)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100
    frame = StudyResults(records).accuracy
    for row in frame.to_dict("records"):
        assert f"{row['top1_mean']:.2f}" in text
        assert f"publ. {row['published']:.2f}" in text or row["published"] != row["published"]
    assert len(re.findall(r"\(3\)", text)) == 13 * 4  # three methods and the student
    assert "cifar100, paper: Top-1 accuracy (%), part 1 of 5" in text


def test_long_names_are_folded_not_cut() -> None:
    text = shown([trained("kd", 70.0, pair=LONG)], width=40)
    assert "…" not in text
    squeezed = re.sub(r"\s", "", text)
    assert LONG[0] in squeezed
    assert LONG[1] in squeezed


def test_terminal_marks_the_best_without_colour_and_says_so() -> None:
    text = shown([trained("kd", 70.0), trained("crd", 71.0)])
    assert "71.00 (1)*" in text
    assert "70.00 (1)*" not in text
    assert "Bold and *: the best mean" in text


def test_every_end_and_its_reason_is_in_every_output() -> None:
    records = ends()
    terminal = " ".join(shown(records).split())
    markdown = accuracy_document(records)
    for words in ("failed", "diverged", "n/a", "total is not finite in epoch 3", "maps of unequal size"):
        assert words in terminal
        assert words in markdown
    assert "RuntimeError: <script>alert(1)</script> | a_b _c_" in terminal  # nothing to escape there


def test_square_brackets_are_not_taken_for_markup() -> None:
    text = shown([trained("kd", status="failed", reason="index [bold] of [/x] is out of range")])
    assert "index [bold] of [/x] is out of range" in text


def test_markdown_escapes_labels_and_reasons() -> None:
    assert escape("<script> | `a` *b* [c](d) wrn_40_2 _e_ ~f~ $g$ \\ &amp;\n#h") == (
        "&lt;script&gt; \\| \\`a\\` \\*b\\* \\[c\\](d) wrn_40_2 \\_e\\_ \\~f\\~ \\$g\\$ \\\\ &amp;amp; \\#h"
    )
    records = [*ends(), trained("kd", pair=("a|b", "<i>"))]
    text = accuracy_document(records)
    assert "<script>" not in text
    assert "<i>" not in text
    header = next(line for line in text.splitlines() if line.startswith("|"))
    assert len(re.findall(r"(?<!\\)\|", header)) == 4  # the empty corner and two pairs
    assert "a\\|b → &lt;i&gt;" in header


def test_markdown_table() -> None:
    records = [trained(VANILLA, 69.0), trained("kd", 70.0), trained("kd", 71.0, 1), trained("crd", 70.5, recipe=SHORT)]
    lines = accuracy_document(records).splitlines()
    assert lines[:9] == [
        "# Top-1 accuracy (%)",
        "",
        "## cifar100, paper",
        "",
        "|  | resnet56 → resnet20 |",
        "| --- | --- |",
        "| Teacher | 72.50 (1)<br>publ. 72.34 (+0.16) |",
        "| Student | 69.00 (1)<br>publ. 69.06 (-0.06) |",
        "| kd | **70.50 ± 0.71 (2)**<br>publ. 70.66 (-0.16) |",
    ]
    assert "| crd | **70.50 (1)** |" in lines
    assert "- cifar100, paper@6: n = 1: no spread can be given." in lines


def test_no_published_column_where_nothing_is_published() -> None:
    records = [trained("kd", 70.0, data=CIFAR10)]
    assert "publ." not in shown(records)
    assert "publ." not in accuracy_document(records)


def test_without_records() -> None:
    assert shown([]).strip() == "Top-1 accuracy (%): no results yet."
    assert "No results yet" in accuracy_document([])
