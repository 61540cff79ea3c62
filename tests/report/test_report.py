from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.core.errors import UserError
from kdbench.core.files import DiskError
from kdbench.core.record import EpochMetrics, Record
from kdbench.core.trial import VANILLA
from kdbench.report import printed_sheets, published, write_report
from kdbench.report.epoch_rules import apply_rule
from kdbench.report.model import registered_tables
from kdbench.report.renderers import markdown
from kdbench.report.results import StudyResults
from kdbench.report.scores import COLUMNS
from kdbench.report.tables.against import against
from kdbench.report.tables.fidelity import metrics
from kdbench.report.tables.published import versus_published
from kdbench.report.tables.selection import selection
from tests.report.factory import CIFAR10, PART, SHORT, epochs, study, trained


def written(records: Sequence[Record], out: Path) -> list[Path]:
    return write_report(StudyResults(records, read_epochs=lambda trial: epochs(70.0)), out)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "tables" / "accuracy.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_files(tmp_path: Path) -> None:
    paths = written(study(["kd", "crd+kd"], [("resnet56", "resnet20")]), tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in paths}
    tabled = ("accuracy", "comparison", "cost", "metrics", "published", "ranks", "selection", "settings", "wins")
    drawn = ("accuracy", "curves", "cost", "gains")  # ranks need two pairs
    assert names == {
        "report.html",
        *(f"tables/{name}.{ending}" for name in tabled for ending in ("csv", "md", "tex")),
        *(f"charts/{kind}.cifar100.paper.{ending}" for kind in drawn for ending in ("png", "svg")),
    }
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(paths)  # nothing temporary is left
    assert len(table(tmp_path)) == 4


def test_csv(tmp_path: Path) -> None:
    records = [trained(VANILLA, 69.0), trained("icd+kd", 70.0), trained("icd+kd", 70.55555, 1)]
    records.append(trained("fsp", status="n/a", reason='=HYPERLINK("x"), "y"'))
    written(records, tmp_path)
    found = {row["method"]: row for row in table(tmp_path)}
    assert list(found["icd+kd"]) == list(COLUMNS)
    assert found["icd+kd"]["top1_mean"] == "70.2778"
    assert found["icd+kd"]["top1_sd"] == "0.3928"  # 0.55555 / sqrt(2)
    assert found["icd+kd"]["n"] == "2"
    assert found["icd+kd"]["gap"] == "-1.5322"  # against 71.81
    assert found[VANILLA]["top1_sd"] == ""
    assert found["fsp"]["top1_mean"] == ""
    assert found["fsp"]["reason"] == '\'=HYPERLINK("x"), "y"'
    assert "None" not in "".join(path.read_text("utf-8") for path in (tmp_path / "tables").glob("*.csv"))


def test_without_records(tmp_path: Path) -> None:
    paths = written([], tmp_path)
    assert (tmp_path / "tables" / "accuracy.csv").read_text(encoding="utf-8") == ",".join(COLUMNS) + "\n"
    assert "No results yet" in (tmp_path / "tables" / "accuracy.md").read_text(encoding="utf-8")
    assert all(path.parent == tmp_path / "tables" or path.name == "report.html" for path in paths)


def test_unreadable_curves_are_left_out_and_counted(tmp_path: Path) -> None:
    records = [trained("kd", 70.0), trained("crd", 71.0), trained("icd", 72.0)]

    def curve(trial: str) -> Sequence[EpochMetrics]:
        if ".crd." in trial:
            raise FileNotFoundError(trial)
        return () if ".icd." in trial else epochs(70.0)

    results = StudyResults(records, read_epochs=curve)
    write_report(results, tmp_path)
    assert results.notes[-1] == "Charts by epoch do without 2 finished trials: no epochs to be read."
    assert (tmp_path / "charts" / "curves.cifar100.paper.svg").is_file()

    def missing(trial: str) -> Sequence[EpochMetrics]:
        raise FileNotFoundError(trial)

    paths = write_report(StudyResults(records, read_epochs=missing), tmp_path / "none")
    assert not any("curves" in path.name for path in paths)


def test_file_names_are_safe_and_do_not_collide(tmp_path: Path) -> None:
    labels = ["cifar100[n=1000]", "cifar100(n=1000)", "parquet:../../x y"]
    records = [trained("kd", data=replace(PART, label=label, content=label)) for label in labels]
    paths = written(records, tmp_path)
    names = {path.name for path in paths if path.suffix == ".svg" and path.name.startswith("accuracy")}
    assert names == {
        "accuracy.cifar100-n=1000.paper.svg",
        "accuracy.cifar100-n=1000.paper-2.svg",
        "accuracy.parquet-x-y.paper.svg",
    }
    assert {path.parent for path in paths} == {tmp_path, tmp_path / "tables", tmp_path / "charts"}


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    records = [*study(["kd", "crd"], [("resnet56", "resnet20")]), trained("kd", data=CIFAR10)]
    first = {path.name: path.read_bytes() for path in written(records, tmp_path)}
    assert first == {path.name: path.read_bytes() for path in written(records[::-1], tmp_path)}


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written([trained("kd", 70.0)], tmp_path)
    before = (tmp_path / "tables" / "accuracy.csv").read_bytes()

    def broken(source: object, target: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(DiskError, match="no space left"):
        written([trained("kd", 71.0)], tmp_path)
    assert (tmp_path / "tables" / "accuracy.csv").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_report_never_imports_torch_and_is_cheap_to_import(tmp_path: Path) -> None:
    script = """
import sys, pathlib
import kdbench.report
heavy = {"torch", "pandas", "matplotlib", "rich", "numpy"} & set(sys.modules)
assert not heavy, heavy
from kdbench.report.results import StudyResults
from tests.report.factory import epochs, trained
results = StudyResults([trained("kd"), trained("crd")], read_epochs=lambda trial: epochs(70.0))
kdbench.report.write_report(results, pathlib.Path(sys.argv[1]))
assert kdbench.report.printed_sheets(results)
import kdbench.report.renderers.terminal
assert "torch" not in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    root = Path(__file__).resolve().parents[2]
    run = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_command_prints_the_sheets_that_were_written(tmp_path: Path) -> None:
    results = StudyResults(study(["kd", "crd"], [("resnet56", "resnet20")]))
    write_report(results, tmp_path)
    for name, printed in zip(("cost", "comparison", "accuracy"), printed_sheets(results), strict=True):
        (item,) = [item for item in registered_tables() if item.name == name]
        assert results.sheet(item) is printed
        assert item.make(results) is not printed


def test_a_thousand_records_are_reported_in_seconds(tmp_path: Path) -> None:
    pairs = [(f"t{n}", f"s{n}") for n in range(13)]
    records = study(["kd", *(f"m{n}" for n in range(13))], pairs, seeds=5)
    assert len(records) == 13 * 15 * 5
    started = time.perf_counter()
    written(records, tmp_path)
    assert time.perf_counter() - started < 30  # 4 on a machine that does nothing else
    assert (tmp_path / "report.html").stat().st_size < 5e6


def test_against_another_study() -> None:
    here = study(["kd", "crd+kd"], [("resnet56", "resnet20")])
    there = [
        replace(record, top1=record.top1 - 1 - (0.05 * record.trial.seed if record.trial.method == "kd" else 0))
        for record in here
        if record.top1 and record.trial.method != "crd+kd"
    ]
    there = [replace(record, environment={**record.environment, "torch": "2.9.0"}) for record in there]
    sheet = against(StudyResults(here), StudyResults(there))
    frame, notes = sheet.frame, sheet.notes
    assert [row["method"] for row in frame.to_dict("records")] == [VANILLA, "kd"]
    assert frame["difference"].tolist() == pytest.approx([1.0, 1.05])
    assert set(frame["n"]) == {3}
    assert "torch: here 2.11.0; there 2.9.0." in notes
    document = markdown.document(sheet)
    assert "+1.05 [+0.93, +1.17] (3)" in document  # by hand: sd 0.05, 1.05 ± 4.303 · 0.05 / √3
    assert "+1.00 (3)" in document  # the same in all seeds: no interval, and the note says so
    assert "no interval for one seed or where the differences are the same in all seeds" in notes[0]
    assert len(against(StudyResults(here), StudyResults([])).frame) == 0


def test_the_ledger_compares_only_what_can_be_compared(tmp_path: Path) -> None:
    pair = ("resnet56", "resnet20")
    number = published.numbers()[(*pair, "kd")]
    near = [trained("kd", number + gap, seed, pair=pair) for seed, gap in enumerate((-0.2, 0.1, 0.3))]
    verdicts = versus_published(StudyResults(near))["verdict"].tolist()
    assert verdicts == ["agrees"]
    far = [replace(record, top1=record.top1 + 5) for record in near if record.top1]
    row = versus_published(StudyResults(far)).to_dict("records")[0]
    assert (row["verdict"], row["published"], row["published_seeds"]) == ("differs", number, "5")
    assert versus_published(StudyResults(near[:1]))["verdict"].tolist() == ["one seed: no interval"]
    by_best = versus_published(StudyResults(near, rule="best"))
    assert by_best["verdict"].tolist() == ["not comparable: another epoch counts"]
    short = [trained("kd", 60.0, pair=pair, recipe=SHORT, data=PART)]
    assert versus_published(StudyResults(short))["verdict"].tolist() == ["not comparable: other data, other schedule"]
    assert len(versus_published(StudyResults([trained("kd", pair=("a", "b"))]))) == 0


def test_rules_for_the_epoch(tmp_path: Path) -> None:
    records = [replace(trained("kd", 70.0, seed), last10_top1=69.0 + seed) for seed in range(2)]
    assert [record.top1 for record in apply_rule(records, "last10")] == [69.0, 70.0]
    assert [record.top1 for record in apply_rule(records, "best")] == [70.5, 70.5]
    with pytest.raises(UserError, match="--select validation: no record has the best epoch on held-out"):
        apply_rule(records, "validation")
    row = selection(StudyResults(records)).frame.to_dict("records")[0]
    assert (row["last"], row["last10"], row["best"]) == (70.0, 69.5, 70.5)
    assert math.isnan(row["validation"])
    measured = [replace(record, metrics={"kl": 0.1}) for record in records]
    (of_metrics,) = metrics(StudyResults(measured, rule="best")).tables
    assert of_metrics.rows[0].cells[1].text == "70.00 ± 0.00"  # beside other figures of the last epoch
    write_report(StudyResults(records, rule="best"), tmp_path)
    assert "the best epoch on the test split: optimistic" in (tmp_path / "tables" / "accuracy.md").read_text("utf-8")
    assert table(tmp_path)[-1]["top1_mean"] == "70.5"

    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Cells: top-1 accuracy (%) on the test split, the best epoch on the test split: optimistic, mean" in page
    assert "Top-1 %, the last epoch" not in page
