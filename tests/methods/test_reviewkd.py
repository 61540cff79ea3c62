"""Knowledge review."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.methods.build import make_for, output_with_feature_maps, step_of, tensor
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    refused=({"warmup_epochs": 0},),
    mutations={"reviewkd": Mutation("kdbench.methods.reviewkd.pyramid_distance", lambda distance: F.mse_loss)},
)


def test_by_hand() -> None:
    # Convolutions of zeros: all that is compared is 0. The teacher's stage has 4 in one of four positions: its mean
    # square is 4, that of its mean over positions 1, which counts half; the embeddings are 0. Epoch 5 of 20: a quarter.
    image = [[[4.0, 0.0], [0.0, 0.0]]]
    teacher, student = output_with_feature_maps(tensor(image, image), tensor(image, image)), tensor(image, image)
    step = replace(step_of(output_with_feature_maps(student, student), teacher), epoch=5)
    method = make_for("reviewkd", {"reviewkd_weight": 8.0}, step)
    for fusion in method.abfs:
        torch.nn.init.zeros_(fusion.conv2[0].weight)
    expected = (4 + 1 / 2) / (1 + 1 / 2)
    assert method.losses(step)["review"].item() == pytest.approx(8 / 4 * expected, rel=1e-12)
    assert method.losses(replace(step, epoch=100))["review"].item() == pytest.approx(8 * expected, rel=1e-12)
