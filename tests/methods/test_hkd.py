"""Distillation by information flow."""

from __future__ import annotations

from dataclasses import replace
from math import log, sqrt

import pytest
import torch

from kdbench.distill import Output
from tests.methods.build import make_for, step_of, tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

ONE_KERNEL = Mutation("kdbench.methods.hkd.kernels", lambda original: lambda features: list(original(features))[:1])

EXPECTED = Expectations(
    refused=({"decay": 1.5}, {"decay": 0.0}, {"form": "linear"}),
    effective={"form": "constant", "decay": 0.9},
    predictions=(
        Prediction(zeros("weighted", "others"), {"hkd_weight": 1e4}),
        Prediction(zeros("weighted", "others"), {"form": "constant", "hkd_weight": 1e4}),
    ),
    mutations={"hkd": ONE_KERNEL, "hkd_rep": ONE_KERNEL},
)


def jeffreys(distance_s: float, cosine_s: float, distance_t: float, cosine_t: float) -> float:
    """Of two images: rows (1, k) / (1 + k) of both kernels, with k relative to the diagonal's."""
    total = 0.0
    near = 1 / (1 + sqrt(1e-6))  # on the diagonal
    kernels = (
        ((cosine_s + 1) / 2, (cosine_t + 1) / 2, 1.0),
        (1 / (1 + sqrt(distance_s**2 + 1e-6)), 1 / (1 + sqrt(distance_t**2 + 1e-6)), near),
    )
    for student, teacher, diagonal in kernels:
        for p_s, p_t in (
            (diagonal / (diagonal + student), diagonal / (diagonal + teacher)),
            (student / (diagonal + student), teacher / (diagonal + teacher)),
        ):
            total += 2 * (p_t - p_s) * log(p_t / p_s) / 4  # in two rows, over B²
    return total


def output(first: torch.Tensor, last: torch.Tensor, embedding: torch.Tensor) -> Output:
    return Output(embedding.new_zeros(2, 2), (first, first, last), embedding)


def test_by_hand() -> None:
    # A pair of stages with positions and embeddings, each of two images: (3, 0) and (0, 4) are orthogonal at distance
    # 5, (1, 0) and (2, 0) parallel at distance 1. The first stages agree.
    orthogonal, parallel = tensor([3.0, 0.0], [0.0, 4.0]), tensor([1.0, 0.0], [2.0, 0.0])
    same = torch.ones(2, 1, 1, 2, dtype=torch.float64)
    student = output(same, orthogonal[:, None, None], orthogonal)
    teacher = output(same, parallel[:, None, None], parallel)
    step, expected = step_of(student, teacher), jeffreys(5.0, 0.0, 1.0, 1.0)
    method = make_for("hkd", {"hkd_weight": 3.0, "init_weight": 10.0, "decay": 0.5}, step)
    for epoch, epochs, weight in ((1, 50, 10.0), (2, 50, 5.0), (3, 100, 5.0), (1, 240, 10.0)):
        terms = method.losses(replace(step, epoch=epoch, epochs=epochs))
        assert terms["weighted"].item() == pytest.approx(3 * weight * expected, rel=1e-5)  # 1e-6 beside the lengths
        assert terms["others"].item() == pytest.approx(3 * expected, rel=1e-5)
    port = make_for("hkd", {"form": "constant", "hkd_weight": 3.0}, step).losses(step)
    assert port["weighted"].item() == pytest.approx(0.0, abs=1e-12)  # the first stages
    assert port["others"].item() == pytest.approx(3 * expected, rel=1e-5)  # the last ones, without the embeddings


def test_opposite_features_are_finite() -> None:
    rows = torch.tensor([[6e4, 0.0], [-6e4, 0.0]], requires_grad=True)
    maps, ones = rows[:, None, None], torch.ones(2, 1, 1, 2)
    step = step_of(output(maps, maps, rows), output(ones, ones, torch.ones(2, 2)))
    terms = make_for("hkd", {}, step).losses(step)
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.isfinite() for term in terms.values())
    assert rows.grad is not None
    assert rows.grad.isfinite().all()
