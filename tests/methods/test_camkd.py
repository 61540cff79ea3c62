"""Confidence-aware multi-teacher distillation."""

from __future__ import annotations

from math import log, sqrt

import pytest
import torch

from kdbench.distill import Output
from kdbench.methods.camkd import confidence_weights
from tests.methods.build import batch_of, make_for, step_of, tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Prediction

EXPECTED = Expectations(refused=({"temperature": 0.0},), predictions=(Prediction(zeros("weighted")),))


def test_by_hand() -> None:
    # The teachers give the label 3/4 and 1/4: exp(CE) is 4/3 and 4, the weights are 1 - 1/4 and 1 - 3/4. At T=2 they
    # soften to r : 1 and 1 : r with r = √3, the student to 1 : 2.
    first, second, student = tensor([log(3), 0.0]), tensor([0.0, log(3)]), tensor([0.0, 2 * log(2)])
    batch = batch_of(1, labels=torch.tensor([0]))
    step = step_of(*(Output(logits, (), logits) for logits in (student, first, second)), batch=batch)
    term = make_for("camkd", {"camkd_weight": 3.0, "temperature": 2.0}, step).losses(step)["weighted"]
    high = sqrt(3) / (1 + sqrt(3))
    right = high * log(high * 3) + (1 - high) * log((1 - high) * 3 / 2)
    wrong = (1 - high) * log((1 - high) * 3) + high * log(high * 3 / 2)
    assert term.item() == pytest.approx(3 * 4 * (3 / 4 * right + 1 / 4 * wrong) / 2, rel=1e-12)  # a mean of two


def test_weights_sum_to_1() -> None:
    teachers = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e3
    weights = confidence_weights(teachers, torch.tensor([0, 1, 2, 3, 0]))
    assert weights.sum(dim=0).tolist() == pytest.approx([1.0] * 5)
    assert weights.min() >= 0
