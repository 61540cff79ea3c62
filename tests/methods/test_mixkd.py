"""MixKD."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch

from kdbench.distill import Output, ViewStep
from tests.methods.build import batch_of, make_for, requirements, step_of, tensor
from tests.methods.expectations import Expectations

EXPECTED = Expectations(refused=({"temperature": 0.0}, {"alpha": 0.0}))


def test_by_hand() -> None:
    # Of mixed images the student says (3/4, 1/4) and (1/2, 1/2). Labels 0 and 1, each the other's partner, with shares
    # 7/8 and 1/4. At T=2 the logits log 3 are halved; the teacher is undecided there.
    student, teacher = tensor([log(3), 0.0], [0.0, 0.0]), torch.zeros(2, 2, dtype=torch.float64)
    batch = batch_of(2)
    step = step_of(Output(student, (), student), Output(student, (), student), batch=batch)
    partner, lam = torch.tensor([1, 0]), torch.tensor([7 / 8, 1 / 4])
    view = ViewStep(batch, Output(student, (), student), (Output(teacher, (), teacher),), partner, lam)
    settings = {"mixed_label_weight": 3.0, "mixkd_weight": 5.0, "temperature": 2.0}
    terms = make_for("mixkd", settings, step).losses(replace(step, views={"mixup": view}))
    labels = (7 / 8 * log(4 / 3) + 1 / 8 * log(4) + log(2)) / 2
    assert terms["mixed_labels"].item() == pytest.approx(3 * labels, rel=1e-12)
    p = 3**0.5 / (1 + 3**0.5)
    divergence = (log(1 / 2 / p) + log(1 / 2 / (1 - p))) / 2
    assert terms["mixed_teacher"].item() == pytest.approx(5 * 4 * divergence / 2, rel=1e-12)


def test_alpha_is_the_views() -> None:
    assert [view["alpha"] for view in requirements("mixkd", {"alpha": 0.4}).views] == [0.4]
