"""VkD."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch.testing import assert_close

from kdbench.methods.vkd import Orthogonal, reflections, rotation
from tests.methods.build import make_for, output_with_embedding, step_of, tensor
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    mutations={
        "vkd": Mutation(  # the teacher is not normalized, but for a constant factor
            "kdbench.methods.vkd.F.layer_norm", lambda original: lambda features, shape: features * 0.9
        )
    },
)


def test_by_hand() -> None:
    # At first W is the first column of `base`, here (0, 1)ᵀ: the student's 3 and 4 become (0, 3) and (0, 4). The
    # teacher's (1, 3) and (5, 1) normalize to (-1, 1) and (1, -1), but for 1e-5 in the variances 1 and 4.
    student, teacher = tensor([3.0], [4.0]), tensor([1.0, 3.0], [5.0, 1.0])
    step = step_of(output_with_embedding(student), output_with_embedding(teacher))
    method = make_for("vkd", {"vkd_weight": 2.0}, step)
    method.projector.parametrizations.weight[0].base.copy_(tensor([0.0, 1.0], [1.0, 0.0]))
    first, second = 1 / sqrt(1 + 1e-5), 2 / sqrt(4 + 1e-5)
    errors = (first**2 / 2, 3 - first - 1 / 2, second**2 / 2, 4 + second - 1 / 2)  # smooth L1: a half square below 1
    assert method.losses(step)["vkd"].item() == pytest.approx(2 * sum(errors) / 4, rel=1e-12)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_stays_orthogonal_under_weight_decay(shape: tuple[int, int]) -> None:
    """In torch's own parametrization the matrix becomes zero in the first step; see the method's docstring."""
    torch.manual_seed(0)
    free = torch.randn(shape, dtype=torch.float64) * 0.999
    matrix = Orthogonal(max(shape)).double()(free)
    small = matrix.T @ matrix if shape[0] >= shape[1] else matrix @ matrix.T
    assert matrix.shape == shape
    assert_close(small, torch.eye(min(shape), dtype=torch.float64), rtol=0, atol=1e-6)  # `base` was float32


def test_reflections_and_rotation_agree_with_torch() -> None:
    torch.manual_seed(0)
    lower = torch.randn(6, 3, dtype=torch.float64).tril(-1)
    expected = torch.linalg.householder_product(lower, 2 / (1 + lower.square().sum(dim=0)))
    assert_close(reflections(lower), expected)
    square = 3 * torch.randn(5, 5, dtype=torch.float64).tril(-1)
    assert_close(rotation(square), torch.matrix_exp(square - square.T))
