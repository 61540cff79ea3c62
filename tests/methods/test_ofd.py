"""OFD."""

from __future__ import annotations

from math import pi, sqrt

import pytest

from kdbench.methods.ofd import negative_mean, partial_distance
from tests.methods.build import tensor
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    refused=({"kernel_size": 2}, {"kernel_size": 0}),
    effective={"kernel_size": 3},
    mutations={
        "ofd": Mutation(  # the margin is forgotten
            "kdbench.methods.ofd.partial_distance",
            lambda distance: lambda student, teacher, margin: distance(student, teacher, margin * 0),
        )
    },
)


def test_by_hand() -> None:
    # Margin -1. Teacher at -2, raised to -1: a student at 0 costs 1, at -3 nothing. At -1/2: at 0 it costs 1/4, at -2
    # nothing. At 2, where the ReLU is open: at 0 it costs 4, at 3 it costs 1.
    student, teacher = [0.0, -3.0, 0.0, -2.0, 0.0, 3.0], [-2.0, -2.0, -0.5, -0.5, 2.0, 2.0]
    loss = partial_distance(tensor([[student]], [[student]]), tensor([[teacher]], [[teacher]]), tensor(-1.0))
    assert loss.item() == pytest.approx(1 + 1 / 4 + 4 + 1, rel=1e-12)


def test_margins() -> None:
    # Half of a normal distribution around 0 is negative, with the mean -√(2/π) deviations; around 4 next to nothing is.
    margins = negative_mean(tensor(1.0, -2.0, 1.0, 0.0), tensor(0.0, 0.0, 4.0, 4.0))
    assert margins.tolist() == pytest.approx([-sqrt(2 / pi), -2 * sqrt(2 / pi), -3.0, 0.0], rel=1e-12)
