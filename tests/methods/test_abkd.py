"""ABKD."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch.testing import assert_close

from kdbench.distill import Output
from kdbench.methods.abkd import alpha_beta_divergence
from tests.methods.build import make_for, step_of, tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

EXPECTED = Expectations(
    refused=({"temperature": 0.0},),
    predictions=tuple(
        Prediction(zeros("abkd"), {"alpha": alpha, "beta": beta})
        for alpha, beta in ((0.8, 0.3), (0.0, 0.0), (0.8, 0.0), (0.0, 0.3), (0.5, -0.5))
    ),
    mutations={
        "abkd": Mutation(  # student and teacher swapped
            "kdbench.methods.abkd.alpha_beta_divergence",
            lambda original: lambda log_p, log_q, alpha, beta: original(log_q, log_p, alpha, beta),
        )
    },
)


def test_by_hand() -> None:
    # Both exponents 1/2: 4 · (1 - Σ √(p q)). At T=2 the first rows are (1/2, 1/2) and (1/10, 9/10), the second equal.
    teacher, student = tensor([0.0, 0.0], [1.0, 2.0]), tensor([0.0, 2 * log(9)], [1.0, 2.0])
    step = step_of(Output(student, (), student), Output(teacher, (), teacher))
    method = make_for("abkd", {"alpha": 0.5, "beta": 0.5, "temperature": 2.0, "abkd_weight": 3.0}, step)
    expected = 3 * 4 * (1 - (0.05**0.5 + 0.45**0.5)) / 2
    assert method.losses(step)["abkd"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"),
    [
        (1.0, 0.0, (log(2) + log(2 / 3)) / 2),  # KL(p ‖ q)
        (0.0, 1.0, (log(1 / 2) + 3 * log(3 / 2)) / 4),  # KL(q ‖ p)
        (2.0, 0.0, (0.25 * 2 * log(4 / 3) - 0.5 + 10 / 16) / 2),  # divided by alpha, not by its square
        (0.0, 2.0, (2 / 16 * log(1 / 2) + 2 * 9 / 16 * log(3 / 2) - 10 / 16 + 0.5) / 2),
        (1.0, -1.0, 2 - log(2) + 2 / 3 - log(2 / 3) - 2),  # Σ p/q - log(p/q) - 1
        (2.0, -2.0, (4 - 2 * log(2) + 4 / 9 - 2 * log(2 / 3) - 2) / 2),
        (0.0, 0.0, (log(2) ** 2 + log(2 / 3) ** 2) / 2),
        (2.0, -1.0, (1 + 1 / 3 - 2 + 1) / 2),  # χ²/2: -(Σ p²/q - 2 p + q) / -2
    ],
)
def test_special_cases_by_hand(alpha: float, beta: float, expected: float) -> None:
    p, q = tensor([1 / 2, 1 / 2]), tensor([1 / 4, 3 / 4])
    assert alpha_beta_divergence(p.log(), q.log(), alpha, beta).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (1.0, -1.0), (-1.0, 0.5)])
def test_negative_exponents_stay_finite(alpha: float, beta: float) -> None:
    logits = torch.tensor([[0.0, 6e4, -6e4]], requires_grad=True)
    loss = alpha_beta_divergence(torch.tensor([[6e4, 0.0, 0.0]]).log_softmax(1), logits.log_softmax(1), alpha, beta)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert_close(logits.grad, logits.grad.nan_to_num(posinf=0.0, neginf=0.0))
