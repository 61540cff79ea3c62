"""NormKD."""

from __future__ import annotations

from math import exp

import pytest

from kdbench.distill import Output
from tests.methods.build import make_for, step_of, tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

EXPECTED = Expectations(
    refused=({"temperature": 0.0},),
    predictions=(Prediction(zeros("normkd")),),
    mutations={
        "normkd": Mutation(  # no gradient through the student's temperature
            "kdbench.methods.normkd.deviation", lambda original: lambda logits: original(logits).detach()
        )
    },
)


def test_by_hand() -> None:
    # (0, 3, 0) deviates by √3, (9, 0, 0) by 3 · √3. Their temperatures at 1/√3 are 1 and 3: (0, 3, 0) and (3, 0, 0)
    # remain, the probabilities as (1, e³, 1) and (e³, 1, 1), and KL = 3 (e³ - 1) / (e³ + 2). The second student has
    # another mean and spread than its teacher, and equal probabilities; the third logits are constant, without spread.
    student, teacher = tensor([0, 3, 0], [1, 2, 3], [4, 4, 4]), tensor([9, 0, 0], [5, 15, 25], [6, 6, 6])
    step = step_of(Output(student.double(), (), student), Output(teacher.double(), (), teacher))
    loss = make_for("normkd", {"temperature": 1 / 3**0.5, "normkd_weight": 5.0}, step).losses(step)["normkd"]
    assert loss.item() == pytest.approx(5 * 3**2 * 3 * (exp(3) - 1) / (exp(3) + 2) / 3, rel=1e-12)
