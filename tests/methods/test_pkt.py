"""Probabilistic knowledge transfer."""

from __future__ import annotations

from math import log

import pytest

from kdbench.methods.pkt import neighbor_divergence
from tests.methods.build import tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

EXPECTED = Expectations(
    predictions=(Prediction(zeros("divergence")),),
    mutations={
        "pkt": Mutation(
            "kdbench.methods.pkt.neighbor_divergence",
            lambda loss: lambda student, teacher: loss(student, teacher) * len(student),
        )
    },
)


def test_by_hand() -> None:
    # Orthogonal students: similarities 1 and 1/2, so probabilities 2/3 and 1/3. Equal teachers: 1/2 and 1/2.
    # The mean over four entries of p_t · log(p_t / p_s); 1e-7 in norms and logarithm moves it in the sixth digit.
    loss = neighbor_divergence(tensor([1.0, 0.0], [0.0, 1.0]), tensor([2.0, 0.0], [3.0, 0.0]))
    assert loss.item() == pytest.approx((log(3 / 4) + log(3 / 2)) / 4, rel=1e-5)
