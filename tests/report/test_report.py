from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.report import Report, write_report
from kdbench.report.tables import COLUMNS
from kdbench.spec import VANILLA, Epoch, Record
from tests.report.factory import CIFAR10, PART, epochs, study, trained


def written(records: Sequence[Record], out: Path) -> Report:
    return write_report(records, lambda trial: epochs(70.0), out)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "tables" / "accuracy.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_files(tmp_path: Path) -> None:
    report = written(study(["kd", "crd+kd"], [("resnet56", "resnet20")]), tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in report.paths}
    assert names == {
        "tables/accuracy.csv",
        "tables/accuracy.md",
        "tables/cost.csv",
        "tables/cost.md",
        *(f"charts/{kind}.cifar100.paper.{ending}" for kind in ("accuracy", "curves") for ending in ("png", "svg")),
    }
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(report.paths)  # nothing temporary is left
    assert len(report.frame) == len(table(tmp_path)) == 4


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


def test_without_records(tmp_path: Path) -> None:
    report = written([], tmp_path)
    assert (tmp_path / "tables" / "accuracy.csv").read_text(encoding="utf-8") == ",".join(COLUMNS) + "\n"
    assert "No results yet" in (tmp_path / "tables" / "accuracy.md").read_text(encoding="utf-8")
    assert len(report.paths) == 4
    assert report.notes == ()


def test_unreadable_curves_are_left_out_and_counted(tmp_path: Path) -> None:
    records = [trained("kd", 70.0), trained("crd", 71.0), trained("icd", 72.0)]

    def curve(trial: str) -> Sequence[Epoch]:
        if ".crd." in trial:
            raise FileNotFoundError(trial)
        return () if ".icd." in trial else epochs(70.0)

    report = write_report(records, curve, tmp_path)
    assert report.notes[-1] == "Charts by epoch do without 2 finished trials: no epochs to be read."
    assert (tmp_path / "charts" / "curves.cifar100.paper.svg").is_file()

    def missing(trial: str) -> Sequence[Epoch]:
        raise FileNotFoundError(trial)

    report = write_report(records, missing, tmp_path / "none")
    assert not any("curves" in path.name for path in report.paths)


def test_file_names_are_safe_and_do_not_collide(tmp_path: Path) -> None:
    labels = ["cifar100[n=1000]", "cifar100(n=1000)", "parquet:../../x y"]
    records = [trained("kd", data=replace(PART, label=label, content=label)) for label in labels]
    report = written(records, tmp_path)
    names = {path.name for path in report.paths if path.suffix == ".svg" and path.name.startswith("accuracy")}
    assert names == {
        "accuracy.cifar100-n=1000.paper.svg",
        "accuracy.cifar100-n=1000.paper-2.svg",
        "accuracy.parquet-x-y.paper.svg",
    }
    assert {path.parent for path in report.paths} == {tmp_path / "tables", tmp_path / "charts"}


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    records = [*study(["kd", "crd"], [("resnet56", "resnet20")]), trained("kd", data=CIFAR10)]
    first = {path.name: path.read_bytes() for path in written(records, tmp_path).paths}
    assert first == {path.name: path.read_bytes() for path in written(records[::-1], tmp_path).paths}


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written([trained("kd", 70.0)], tmp_path)
    before = (tmp_path / "tables" / "accuracy.csv").read_bytes()

    def broken(source: object, target: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space left"):
        written([trained("kd", 71.0)], tmp_path)
    assert (tmp_path / "tables" / "accuracy.csv").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_report_never_imports_torch_and_is_cheap_to_import(tmp_path: Path) -> None:
    script = """
import sys, pathlib
import kdbench.report
heavy = {"torch", "pandas", "matplotlib", "rich", "numpy"} & set(sys.modules)
assert not heavy, heavy
from tests.report.factory import epochs, trained
kdbench.report.write_report([trained("kd"), trained("crd")], lambda trial: epochs(70.0), pathlib.Path(sys.argv[1]))
import kdbench.report.terminal
assert "torch" not in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    root = Path(__file__).resolve().parents[2]
    run = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
