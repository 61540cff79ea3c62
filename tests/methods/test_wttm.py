"""Weighted transformed teacher matching."""

from __future__ import annotations

import math
from math import log
from typing import Any

import pytest

from kdbench.distill import Output
from tests.methods.build import make_for, step_of, tensor
from tests.methods.by_hand import mean, softmax
from tests.methods.expectations import Expectations, Mutation, Prediction


def flattened(method: Any, output: Output) -> dict[str, float]:
    # Even of a student like its teacher: the divergence of its probabilities p from their powers u, times the sum of u.
    divergences = []
    for p in map(softmax, output.logits.tolist()):
        u = [value**method.hyper.exponent for value in p]
        total = math.fsum(u)
        divergences.append(math.fsum(a * log(a / total / b) for a, b in zip(u, p, strict=True)))
    return {"wttm": method.hyper.wttm_weight * mean(divergences)}


EXPECTED = Expectations(
    refused=({"exponent": 0.0},),
    predictions=(Prediction(flattened),),
    mutations={
        "wttm": Mutation(  # without the weights: the power of logits in place of probabilities
            "kdbench.methods.wttm.weighted_kl",
            lambda loss: lambda student, teacher, exponent: loss(student, exponent * teacher, 1.0),
        )
    },
)


def test_by_hand() -> None:
    # The square roots of (1/21, 4/21, 16/21) are as 1 : 2 : 4, their sum is 7 / √21. The second student agrees.
    teacher = tensor([0.0, log(4), log(16)], [0.0, log(4), log(16)])
    student = tensor([log(2), log(4), log(1)], [0.0, log(2), log(4)])  # as 2 : 4 : 1
    step = step_of(Output(student, (), student), Output(teacher, (), teacher))
    loss = make_for("wttm", {"exponent": 0.5, "wttm_weight": 3.0}, step).losses(step)["wttm"]
    divergence = (log(1 / 2) + 2 * log(2 / 4) + 4 * log(4)) / 7
    assert loss.item() == pytest.approx(3 * 7 / math.sqrt(21) * divergence / 2, rel=1e-12)
