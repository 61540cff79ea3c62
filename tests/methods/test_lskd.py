"""Logit standardization."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log, sqrt

import pytest
import torch
from torch.testing import assert_close

from kdbench.distill import Output
from kdbench.methods.lskd import standardize
from tests.methods.build import batch_of, make_for, step_of, tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

BIASED = Mutation("kdbench.methods.lskd.standardize", lambda original: lambda logits: original(logits) * sqrt(10 / 9))
ONLY_DKD = "only form=dkd has it"

EXPECTED = Expectations(
    refused=({"temperature": 0.0}, {"warmup_epochs": 0}, {"form": "mlkd"}),
    effective={"form": "dkd"},
    without_effect={"tckd_weight": ONLY_DKD, "nckd_weight": ONLY_DKD, "warmup_epochs": ONLY_DKD},
    predictions=(Prediction(zeros("lskd")), Prediction(zeros("tckd", "nckd"), {"form": "dkd"})),
    mutations={"lskd_kd": BIASED, "lskd_dkd": BIASED, "td_logitstd": BIASED},  # divisor C instead of C - 1
)


def outputs() -> tuple[Output, Output]:
    # (0, 3, 0) has the mean 1 and the variance (1 + 4 + 1) / 2 = 3: z-scores (-1, 2, -1) / √3 of the first student, and
    # (2, -1, -1) / √3 of the first teacher. The second rows differ in mean and spread, their z-scores do not.
    student = tensor([0.0, 3.0, 0.0], [1.0, 2.0, 3.0])
    teacher = tensor([9.0, 0.0, 0.0], [5.0, 15.0, 25.0])
    return Output(student, (), student), Output(teacher, (), teacher)


def test_kd_by_hand() -> None:
    # At T = √3, where the scores are 1 apart, (1, e, 1) / (2 + e) and (e, 1, 1) / (2 + e): KL = (e - 1) / (2 + e).
    step = step_of(*outputs())
    method = make_for("lskd", {"temperature": sqrt(3), "lskd_weight": 5.0}, step)
    expected = 5 * 3 * (exp(1) - 1) / (2 + exp(1)) / 2
    # The deviations 3 · √3 and √3 are 1e-7 too large: a relative change of the scores by less than 1e-7.
    assert method.losses(step)["lskd"].item() == pytest.approx(expected, rel=1e-6)


def test_dkd_by_hand() -> None:
    # As above with the first class as the target: (e, 2) / (2 + e) against (1, 1 + e) / (2 + e), and among the others
    # (1/2, 1/2) against (e, 1) / (1 + e). In epoch 5 of 240 the factor is 1/4.
    step = replace(step_of(*outputs(), batch=batch_of(2, labels=torch.tensor([0, 2]))), epoch=5)
    weights = {"lskd_weight": 5.0, "tckd_weight": 3.0, "nckd_weight": 7.0}
    terms = make_for("lskd", {"form": "dkd", "temperature": sqrt(3), **weights}, step).losses(step)
    tckd = (exp(1) + 2 * log(2 / (1 + exp(1)))) / (2 + exp(1))
    nckd = log((1 + exp(1)) / 2) - 1 / 2
    assert terms["tckd"].item() == pytest.approx(5 / 4 * 3 * 3 * tckd / 2, rel=1e-6)
    assert terms["nckd"].item() == pytest.approx(5 / 4 * 7 * 3 * nckd / 2, rel=1e-6)


def test_constant_logits_have_finite_gradients() -> None:
    logits = torch.full((2, 5), 3.0, requires_grad=True)
    (standardize(logits) * torch.arange(5.0)).sum().backward()
    assert_close(standardize(logits), torch.zeros(2, 5))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
