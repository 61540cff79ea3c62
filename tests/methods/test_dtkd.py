"""Dynamic temperature distillation."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import pytest
import torch

from kdbench.distill import Output
from tests.methods.build import make_for, step_of, tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction


def constant(original: object) -> object:
    def temperatures(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> tuple[float, float]:
        return temperature, temperature

    return temperatures


EXPECTED = Expectations(
    refused=({"temperature": 0.0}, {"warmup_epochs": 0}),
    predictions=(Prediction(zeros("dynamic", "fixed")),),
    mutations={"dtkd": Mutation("kdbench.methods.dtkd.temperatures", constant)},
)


def test_by_hand() -> None:
    # The largest logits 1 and 3 share 2T = 4 as 1 : 3: temperatures 1 and 3 leave the logits (1, 0) and (0, 1). The
    # second student agrees with its teacher. The third has no positive logit: both temperatures are T = 2.
    student = Output(tensor([1.0, 0.0], [2.0, 1.0], [-4.0, -4.0]), (), tensor([0.0], [0.0], [0.0]))
    teacher = Output(tensor([0.0, 3.0], [2.0, 1.0], [2 * log(3), 0.0]), (), tensor([0.0], [0.0], [0.0]))
    step = replace(step_of(student, teacher), epoch=5)  # of 240: a quarter of the warm-up
    method = make_for("dtkd", {"temperature": 2.0, "dynamic_weight": 3.0, "fixed_weight": 5.0}, step)
    terms = method.losses(step)
    kl_third = 0.75 * log(3) - log(2)  # (3/4, 1/4) against (1/2, 1/2)
    dynamic = (1 * 3 * (exp(1) - 1) / (exp(1) + 1) + 2 * 2 * kl_third) / 3
    assert terms["dynamic"].item() == pytest.approx(3 / 4 * dynamic, rel=1e-12)
    # at T = 2 the first student has the odds e^½ : 1, its teacher 1 : e^1.5
    p, q = 1 / (1 + exp(1.5)), 1 / (1 + exp(-0.5))
    fixed = 4 * (p * log(p / q) + (1 - p) * log((1 - p) / (1 - q)) + kl_third) / 3
    assert terms["fixed"].item() == pytest.approx(5 / 4 * fixed, rel=1e-12)
