"""Similarity-preserving distillation."""

from __future__ import annotations

from math import sqrt

import pytest

from kdbench.methods.sp import batch_similarity
from tests.methods.build import tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

EXPECTED = Expectations(
    predictions=(Prediction(zeros("similarity")),),
    mutations={
        "sp": Mutation(
            "kdbench.methods.sp.batch_similarity",
            lambda loss: lambda student, teacher: loss(student, teacher) * len(student),
        )
    },
)


def test_by_hand() -> None:
    # Student 1, 2: both rows of its Gram matrix are along (1, 2), of length √5. Teacher 1, 0: (1, 0) and (0, 0).
    expected = ((1 / sqrt(5) - 1) ** 2 + (2 / sqrt(5)) ** 2 + (1 / sqrt(5)) ** 2 + (2 / sqrt(5)) ** 2) / 4
    loss = batch_similarity(tensor([1.0], [2.0]), tensor([1.0], [0.0]))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
