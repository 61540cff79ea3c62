"""Information-theoretic representation distillation."""

from __future__ import annotations

from math import log2, sqrt

import pytest
import torch

from kdbench.methods.itrd import standardize
from tests.methods.build import make_for, output_with_embedding, step_of, tensor
from tests.methods.by_hand import set_identity
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    refused=({"alpha": 0.4},),
    mutations={
        "itrd_authors": Mutation(  # biased deviations
            "kdbench.methods.itrd.standardize",
            lambda original: lambda features: original(features) * sqrt(len(features) / (len(features) - 1)),
        )
    },
)


def test_by_hand() -> None:
    # Four images. The student's features are (1, 1, -1, -1) and (1, -1, 1, -1), with the unbiased variance 4/3; the
    # teacher's are the first times 2, and a constant: c = 3/4 and 0. Σ |c - 1|³ = 1/64 + 1.
    # Rows of the student have products 2, 0, 0, -2 at length √2: G_s = ±1 and 0. Those of the teacher, (±2, 2) at √8,
    # have cosines 1 and 0: G keeps the diagonal. Both traces are 4.
    student = tensor([1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0])
    teacher = tensor([2.0, 2.0], [2.0, 2.0], [-2.0, 2.0], [-2.0, 2.0])
    step = step_of(output_with_embedding(student), output_with_embedding(teacher))
    method = make_for("itrd", {"correlation_weight": 3.0, "mutual_weight": 5.0, "alpha": 1.5}, step)
    set_identity(method.embed.linear, 7.0)  # matters to neither term
    terms = method.losses(step)
    assert terms["correlation"].item() == pytest.approx(3 * log2(65 / 64), rel=1e-10)
    gram = 4 * 1 + 4 * 1  # squares on the diagonal, and of -1 between opposite rows
    joint = 4 * 1 + 4 * 0  # opposite rows are orthogonal in the teacher; its equal rows are orthogonal in the student
    assert terms["mutual"].item() == pytest.approx(5 * (gram - joint) / 16, rel=1e-12)


def test_constant_features_count_as_zero_with_finite_gradients() -> None:
    features = torch.ones(3, 2, requires_grad=True)
    standardize(features).sum().backward()
    assert standardize(features).abs().max() == 0
    assert features.grad is not None
    assert features.grad.abs().max() == 0
