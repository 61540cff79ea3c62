"""KD from a random network."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest

from kdbench.distill import Output
from tests.methods.build import make_for, step_of, tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Prediction

EXPECTED = Expectations(refused=({"temperature": 0.0},), predictions=(Prediction(zeros("random")),))


def test_by_hand() -> None:
    # At T=2 the random network softens to (3/4, 1/4), the student to (1/2, 1/2). The teacher is not read.
    student, random = tensor([0.0, 0.0]), tensor([2 * log(3), 0.0])
    step = step_of(Output(student, (), student), Output(student + 7, (), student))
    step = replace(step, extra={"random": Output(random, (), random)})
    term = make_for("random", {"random_weight": 3.0, "temperature": 2.0}, step).losses(step)["random"]
    assert term.item() == pytest.approx(3 * 4 * (3 / 4 * log(3) - log(2)), rel=1e-12)
