from __future__ import annotations

from dataclasses import replace

from kdbench.core.trial import VANILLA, TeacherSource
from kdbench.report.results import StudyResults
from tests.report.factory import CIFAR10, trained


def shown(records: list, requested: set[str] | None = None) -> dict[str, float]:  # type: ignore[type-arg]
    frame = StudyResults(records, requested or set()).accuracy
    return dict(zip(frame["method"], frame["top1_mean"], strict=True))


def test_a_column_compares_what_one_teacher_taught() -> None:
    file = TeacherSource("resnet56", file="t.pth", sha256="ab" * 32)
    own = [trained("kd", 70.0), trained("icd", 71.0)]
    other = [trained("kd", 60.0, teachers=(file,), teacher_top1=50.0, finished="2026-02-01T00:00:00Z")]
    assert shown([*own, *other]) == {"teacher": 50.0, "kd": 60.0}
    requested = {record.trial.variant for record in own}
    assert shown([*own, *other], requested) == {"teacher": 72.5, "kd": 70.0, "icd": 71.0}
    assert any("1 superseded record left out" in note for note in StudyResults([*own, *other], requested).notes)


def test_a_table_is_of_one_set_of_images() -> None:
    elsewhere = replace(CIFAR10, content="other images under the same name")
    mine = [trained(VANILLA, 50.0, data=CIFAR10), trained("icd", 70.0, data=CIFAR10)]
    theirs = [trained("kd", 60.0, data=elsewhere, finished="2026-02-01T00:00:00Z")]
    assert shown([*mine, *theirs]) == {"teacher": 72.5, "kd": 60.0}
    assert shown([*mine, *theirs], {mine[1].trial.variant}) == {"teacher": 72.5, "vanilla": 50.0, "icd": 70.0}
