from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from kdbench.core.data import DataInfo
from kdbench.core.record import Record
from kdbench.core.trial import VANILLA, Recipe, TeacherSource
from kdbench.report import published
from kdbench.report.groups import method_key, select
from kdbench.report.model import Cell
from kdbench.report.results import StudyResults
from kdbench.report.scores import COLUMNS
from kdbench.report.tables.accuracy import accuracy
from tests.report.factory import CIFAR10, CIFAR100, PAIR, PAPER, PART, SHORT, texts, trained


def rows(records: list[Record]) -> list[dict[str, Any]]:
    """The long form as mappings, absent numbers as None."""
    found = StudyResults(records).accuracy.to_dict("records")
    return [{str(name): None if value != value else value for name, value in row.items()} for row in found]


def row(records: list[Record], method: str, **where: str) -> dict[str, Any]:
    fitting = [r for r in rows(records) if r["method"] == method and all(r[name] == where[name] for name in where)]
    assert len(fitting) == 1
    return fitting[0]


def wide(records: list[Record], text: Callable[[Cell], str] = lambda cell: cell.text) -> pd.DataFrame:
    (table,) = accuracy(StudyResults(records)).tables
    return texts(table, text)


def test_values_by_hand() -> None:
    # Mean of 70, 71, 73 is 214/3; deviations -4/3, -1/3, 5/3: sum of squares 42/9, over n - 1 = 2: variance 7/3.
    records = [trained("crd", top1, seed) for seed, top1 in enumerate((70.0, 71.0, 73.0))]
    found = row(records, "crd")
    assert list(StudyResults(records).accuracy.columns) == list(COLUMNS)
    assert found["top1_mean"] == pytest.approx(214 / 3)
    assert found["top1_sd"] == pytest.approx((7 / 3) ** 0.5)
    assert found["top1_best_mean"] == pytest.approx(214 / 3 + 0.5)
    assert found["top5_mean"] == pytest.approx(214 / 3 + 20)
    assert found["seconds_per_epoch"] == 2.5  # 1.5 own + 1.0 shared
    assert (found["n"], found["status"], found["reason"]) == (3, "done", "")
    assert (found["dataset"], found["recipe"], found["teacher"], found["student"]) == ("cifar100", "paper", *PAIR)


def test_one_seed_has_no_spread() -> None:
    found = row([trained("crd", 70.0)], "crd")
    assert (found["n"], found["top1_mean"], found["top1_sd"]) == (1, 70.0, None)
    assert "n = 1: no spread can be given." in StudyResults([trained("crd", 70.0)]).notes


def test_vanilla_is_the_baseline_of_every_pair_with_its_architecture() -> None:
    other = ("resnet110", "resnet20")
    records = [trained(VANILLA, 68.0), trained(VANILLA, 69.0, 1), trained("kd"), trained("kd", pair=other)]
    for teacher in ("resnet56", "resnet110"):
        found = row(records, VANILLA, teacher=teacher)
        assert (found["student"], found["top1_mean"], found["n"]) == ("resnet20", 68.5, 2)


@pytest.mark.parametrize(
    "other",
    [
        trained(VANILLA, 60.0, data=replace(CIFAR100, content="x")),
        trained(VANILLA, 60.0, recipe=replace(PAPER, batch_size=128)),
        trained(VANILLA, 60.0, lr=0.1),
    ],
    ids=["content", "schedule", "rate"],
)
def test_vanilla_of_other_conditions_is_no_baseline(other: Record) -> None:
    assert [r["method"] for r in rows([other, trained("kd")])] == ["teacher", "kd"]
    both = [trained(VANILLA, 68.0), replace(other, finished="2027-01-01T00:00:00Z"), trained("kd")]
    assert row(both, VANILLA)["top1_mean"] == 68.0
    assert any("1 superseded record left out" in note for note in StudyResults(both).notes)


def test_precision_and_recipe_make_tables_of_their_own() -> None:
    records = [trained(VANILLA), trained("kd", precision="bf16"), trained("kd", recipe=SHORT)]
    assert [(r["recipe"], r["method"]) for r in rows(records)] == [
        ("paper", VANILLA),
        ("paper+bf16", "teacher"),
        ("paper+bf16", "kd"),
        ("paper@6", "teacher"),
        ("paper@6", "kd"),
    ]


def test_teacher_row_comes_from_what_taught() -> None:
    found = row([trained("kd", teacher_top1=72.25), trained("crd", teacher_top1=72.25)], "teacher")
    assert (found["top1_mean"], found["top1_sd"], found["n"], found["reason"]) == (72.25, None, 1, "")
    file = TeacherSource("resnet56", file="/somewhere/resnet56.pth", sha256="0123456789abcdef" * 4)
    assert row([trained("kd", teachers=(file,))], "teacher")["reason"] == "file 0123456789ab"


def test_teacher_row_of_students_that_were_never_trained() -> None:
    master = trained(VANILLA, 72.0, pair=("", "resnet56"))
    of_master = TeacherSource("resnet56", trial=master.trial.fingerprint)
    verdict = trained("crd", status="n/a", reason="no maps", teachers=(of_master,))
    assert row([master, verdict], "teacher")["top1_mean"] == 72.0
    assert [r["method"] for r in rows([verdict])] == ["crd"]
    broken = replace(master, status="failed", top1=None, reason="out of memory")
    found = row([broken, verdict], "teacher")
    assert (found["status"], found["n"], found["reason"]) == ("failed", 0, "seed 0 failed: out of memory")


def test_only_vanilla_records_are_shown_without_a_pair() -> None:
    found = rows([trained(VANILLA, 61.0, pair=("", "vgg8")), trained(VANILLA, 60.0)])
    assert [(r["teacher"], r["student"], r["top1_mean"]) for r in found] == [("", "resnet20", 60.0), ("", "vgg8", 61.0)]
    table = wide([trained(VANILLA, 60.0)])
    assert (list(table.index), list(table.columns), table.iloc[0, 0]) == (["Student"], ["resnet20"], "60.00 (1)")


def test_worst_status_wins_and_the_rest_is_still_averaged() -> None:
    records = [
        trained("crd", 70.0, 0),
        trained("crd", 72.0, 1),
        trained("crd", seed=2, status="diverged", reason="loss term `crd`\nis not finite in epoch 3"),
        trained("crd", seed=3, status="failed", reason="RuntimeError: boom"),
        trained("crd", seed=4, status="failed", reason="RuntimeError: boom"),
    ]
    found = row(records, "crd")
    assert (found["status"], found["n"], found["top1_mean"]) == ("failed", 2, 71.0)
    assert found["reason"] == (
        "seeds 3, 4 failed: RuntimeError: boom; seed 2 diverged: loss term `crd` is not finite in epoch 3"
    )
    assert row(records[:3], "crd")["status"] == "diverged"
    table = wide(records)
    assert table.loc["crd", "resnet56 → resnet20"] == "71.00 ± 1.41 (2), failed"
    notes = StudyResults(records).notes
    assert "failed: RuntimeError: boom (crd, resnet56 → resnet20, seeds 3, 4)" in notes
    assert any(note.startswith("diverged: loss term `crd` is not finite in epoch 3 (crd") for note in notes)


def test_not_applicable_gives_its_reason_alone() -> None:
    records = [trained("fsp", seed=seed, status="n/a", reason="maps differ in size") for seed in (0, 1)]
    found = row(records, "fsp")
    assert (found["status"], found["n"], found["top1_mean"], found["reason"]) == ("n/a", 0, None, "maps differ in size")
    assert "n/a: maps differ in size (fsp, resnet56 → resnet20)" in StudyResults(records).notes
    assert list(wide(records).loc["fsp"]) == ["n/a"]


def test_variants_are_never_averaged() -> None:
    old = [trained("crd", 60.0, seed, code="old", finished="2026-01-03T00:00:00+00:00") for seed in (0, 1)]
    new = [trained("crd", 70.0, 0, code="new", finished="2026-01-03T00:00:00.5Z")]  # half a second later
    found = row([*old, *new], "crd")
    assert (found["top1_mean"], found["n"]) == (70.0, 1)
    assert list(select([*old, *new]).superseded) == old
    assert any(note.startswith("2 superseded records left out") for note in StudyResults([*old, *new]).notes)
    assert not any("superseded" in note for note in StudyResults(new).notes)
    # An edit that was taken back: the rows that were asked for are shown, not the ones that were finished last.
    requested = {old[0].trial.variant}
    assert StudyResults([*old, *new], requested).accuracy["top1_mean"].dropna().tolist()[-1] == 60.0
    assert any(note.startswith("1 superseded record left out") for note in StudyResults([*old, *new], requested).notes)


def test_forms_of_one_method_from_before_and_after_an_edit_are_marked() -> None:
    records = [trained("crd", code="new"), trained("crd+kd", code="old"), trained("kd", code="else")]
    note = "crd: its rows were trained with 2 versions of its code; run them again to compare them."
    assert note in StudyResults(records).notes
    assert note not in StudyResults(records[:1] + records[2:]).notes


def test_protocols_are_never_mixed() -> None:
    records = [trained("crd", 60.0, protocol=1), trained("kd", 70.0, protocol=2)]
    assert [r["method"] for r in rows(records)] == ["teacher", "kd"]
    assert any("1 superseded record left out" in note for note in StudyResults(records).notes)


@pytest.mark.parametrize(
    ("data", "recipe", "compared"),
    [(CIFAR100, PAPER, True), (CIFAR100, SHORT, False), (CIFAR10, PAPER, False), (PART, PAPER, False)],
)
def test_published_numbers_stand_beside_equal_studies_only(data: DataInfo, recipe: Recipe, compared: bool) -> None:
    records = [trained(VANILLA, 69.0, data=data, recipe=recipe)]
    records += [trained(method, 70.0, data=data, recipe=recipe) for method in ("kd", "kd(kd_temperature=2)")]
    # The published row for resnet56 and resnet20: teacher 72.34, student 69.06, kd 70.66.
    wanted = {"teacher": (72.34, 0.16), VANILLA: (69.06, -0.06), "kd": (70.66, -0.66)} if compared else {}
    for found in rows(records):
        number, gap = wanted.get(found["method"], (None, None))
        assert found["published"] == number
        assert found["gap"] == (None if gap is None else pytest.approx(gap))
    assert any(published.SOURCES[0] in note for note in StudyResults(records).notes) == compared


def test_the_published_list() -> None:
    assert len(published.pairs()) == 13
    assert next(iter(published.pairs())) == ("wrn_40_2", "wrn_16_2")
    assert published.numbers()["wrn_40_2", "wrn_16_2", "icd+kd"] == 76.06


def test_order_of_methods_and_pairs() -> None:
    wanted = ["teacher", VANILLA, "kd", "kd(kd_temperature=2)", "at", "crd", "crd+kd", "icd", "icd+kd"]
    wanted += ["icd(alpha=0.1)", "icd(alpha=0.1)+kd", "vid"]
    assert sorted(set(wanted), key=method_key) == wanted
    pairs = [("vgg13", "vgg8"), ("b", "a"), ("wrn_40_2", "wrn_16_2"), ("a", "b"), ("resnet56", "resnet20")]
    table = wide([trained("kd", pair=pair) for pair in pairs])
    assert [column.split(" → ")[0] for column in table.columns] == ["wrn_40_2", "resnet56", "vgg13", "a", "b"]


def test_wide_marks_the_best_distillation_method() -> None:
    other = ("resnet110", "resnet20")
    records = [
        trained(VANILLA, 99.0),
        trained("kd", 70.001),
        trained("crd", 70.004),  # the same as printed
        trained("icd", 75.0),
        trained("icd", seed=1, status="diverged", reason="not finite"),  # the mean of survivors is never the best
        trained("kd", 65.0, pair=other),
        trained("kd", 66.0, 1, pair=other),
    ]
    table = wide(records, lambda cell: f"<{cell.text}>" if cell.best else cell.text)
    assert list(table.index) == ["Teacher", "Student", "kd", "crd", "icd"]
    assert table["resnet56 → resnet20"].tolist() == [
        "72.50 (1)",
        "99.00 (1)",
        "<70.00 (1)>",
        "<70.00 (1)>",
        "75.00 (1), diverged",
    ]
    assert table["resnet110 → resnet20"].tolist() == ["72.50 (1)", "99.00 (1)", "<65.50 ± 0.71 (2)>", "–", "–"]
    plain = wide(records)
    assert list(plain.loc["kd"]) == ["70.00 (1)", "65.50 ± 0.71 (2)"]


def test_mixtures_are_named() -> None:
    def made(method: str, torch: str, device: str, threads: int) -> Record:
        return trained(method, environment={"torch": torch, "device": device, "threads": threads})

    notes = StudyResults([made("kd", "2.11.0", "cpu", 2), made("crd", "2.15.0", "cpu", 16)]).notes
    assert "This table mixes torch 2.11.0 and 2.15.0." in notes
    assert "This table mixes thread counts 2 and 16." in notes
    notes = StudyResults([made("kd", "2.11.0", "cpu", 2), made("crd", "2.11.0", "cuda:0", 16)]).notes
    assert [note for note in notes if "mixes" in note] == ["This table mixes devices cpu and cuda."]
    compiled = replace(trained("crd"), environment={"torch": "2.11.0", "device": "cpu", "threads": 2, "compiled": True})
    assert (
        "This table mixes compiled networks and others."
        in StudyResults([made("kd", "2.11.0", "cpu", 2), compiled]).notes
    )
    # Two tables that differ are no mixture.
    apart = [made("kd", "2.11.0", "cpu", 2), replace(trained("kd", data=CIFAR10), environment={"torch": "2.15.0"})]
    assert not any("mixes" in note for note in StudyResults(apart).notes)


def test_differing_numbers_of_seeds_are_named() -> None:
    records = [trained("kd", 70.0, 0), trained("kd", 71.0, 1), trained("kd", 72.0, 2), trained("crd", 70.0)]
    assert "n differs between cells: from 1 to 3 seeds." in StudyResults(records).notes
    assert not any("n differs" in note for note in StudyResults(records[:3]).notes)


def test_nothing_in_nothing_out() -> None:
    assert list(StudyResults([]).accuracy.columns) == list(COLUMNS)
    assert len(StudyResults([]).accuracy) == 0
    assert StudyResults([]).notes == []


def test_order_of_records_is_irrelevant() -> None:
    records = [trained(method, 70.0 + seed, seed) for method in (VANILLA, "kd", "crd") for seed in range(3)]
    assert StudyResults(records).accuracy.equals(StudyResults(records[::-1]).accuracy)
    assert StudyResults(records).notes == StudyResults(records[::-1]).notes
