"""FitNets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.distill import Output
from tests.methods.build import make_for, output_with_feature_maps, step_of, tensor
from tests.methods.by_hand import batch_norm, entries, mean, set_identity
from tests.methods.expectations import Expectations, Mutation, Prediction


def bn_that_undoes_itself(method: Any, output: Output) -> dict[str, float]:
    # Batch norm gives back its input x when its weight is √(variance + 1e-5) and its bias the mean of the batch. Then
    # ReLU(x) - x is 0 where x > 0 and -x elsewhere: the mean of min(x, 0)².
    set_identity(method.regressor.conv)
    for number, channel in enumerate(output.feature_maps[1].unbind(1)):
        _, center, deviation = batch_norm(entries(channel))
        method.regressor.bn.weight[number], method.regressor.bn.bias[number] = deviation, center
    return {"hint": method.hyper.fitnet_weight * mean(min(v, 0.0) ** 2 for v in entries(output.feature_maps[1]))}


def fresh_bn(method: Any, output: Output) -> dict[str, float]:
    # With a fresh batch norm the error is ReLU((x - mean) / √(variance + 1e-5)) - x.
    set_identity(method.regressor.conv)
    channels = [entries(channel) for channel in output.feature_maps[1].unbind(1)]
    errors = [max(z, 0.0) - v for channel in channels for z, v in zip(batch_norm(channel)[0], channel, strict=True)]
    return {"hint": method.hyper.fitnet_weight * mean(error**2 for error in errors)}


SETTINGS = {"fitnet_weight": 7.0, "hint_layer": 1}
EXPECTED = Expectations(
    refused=({"hint_layer": -1},),
    effective={"hint_layer": 1},
    predictions=(Prediction(bn_that_undoes_itself, SETTINGS), Prediction(fresh_bn, SETTINGS)),
    mutations={
        "fitnet": Mutation(
            "kdbench.methods.fitnet.ConvRegressor",
            lambda regressor: lambda student, teacher, relu: regressor(student, teacher, relu=not relu),
        )
    },
)


def test_by_hand() -> None:
    # A channel of 1 and -1 has mean 0 and variance 1: batch norm and ReLU leave (1/√1.00001, 0); the hint is (0, 0).
    stem, student, teacher = tensor([[[1.0]]], [[[1.0]]]), tensor([[[1.0]]], [[[-1.0]]]), tensor([[[0.0]]], [[[0.0]]])
    step = step_of(output_with_feature_maps(stem, student), output_with_feature_maps(stem, teacher))
    method = make_for("fitnet", {"hint_layer": 1}, step)
    with torch.no_grad():
        set_identity(method.regressor.conv)
    assert method.losses(step)["hint"].item() == pytest.approx(100 / 1.00001 / 2, rel=1e-12)
