"""Attention transfer."""

from __future__ import annotations

from math import sqrt

import pytest

from kdbench.methods.at import attention_distance
from tests.methods.build import tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

EXPECTED = Expectations(
    predictions=(Prediction(zeros("attention")),),
    mutations={
        "at": Mutation(
            "kdbench.methods.at.attention_distance",
            lambda distance: lambda student, teacher: distance(student, teacher) * 1.001,
        )
    },
)


def test_by_hand() -> None:
    # Squares of (3, 4) are (9, 16), of length √337; those of (1, 0) are (1, 0). The mean over the two positions; a
    # second image with equal attention halves the mean over images.
    student, teacher = tensor([[[3.0, 4.0]]], [[[2.0, 0.0]]]), tensor([[[1.0, 0.0]]], [[[5.0, 0.0]]])
    expected = ((9 / sqrt(337) - 1) ** 2 + (16 / sqrt(337)) ** 2) / 2 / 2
    assert attention_distance(student, teacher).item() == pytest.approx(expected, rel=1e-12)
