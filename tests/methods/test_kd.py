from __future__ import annotations

from math import log

import pytest
import torch
from torch.testing import assert_close

from kdbench.distill import Output, soft_kl
from tests.methods.golden import DTYPES, Case, batch_of, make, total_of


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


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("file", ["kd_p1.npz", "kd_p2.npz"])
def test_the_authors_values(file: str, precision: str) -> None:
    case = Case(file, precision)
    labels = case.get("in.labels")
    settings = {"ce_weight": 0.0, "kd_weight": 1.0, "kd_temperature": case.entry["hyperparameters"]["T"]}
    method = make("kd", settings, student=2, teacher=2, labels=labels, dtype=case.dtype)
    student, teacher = case.input("y_s"), case.get("in.y_t")
    outputs = Output(student, (), student), Output(teacher, (), teacher)
    total, _ = total_of(method, *outputs, batch_of(len(labels), labels=labels))
    total.backward()
    case.check_total(total)
    case.check_gradients(method)

    default = make("kd", {}, student=2, teacher=2, labels=labels, dtype=case.dtype)
    published, _ = total_of(default, *outputs, batch_of(len(labels), labels=labels))
    case.check_value(published, "out.objective_gamma0.1_alpha0.9")
