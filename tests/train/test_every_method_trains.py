"""Every method in the real trainer: the same alone, in a cohort of all, and resumed between or within epochs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.core.record import Outcome
from kdbench.core.trial import VANILLA, Trial
from kdbench.distill import Shapes, registry
from kdbench.models import features, info
from tests.methods.expectations import METHODS
from tests.train.tiny_study import DATASET, equal, train, trial

pytestmark = pytest.mark.slow


class _After:
    """Asks for an end from the question after `questions` on."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def trials(teacher: str, student: str) -> list[Trial]:
    """Of all methods that support these networks."""
    data = DATASET.info
    sides = (features(arch, data.classes, data.size) for arch in (student, *teacher.split("+")))
    student_shapes, *teachers = sides
    shapes = Shapes(student_shapes, tuple(teachers), data.classes, DATASET.labels, info(student).family)
    names = [name for name in METHODS if name != VANILLA and not registry.incompatibility(name, {}, shapes)]
    return [trial(name, arch=student, teacher=teacher) for name in names]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("teacher", ["resnet14", "resnet14+wrn_16_1"])
def test_alone_in_a_cohort_of_all_and_resumed(tmp_path: Path, teacher: str) -> None:
    everyone = trials(teacher, "resnet8")
    assert len(everyone) > 3
    together = train(tmp_path / "together", *everyone)
    assert {name: outcome.reason for name, outcome in together.items() if outcome.status != "done"} == {}
    assert train(tmp_path / "stopped", *everyone, stop_after=1) == {}
    resumed = train(tmp_path / "stopped", *everyone)
    within: dict[str, Outcome] = {}
    while not within:
        within = train(tmp_path / "within", *everyone, stop=_After(6))
    for number, one in enumerate(everyone):
        name = f"{one.method}/{one.arch}"
        alone = train(tmp_path / str(number), one)[name]
        for other in (alone, resumed[name], within[name]):
            assert equal(together[name], other), name
