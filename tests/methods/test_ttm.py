"""Transformed teacher matching."""

from __future__ import annotations

import math
from math import log
from typing import Any

import pytest

from kdbench.distill import Output
from tests.methods.build import make_for, step_of, tensor
from tests.methods.by_hand import mean, scaled, softmax
from tests.methods.expectations import Expectations, Mutation, Prediction


def flattened(method: Any, output: Output) -> dict[str, float]:
    # Even of a student like its teacher: the divergence of its probabilities from a power of them.
    rows = output.logits.tolist()
    pairs = zip(map(softmax, scaled(rows, method.hyper.exponent)), map(softmax, rows), strict=True)
    divergences = (math.fsum(q * log(q / p) for q, p in zip(*pair, strict=True)) for pair in pairs)
    return {"ttm": method.hyper.ttm_weight * mean(divergences)}


EXPECTED = Expectations(
    refused=({"exponent": 0.0},),
    predictions=(Prediction(flattened),),
    mutations={
        "ttm": Mutation(  # the student softened as well
            "kdbench.methods.ttm.soft_kl",
            lambda loss: lambda student, teacher, temperature: loss(0.1 * student, teacher, temperature),
        )
    },
)


def test_by_hand() -> None:
    # The square roots of (1/21, 4/21, 16/21) are as 1 : 2 : 4. The second student agrees with its teacher's.
    teacher = tensor([0.0, log(4), log(16)], [0.0, log(4), log(16)])
    student = tensor([log(2), log(4), log(1)], [0.0, log(2), log(4)])  # as 2 : 4 : 1
    step = step_of(Output(student, (), student), Output(teacher, (), teacher))
    loss = make_for("ttm", {"exponent": 0.5, "ttm_weight": 3.0}, step).losses(step)["ttm"]
    assert loss.item() == pytest.approx(3 * (log(1 / 2) + 2 * log(2 / 4) + 4 * log(4)) / 7 / 2, rel=1e-12)
