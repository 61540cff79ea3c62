"""Correlation congruence."""

from __future__ import annotations

from typing import Any

import pytest

from kdbench.distill import Output
from kdbench.methods.cc import neighboring_products
from tests.methods.build import tensor
from tests.methods.by_hand import dot, linear, mean
from tests.methods.expectations import Expectations, Mutation, Prediction


def doubled_embedding(method: Any, output: Output) -> dict[str, float]:
    # The teacher's embedding is the double of the student's y: delta_i = |y_i|.
    pairs = zip(method.embed_student.parameters(), method.embed_teacher.parameters(), strict=True)
    for student_parameter, teacher_parameter in pairs:
        teacher_parameter.copy_(2 * student_parameter)
    delta = [[abs(value) for value in row] for row in linear(method.embed_student, output.embedding.tolist())]
    return {"correlation": method.hyper.cc_weight * mean(map(dot, delta[:-1], delta[1:]))}


EXPECTED = Expectations(
    refused=({"feat_dim": 0},),
    predictions=(Prediction(doubled_embedding, {"cc_weight": 3.0, "feat_dim": 3}),),
    mutations={
        "cc": Mutation(
            "kdbench.methods.cc.neighboring_products",
            lambda loss: lambda student, teacher: loss(student, teacher) * (len(student) - 1) / len(student),
        )
    },
)


def test_by_hand() -> None:
    # Differences (1, 0), (2, 1), (3, 3): (1·2 + 0·1) and (2·3 + 1·3), averaged over two pairs of neighbors.
    loss = neighboring_products(tensor([1.0, 0.0], [-2.0, 1.0], [3.0, 0.0]), tensor([0.0, 0.0], [0.0, 0.0], [0.0, 3.0]))
    assert loss.item() == pytest.approx((2 + 9) / 2, rel=1e-12)
