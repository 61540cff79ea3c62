"""Neuron selectivity transfer."""

from __future__ import annotations

import pytest

from kdbench.methods.nst import squared_discrepancy
from tests.methods.build import tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

EXPECTED = Expectations(
    predictions=(Prediction(zeros("discrepancy")),),
    mutations={
        "nst": Mutation(
            "kdbench.methods.nst.squared_discrepancy",
            lambda loss: lambda student, teacher: loss(student, teacher) * 0.999,
        )
    },
)


def test_by_hand() -> None:
    # One channel each: (3, 4) is (0.6, 0.8) at length 1, the teacher's (1, 0). k(t, t) = k(s, s) = 1, k(s, t) = 0.36.
    loss = squared_discrepancy(tensor([[[3.0, 4.0]]]), tensor([[[1.0, 0.0]]]))
    assert loss.item() == pytest.approx(2 - 2 * 0.36, rel=1e-12)
    # A second student channel (0, 1): k(s, s') means (1 + 1 + 2 · 0.64) / 4, k(s, t) means (0.36 + 0) / 2.
    loss = squared_discrepancy(tensor([[[3.0, 4.0]], [[0.0, 1.0]]]), tensor([[[1.0, 0.0]]]))
    assert loss.item() == pytest.approx(1 + (2 + 2 * 0.64) / 4 - 2 * 0.36 / 2, rel=1e-12)
