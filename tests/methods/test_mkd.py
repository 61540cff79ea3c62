"""Distillation from several teachers."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch.testing import assert_close

from kdbench.distill import Output
from tests.methods.build import make_for, step_of, tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Prediction

EXPECTED = Expectations(
    refused=({"temperature": 0.0}, {"form": "logits"}),
    effective={"form": "probabilities"},
    predictions=(Prediction(zeros("mean")), Prediction(zeros("mean"), {"form": "probabilities"})),
)


def test_by_hand_in_both_forms() -> None:
    # At T=2 the teachers soften to (3/4, 1/4) and (1/2, 1/2), on average (5/8, 3/8); the student to (1/3, 2/3). The
    # two values differ by what does not depend on the student: its gradient is the same.
    first, second = tensor([2 * log(3), 0.0]), tensor([0.0, 0.0])
    terms = (3 / 4 * log(9 / 4) + 1 / 4 * log(3 / 8) + 1 / 2 * log(3 / 2) + 1 / 2 * log(3 / 4)) / 2
    probabilities = 5 / 8 * log(15 / 8) + 3 / 8 * log(9 / 16)
    gradients: list[torch.Tensor] = []
    for form, value in (("terms", terms), ("probabilities", probabilities)):
        student = tensor([0.0, 2 * log(2)]).requires_grad_()
        step = step_of(*(Output(logits, (), logits) for logits in (student, first, second)))
        term = make_for("mkd", {"mkd_weight": 3.0, "temperature": 2.0, "form": form}, step).losses(step)["mean"]
        assert term.item() == pytest.approx(3 * 4 * value, rel=1e-12)
        gradients += torch.autograd.grad(term, student)
    assert_close(*gradients, rtol=1e-12, atol=1e-12)
