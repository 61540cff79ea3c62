"""DIST."""

from __future__ import annotations

from math import log

import pytest

from kdbench.distill import Output
from tests.methods.build import make_for, step_of, tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

EXPECTED = Expectations(
    refused=({"temperature": 0.0},),
    predictions=(Prediction(zeros("inter", "intra")),),
    mutations={
        "td_dist": Mutation(  # rows in place of columns
            "kdbench.methods.dist.correlation",
            lambda original: lambda student, teacher, dim: original(student, teacher, 1),
        )
    },
)


def test_by_hand() -> None:
    # At T=2 the students soften to eighths (1, 2, 5) and (2, 2, 4), the teachers to (5, 2, 1) and (4, 2, 2). Minus the
    # mean 8/3, in thirds: rows (-5, -2, 7)·(7, -2, -5) = -66 of 78, and (-2, -2, 4)·(4, -2, -2) = -12 of 24. Columns
    # of two move against each other (first and last), or do not move (second: no correlation).
    def output(*rows: list[int]) -> Output:
        logits = tensor(*([2 * log(value) for value in row] for row in rows))
        return Output(logits, (), logits)

    step = step_of(output([1, 2, 5], [2, 2, 4]), output([5, 2, 1], [4, 2, 2]))
    method = make_for("dist", {"temperature": 2.0, "dist_weight": 3.0, "inter_weight": 5.0, "intra_weight": 7.0}, step)
    terms = method.losses(step)
    assert terms["inter"].item() == pytest.approx(3 * 5 * 4 * (1 + (66 / 78 + 12 / 24) / 2), rel=1e-9)
    assert terms["intra"].item() == pytest.approx(3 * 7 * 4 * (1 + 2 / 3), rel=1e-9)
