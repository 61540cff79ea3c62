"""Variational information distillation."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdbench.distill import Output
from tests.methods.build import make_for, output_with_feature_maps, step_of, tensor
from tests.methods.by_hand import by_channel, mean, set_identity
from tests.methods.expectations import Expectations, Mutation, Prediction


def known_regressors(method: Any, output: Output) -> dict[str, float]:
    # Regressors I, I, 3/2 · I with ReLU between: mu = 3/2 · max(x, 0), and the error is x/2 where x > 0, -x elsewhere.
    # With v_k = log(1 + exp(a_k)) + eps, the variance of channel k: the mean of ½ (error² / v_k + log v_k).
    total = 0.0
    for predictor, x in zip(method.vid, output.feature_maps[1:], strict=True):
        for number, scale in ((0, 1.0), (2, 1.0), (4, 1.5)):
            set_identity(predictor.regressor[number], scale)
        predictor.log_scale.copy_(torch.linspace(-1.0, 2.0, x.shape[1]))
        variances = [math.log1p(math.exp(a)) + method.hyper.eps for a in predictor.log_scale.tolist()]
        total += mean(
            ((v / 2 if v > 0 else -v) ** 2 / variance + math.log(variance)) / 2
            for image in by_channel(x)
            for channel, variance in zip(image, variances, strict=True)
            for v in channel
        )
    return {"likelihood": method.hyper.vid_weight * total}


EXPECTED = Expectations(
    refused=({"eps": 0.0}, {"init_pred_var": 1e-6}),
    predictions=(Prediction(known_regressors, {"vid_weight": 3.0, "eps": 0.01}),),
    mutations={
        "vid": Mutation(
            "kdbench.methods.vid.F",
            lambda functional: SimpleNamespace(softplus=lambda scale: functional.softplus(scale) * 1.001),
        )
    },
)


def test_by_hand() -> None:
    # A student of zeros predicts 0, with the initial variance 5: ½ (t² / 5 + log 5), averaged over t = 1 and t = 3.
    stem, student, teacher = tensor([[[0.0]]]), tensor([[[0.0, 0.0]]]), tensor([[[1.0, 3.0]]])
    step = step_of(output_with_feature_maps(stem, student), output_with_feature_maps(stem, teacher))
    loss = make_for("vid", {}, step).losses(step)["likelihood"]
    assert loss.item() == pytest.approx(((1 + 9) / 2 / 5 + math.log(5)) / 2, rel=1e-6)
