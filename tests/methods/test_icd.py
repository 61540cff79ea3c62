"""Invariant consistency distillation."""

from __future__ import annotations

import math
from math import log
from typing import Any

import pytest
import torch

from kdbench.distill import Output
from kdbench.methods.icd import contrastive_and_invariance
from tests.methods.by_hand import dot, linear, mean, share_embedding, softmax, unit
from tests.methods.expectations import Expectations, Mutation, Prediction


def equal_embeddings(method: Any, output: Output) -> dict[str, float]:
    # logits_ij = c · y_i·y_j + b are symmetric: students over teachers are distributed as teachers over students, and
    # the divergence between them is 0. What is left to contrast is softmax_j(c · y_i·y_j), which b does not change.
    share_embedding(method)
    method.log_temperature_tau.fill_(1.5)
    return both_terms(method, output, math.exp(1.5))


def different_embeddings(method: Any, output: Output) -> dict[str, float]:
    # With the embeddings as they were drawn, nothing cancels; e³ is above the bound.
    method.log_temperature_tau.fill_(3.0)
    return both_terms(method, output, method.hyper.max_tau)


def both_terms(method: Any, output: Output, scale: float) -> dict[str, float]:
    method.bias_b.fill_(0.3)
    students, teachers = (
        unit(linear(layer, output.embedding.tolist())) for layer in (method.embed_student, method.embed_teacher)
    )
    p = [softmax([scale * dot(student, teacher) for teacher in teachers]) for student in students]
    q = [softmax([scale * dot(student, teacher) for student in students]) for teacher in teachers]
    contrastive = mean(-math.log(row[i]) for i, row in enumerate(p))
    invariance = mean(
        math.fsum(b * math.log(b / a) for a, b in zip(p_row, q_row, strict=True))
        for p_row, q_row in zip(p, q, strict=True)
    )
    weight = method.hyper.icd_weight
    return {"contrastive": weight * contrastive, "invariance": weight * method.hyper.alpha * invariance}


EXPECTED = Expectations(
    refused=({"feat_dim": 0}, {"max_tau": 0.0}, {"alpha": -0.1}),
    effective={"max_tau": 1.0},  # a bound acts only when it is reached
    predictions=(
        Prediction(equal_embeddings, {"icd_weight": 3.0, "feat_dim": 3}),
        Prediction(different_embeddings, {"icd_weight": 3.0, "feat_dim": 3, "alpha": 0.7, "max_tau": 5.0}),
    ),
    mutations={
        "icd": Mutation(
            "kdbench.methods.icd.contrastive_and_invariance",
            lambda loss: lambda student, teacher, scale, bias: loss(teacher, student, scale, bias),
        )
    },
)


def test_by_hand() -> None:
    # Two orthogonal pairs, scale log 3: logits are log 3 on the diagonal and 0 beside it, so p = q = (3/4, 1/4).
    eye = torch.eye(2, dtype=torch.float64)
    contrastive, invariance = contrastive_and_invariance(
        eye, eye, torch.tensor(log(3), dtype=torch.float64), torch.tensor(0.7)
    )
    assert contrastive.item() == pytest.approx(-log(3 / 4), rel=1e-12)
    assert invariance.item() == pytest.approx(0.0, abs=1e-12)

    # Teacher 2 equals teacher 1: rows of logits are (s, s) and (0, 0), columns (s, 0) twice, with s = log 3.
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    contrastive, invariance = contrastive_and_invariance(
        eye, teacher, torch.tensor(log(3), dtype=torch.float64), torch.tensor(0.0)
    )
    assert contrastive.item() == pytest.approx(log(2), rel=1e-12)
    # p = (1/2, 1/2) for both students, q = (3/4, 1/4) for both teachers: KL(q ‖ p), the same for both rows
    assert invariance.item() == pytest.approx(0.75 * log(1.5) + 0.25 * log(0.5), rel=1e-12)
