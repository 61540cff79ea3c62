"""Decoupled knowledge distillation."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch

from kdbench.distill import Output
from tests.methods.build import batch_of, make_for, step_of, tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

EXPECTED = Expectations(
    refused=({"temperature": 0.0}, {"warmup_epochs": 0}),
    predictions=(Prediction(zeros("tckd", "nckd")),),
    mutations={
        "dkd": Mutation(  # the target stays among the others
            "kdbench.distill.losses.among_others", lambda original: lambda logits, target: logits.log_softmax(dim=1)
        )
    },
)


def test_by_hand() -> None:
    # At T=2 the first teacher softens to (1/2, 1/4, 1/4) and its student to (1/4, 1/2, 1/4), with the target first:
    # (1/2, 1/2) against (1/4, 3/4), and among the others (1/2, 1/2) against (2/3, 1/3). The second rows are equal.
    teacher = tensor([2 * log(2), 0.0, 0.0], [1.0, 2.0, 3.0])
    student = tensor([0.0, 2 * log(2), 0.0], [1.0, 2.0, 3.0])
    batch = batch_of(2, labels=torch.tensor([0, 2]))
    step = step_of(Output(student, (), student), Output(teacher, (), teacher), batch=batch)
    method = make_for("dkd", {"temperature": 2.0, "tckd_weight": 3.0, "nckd_weight": 5.0}, step)
    tckd = (log(2) + log(2 / 3)) / 2
    nckd = (log(3 / 4) + log(3 / 2)) / 2
    for epoch, epochs, factor in ((5, 240, 1 / 4), (20, 240, 1.0), (21, 240, 1.0), (1, 60, 1 / 5)):  # linear, then 1
        terms = method.losses(replace(step, epoch=epoch, epochs=epochs))
        assert terms["tckd"].item() == pytest.approx(factor * 3 * 4 * tckd / 2, rel=1e-12)  # weight · T² · KL / B
        assert terms["nckd"].item() == pytest.approx(factor * 5 * 4 * nckd / 2, rel=1e-12)
