"""Activation boundaries."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kdbench.distill import Output
from kdbench.methods.ab import boundary_loss
from tests.methods.build import tensor
from tests.methods.by_hand import entries
from tests.methods.expectations import Expectations, Mutation, Prediction


def within_the_margin(method: Any, output: Output) -> dict[str, float]:
    # No connectors where shapes agree. A neuron is on the right side of the boundary; within the margin m of it, it
    # costs (m - x)² if x > 0 and (m + x)² else, which is (m - |x|)². Stages of weight ½ and 1; over B; · 3/1000.
    assert output.pre_activations is not None
    m = method.hyper.margin
    first, last = (
        math.fsum((m - abs(v)) ** 2 for v in entries(x) if abs(v) < m) / len(x) for x in output.pre_activations[1:]
    )
    return {"pretraining boundary": method.hyper.ab_weight * 3 / 1000 * (first / 2 + last)}


EXPECTED = Expectations(
    refused=({"margin": 0.0},),
    predictions=(Prediction(within_the_margin, {"ab_weight": 3.0, "margin": 0.8}),),
    mutations={
        "ab": Mutation(
            "kdbench.methods.ab.boundary_loss",
            lambda loss: lambda student, teacher, margin: loss(student, teacher, 1.01 * margin),
        )
    },
)


def test_by_hand() -> None:
    # Margin 1. Teacher on: 0.5 lacks 0.5, 2 lacks nothing. Teacher off: 0.5 is 1.5 too high, -3 is low enough. B = 2.
    student, teacher = tensor([0.5, 2.0], [0.5, -3.0]), tensor([1.0, 0.1], [-1.0, 0.0])
    assert boundary_loss(student, teacher, 1.0).item() == pytest.approx((0.25 + 2.25) / 2, rel=1e-12)
