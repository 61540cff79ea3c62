"""Normalized knowledge distillation."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch

from kdbench.distill import Output
from tests.methods.build import batch_of, make_for, step_of, tensor
from tests.methods.by_hand import INDICES, LABELS, cross_entropy, mean, scaled, softmax
from tests.methods.expectations import Expectations, Mutation, Prediction


def entropies(method: Any, output: Output) -> dict[str, float]:
    # Cross-entropies of a student with itself: of the true class alone, and of the others at temperature T.
    hyper, rows, labels = method.hyper, output.logits.tolist(), LABELS[INDICES].tolist()
    true = [softmax(row)[label] for row, label in zip(rows, labels, strict=True)]
    others = [[z for c, z in enumerate(row) if c != label] for row, label in zip(rows, labels, strict=True)]
    others = scaled(others, 1 / hyper.temperature)
    return {
        "target": hyper.target_weight * mean(-p * log(p) for p in true),
        "non_target": hyper.non_target_weight * hyper.temperature**2 * cross_entropy(others, others),
    }


EXPECTED = Expectations(
    refused=({"temperature": 0.0},),
    predictions=(Prediction(entropies, {"target_weight": 3.0, "non_target_weight": 5.0, "temperature": 2.0}),),
    mutations={
        "nkd": Mutation("kdbench.methods.nkd.without_target", lambda original: lambda logits, labels: logits)
    },  # the target stays among the others
)


def test_by_hand() -> None:
    # The teachers' probabilities are as 3 : 1 : 4 with the target first, the students' as 1 : 2 : 5; in the second row
    # the target is last. At T=2, with logits twice the logarithms, the others are as 1 : 4 and as 2 : 5.
    def output(a: float, b: float, c: float) -> Output:
        logits = tensor([2 * log(a), 2 * log(b), 2 * log(c)], [2 * log(b), 2 * log(c), 2 * log(a)])
        return Output(logits, (), logits)

    step = step_of(output(1, 2, 5), output(3, 1, 4), batch=batch_of(2, labels=torch.tensor([0, 2])))
    settings = {"temperature": 2.0, "target_weight": 3.0, "non_target_weight": 5.0}
    terms = make_for("nkd", settings, step).losses(step)
    # at temperature 1 as 9 : 1 : 16 and as 1 : 4 : 25
    assert terms["target"].item() == pytest.approx(3 * 9 / 26 * log(30), rel=1e-12)
    assert terms["non_target"].item() == pytest.approx(5 * 4 * (1 / 5 * log(7 / 2) + 4 / 5 * log(7 / 5)), rel=1e-12)
