"""KD-SVD."""

from __future__ import annotations

from math import exp

import pytest
import torch
from torch import Tensor

from kdbench.methods.kdsvd import decompose, differentiable
from tests.methods.build import make_for, output_with_feature_maps, step_of, tensor
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    unsupported="it needs the same number of channels on both sides",
    refused=({"k": 0},),
    mutations={
        "kdsvd": Mutation(  # a kernel of half the width
            "kdbench.methods.kdsvd.similarity",
            lambda similarity: lambda vectors, earlier: similarity(vectors, earlier) ** 2,
        )
    },
)


def rank_one(*row: float) -> Tensor:
    """A map of one image whose three positions are multiples of the row, which is its only right singular vector."""
    return torch.stack([tensor(*row) * factor for factor in (1.0, -2.0, 5.0)], dim=1)[None, :, :, None]


def test_by_hand() -> None:
    # The teacher's vectors are (1, 0), then (0, 1); the student's (1, 0), then (0.6, 0.8) on the teacher's side.
    student = output_with_feature_maps(*(rank_one(1.0, 0.0), rank_one(1.0, 0.0), rank_one(-0.6, -0.8)))
    teacher = output_with_feature_maps(*(rank_one(1.0, 0.0), rank_one(-1.0, 0.0), rank_one(0.0, 1.0)))
    step = step_of(student, teacher)
    loss = make_for("kdsvd", {"kdsvd_weight": 5.0}, step).losses(step)["relation"]
    pairs = [  # (student's difference, teacher's difference) of the entries of the later and the earlier vector
        *((0.6 - 1, 0 - 1), (0.6 - 0, 0 - 0)),
        *((0.8 - 1, 1 - 1), (0.8 - 0, 1 - 0)),
    ]
    expected = sum((exp(-(mine**2) / 8) - exp(-(theirs**2) / 8)) ** 2 for mine, theirs in pairs)
    assert loss.item() == pytest.approx(5 * expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)])
def test_the_gradient_is_that_of_the_singular_vectors(shape: tuple[int, int]) -> None:
    # Against differences of the vectors themselves, on either side of random matrices.
    stream = torch.Generator().manual_seed(0)
    matrices, direction = torch.randn(2, 3, *shape, generator=stream, dtype=torch.float64)
    chosen, weights = torch.tensor([[0, 2]] * 3), torch.randn(3, shape[1], 2, generator=stream, dtype=torch.float64)
    given = matrices.clone().requires_grad_()
    (differentiable(given, decompose(given), chosen) * weights).sum().backward()
    assert given.grad is not None

    def projected(step: float) -> Tensor:
        found, reference = (decompose(m).vectors[:, :, [0, 2]] for m in (matrices + step * direction, matrices))
        same_side = (found * reference).sum(dim=1, keepdim=True).sign()
        total: Tensor = (found * same_side * weights).sum()
        return total

    numerical = (projected(1e-6) - projected(-1e-6)) / 2e-6
    torch.testing.assert_close((given.grad * direction).sum(), numerical, rtol=1e-6, atol=1e-8)
