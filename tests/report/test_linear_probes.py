"""The transfer table: rows methods, columns targets, published numbers where the study is the published one."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kdbench.core.linear_probe import LinearProbe
from kdbench.core.record import ProbeRecord, Record, Status
from kdbench.core.trial import PROTOCOL, VANILLA
from kdbench.plan.probe_protocols import protocol
from kdbench.report import write_sheet
from kdbench.report.renderers import markdown
from kdbench.report.tables import transfer
from tests.report.factory import CIFAR100, PART, printed, trained

PAIR = ("wrn_40_2", "wrn_16_2")
STL10 = replace(CIFAR100, label="stl10", content="5" * 64, classes=10)
TINY = replace(CIFAR100, label="tiny-imagenet", content="6" * 64, classes=200)


def moved(
    record: Record,
    top1: float | None,
    *,
    to: object = STL10,
    name: str = "authors",
    epochs: int | None = None,
    status: Status = "done",
    reason: str | None = None,
) -> ProbeRecord:
    """A transfer record of a training record."""
    how = protocol(name, epochs=epochs, size=32)
    source = LinearProbe(record.trial, "f" * 64, to, how.recipe, how.bn_train_mode, 1, 0.05, "fp32")  # type: ignore[arg-type]
    value = top1 if status == "done" else None
    top5 = None if value is None else value + 10
    return ProbeRecord(PROTOCOL, source, status, reason, value, top5, 1.0, 2.0, {}, "2026-01-01T00:00:00Z")


def sources() -> dict[str, list[Record]]:
    teacher = trained(VANILLA, 75.0, pair=("", PAIR[0]))
    taught = {method: [trained(method, 74.0, seed, pair=PAIR) for seed in range(2)] for method in ("kd", "icd")}
    for records in taught.values():
        for place, record in enumerate(records):
            teachers = (replace(record.trial.teachers[0], trial=teacher.trial.fingerprint),)
            records[place] = replace(record, trial=replace(record.trial, teachers=teachers))
    plain = [trained(VANILLA, 73.0, seed, pair=("", PAIR[1])) for seed in range(2)]
    return {"teacher": [teacher], VANILLA: plain, **taught}


def everything(name: str = "authors", epochs: int | None = None) -> list[ProbeRecord]:
    return [
        moved(record, base + 10 * place + seed, to=target, name=name, epochs=epochs)
        for place, target in enumerate((STL10, TINY))
        for base, records in zip((68.0, 69.0, 70.0, 71.0), sources().values(), strict=True)
        for seed, record in enumerate(records)
    ]


def by_method(frame: pd.DataFrame) -> dict[str, dict[Hashable, Any]]:
    return {str(row["method"]): row for row in frame.to_dict("records")}


def test_a_row_for_each_method_and_a_column_for_each_target(tmp_path: Path) -> None:
    frame = transfer.transfers(everything())
    assert list(frame.columns) == list(transfer.COLUMNS)
    stl = by_method(frame[frame["target"] == "stl10"])
    assert list(stl) == ["teacher", VANILLA, "kd", "icd"]
    assert (stl["teacher"]["top1_mean"], stl["teacher"]["n"]) == (68.0, 1)
    icd = stl["icd"]
    assert (icd["top1_mean"], icd["n"], icd["top5_mean"]) == (71.5, 2, 81.5)
    assert icd["top1_sd"] == pytest.approx(0.5**0.5)
    # The published study: CIFAR-100, the paper's recipe, the authors' protocol.
    assert icd["gap"] == pytest.approx(71.5 - icd["published"])
    assert all(row["published"] > 0 for row in stl.values())
    paths = write_sheet(transfer.sheet(everything()), "transfer", tmp_path)
    assert [path.name for path in paths] == ["transfer.csv", "transfer.md", "transfer.tex"]
    lines = paths[1].read_text("utf-8").splitlines()
    header = "|  | wrn_40_2 → wrn_16_2, stl10 | wrn_40_2 → wrn_16_2, tiny-imagenet |"
    assert header in lines
    assert any(line.startswith("| icd | **71.50 ± 0.71 (2)**<br>publ. ") for line in lines)
    assert "## cifar100, paper" in lines
    assert "### authors" in lines


@pytest.mark.parametrize(("name", "epochs"), [("frozen", None), ("authors", 8)])
def test_other_protocols_are_not_beside_published_numbers(name: str, epochs: int | None) -> None:
    frame = transfer.transfers(everything(name, epochs))
    assert frame["published"].isna().all()
    assert frame["gap"].isna().all()
    assert set(frame["protocol"]) == {name if epochs is None else f"{name}@{epochs}"}


def test_networks_of_another_study_have_no_published_number() -> None:
    frame = transfer.transfers([moved(trained("kd", pair=PAIR, data=PART), 70.0)])
    assert frame["published"].isna().all()


def test_failures_are_words_with_reasons() -> None:
    one, two = sources()["kd"]
    records = [moved(one, 60.0), moved(two, None, status="failed", reason="its weights are damaged")]
    frame = transfer.transfers(records)
    row = by_method(frame)["kd"]
    assert (row["status"], row["n"], row["reason"]) == ("failed", 1, "seed 1 failed: its weights are damaged")
    notes = transfer.notes(frame)
    assert "kd, stl10, authors: seed 1 failed: its weights are damaged" in notes
    assert any(note.startswith("authors: ") for note in notes)
    assert not any(note.startswith("frozen: ") for note in notes)
    text = printed(transfer.sheet(records))
    assert "60.00 (1), failed" in text
    assert "Top-1 accuracy after transfer (%), authors" in text


def test_nothing_gives_an_empty_table() -> None:
    frame = transfer.transfers([])
    assert list(frame.columns) == list(transfer.COLUMNS)
    assert transfer.notes(frame) == []
    assert "No results yet" in markdown.document(transfer.sheet([]))
