"""Knowledge distillation."""

from __future__ import annotations

from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from kdbench.distill import Output, soft_kl
from kdbench.distill.objective import objective
from tests.methods.build import batch_of, make, step_of
from tests.methods.by_hand import no_terms
from tests.methods.expectations import Expectations, Mutation, Prediction

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses"

EXPECTED = Expectations(
    predictions=(Prediction(no_terms),),
    mutations={
        "kd": Mutation(
            "kdbench.distill.objective.soft_kl",
            lambda loss: lambda student, teacher, temperature: loss(student, teacher, temperature) / temperature,
        )
    },
)


def test_by_hand() -> None:
    # At T=2 the teacher's rows soften to (3/4, 1/4) and (1/2, 1/2), the student's to (1/2, 1/2) twice.
    teacher = torch.tensor([[2 * log(3), 0.0], [0.0, 0.0]], dtype=torch.float64)
    student = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    loss = soft_kl(student, teacher, temperature=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(4 * (0.75 * log(3) - log(2)) / 2, rel=1e-12)  # T² · KL(row 1) / B
    assert student.grad is not None
    assert_close(student.grad, torch.tensor([[-0.25, 0.25], [0.0, 0.0]], dtype=torch.float64))  # T/B · (q - p)


def test_bad_shapes_and_temperatures_are_refused() -> None:
    with pytest.raises(ValueError, match="soft_kl"):
        soft_kl(torch.zeros(2, 3), torch.zeros(2, 4), 4.0)
    with pytest.raises(ValueError, match="T=0"):
        soft_kl(torch.zeros(2, 3), torch.zeros(2, 3), 0.0)


@pytest.mark.parametrize("case", ["p1", "p2"])
def test_the_published_objective(case: str) -> None:
    with np.load(GOLDEN / f"kd_{case}.npz") as arrays:
        student, teacher = (torch.from_numpy(arrays[name]).double() for name in ("in.y_s", "in.y_t"))
        labels, expected = torch.from_numpy(arrays["in.labels"]), float(arrays["out.objective_gamma0.1_alpha0.9"])
    method = make("kd", {}, student=2, teacher=2, labels=labels, dtype=torch.float64)
    outputs = Output(student, (), student), Output(teacher, (), teacher)
    terms = objective(method, step_of(*outputs, batch=batch_of(len(labels), labels=labels)))
    assert sum(terms.values()).item() == pytest.approx(expected, rel=1e-8)  # type: ignore[union-attr]
