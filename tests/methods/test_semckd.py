"""SemCKD."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench.methods.semckd import similarities
from tests.methods.build import make_for, output_with_feature_maps, step_of, tensor
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    refused=({"batch": 0}, {"factor": 0}),
    effective={"batch": 12},  # at most the training images
    mutations={
        "semckd": Mutation(  # cosines in place of inner products
            "kdbench.methods.semckd.similarities",
            lambda inner: lambda feature_map, batch: F.normalize(inner(feature_map, batch)),
        )
    },
)


def test_by_hand() -> None:
    # Regressors of zeros: the errors are the mean squares of the teacher's maps, at the student's single position 2²
    # and (1 + 3)² / 2². Queries of zeros: both stages weigh half.
    student, first, second = tensor([[[1.0]]]), tensor([[[2.0]]]), tensor([[[1.0, 1.0], [3.0, 3.0]]])
    step = step_of(output_with_feature_maps(student, student), output_with_feature_maps(first, first, second))
    method = make_for("semckd", {"semckd_weight": 10.0}, step).eval()
    for module in (method.attention["query_0"].linear2, *(method.attention[f"regressor0{j}"] for j in (0, 1))):
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    loss = method.losses(step)["calibrated"]
    assert loss.item() == pytest.approx(10 * (2**2 / 2 + ((1 + 3) / 2) ** 2 / 2), rel=1e-12)


def test_rows_are_padded_with_zeros_or_cut() -> None:
    maps = tensor([[[1.0, 2.0]]], [[[3.0, 0.0]]])
    assert similarities(maps, 3).tolist() == [[5.0, 3.0, 0.0], [3.0, 9.0, 0.0]]
    assert torch.equal(similarities(maps, 1), tensor([5.0], [3.0]))
