"""Local dense relational logit distillation."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from kdbench.distill import Output, Shapes, registry
from tests.methods.build import make_for, step_of, tensor
from tests.methods.by_hand import SHAPES, zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

EXPECTED = Expectations(
    refused=({"temperature": 0.0}, {"k": 1}),
    predictions=(Prediction(zeros("local", "remaining"), {"k": 2}),),
    mutations={
        "ldrld": Mutation(  # ranks counted from 0
            "kdbench.methods.ldrld.pair_weights", lambda original: lambda like: original(like) * exp(0.1)
        )
    },
)


def test_by_hand() -> None:
    # At T=2 the student's two highest, classes 1 and 3 in this order, soften to (2/3, 1/3) and the teacher's values
    # there to (1/2, 1/2); the others to (1/2, 1/2) and (3/4, 1/4). The two highest are the only pair and the whole set.
    student, teacher = tensor([0.0, 4 * log(2), 0.0, 2 * log(2)]), tensor([2 * log(3), 5.0, 0.0, 5.0])
    step = step_of(Output(student, (), student), Output(teacher, (), teacher))
    settings = {"local_weight": 3.0, "remaining_weight": 5.0, "k": 2, "temperature": 2.0}
    terms = make_for("ldrld", settings, step).losses(step)
    top = (log(3 / 4) + log(3 / 2)) / 2
    others = 3 / 4 * log(3 / 2) + 1 / 4 * log(1 / 2)
    weight = 2 / (1.5 + 1) * exp(-0.05 * (1 + 2))
    assert terms["local"].item() == pytest.approx(3 * 4 * (weight + 1) * top / 2, rel=1e-12)
    assert terms["remaining"].item() == pytest.approx(5 * 4 * others, rel=1e-12)


def test_a_class_is_left_for_the_remainder() -> None:
    student = torch.zeros(2, 4, dtype=torch.float64)
    step = step_of(Output(student, (), student), Output(student, (), student))
    assert make_for("ldrld", {"k": 7}, step).extra_info() == {"top_classes": 3}
    two = Shapes(SHAPES, (SHAPES,), 2, torch.arange(2))
    assert registry.incompatibility("ldrld", {}, two) == "it needs at least three classes"
