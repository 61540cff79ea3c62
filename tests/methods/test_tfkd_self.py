"""Teacher-free KD by self-training."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest

from kdbench.distill import Output
from tests.methods.build import make_for, step_of, tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

EXPECTED = Expectations(
    refused=({"temperature": 0.0}, {"multiplier": 0.0}),
    predictions=(Prediction(zeros("self")),),
    mutations={
        "tfkd_self": Mutation(  # a mean over images, not over images and classes
            "kdbench.methods.tfkd_self.kl_by_class",
            lambda original: (
                lambda student, teacher, temperature: original(student, teacher, temperature) * student.shape[1]
            ),
        )
    },
)


def test_by_hand() -> None:
    # At T=2 the earlier network softens to (3/4, 1/4) and (1/2, 1/2), the student to (1/2, 1/2) twice.
    student, earlier = tensor([0.0, 0.0], [1.0, 1.0]), tensor([2 * log(3), 0.0], [5.0, 5.0])
    step = step_of(Output(student, (), student), Output(student + 7, (), student))
    step = replace(step, extra={"self": Output(earlier, (), earlier)})
    settings = {"tfkd_self_weight": 0.5, "multiplier": 3.0, "temperature": 2.0}
    term = make_for("tfkd_self", settings, step).losses(step)["self"]
    divergence = 3 / 4 * log(3) - log(2)
    assert term.item() == pytest.approx(0.5 * 3 * 4 * divergence / (2 * 2), rel=1e-12)  # T² / (B · C)
