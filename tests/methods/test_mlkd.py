"""Multi-level logit distillation."""

from __future__ import annotations

import math
from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch

from kdbench.distill import Output, ViewStep
from kdbench.methods.mlkd import share_up_to_median
from tests.methods.build import batch_of, make_for, step_of, tensor
from tests.methods.by_hand import INDICES, LABELS, mean, softmax
from tests.methods.expectations import Expectations, Mutation, Prediction


def only_labels(method: Any, output: Output) -> dict[str, float]:
    rows = zip(output.logits.tolist(), LABELS[INDICES].tolist(), strict=True)
    cross_entropy = mean(-log(softmax(row)[label]) for row, label in rows)
    return {"instance": 0.0, "class": 0.0, "batch": 0.0, "strong_ce": method.hyper.ce_weight * cross_entropy}


UNMASKED = Mutation("kdbench.methods.mlkd.share_up_to_median", lambda original: lambda values: values.new_ones(()))

EXPECTED = Expectations(
    refused=({"temperature": 0.0}, {"form": "kd"}),
    effective={"form": "lskd"},
    predictions=(Prediction(only_labels), Prediction(only_labels, {"form": "lskd"})),
    mutations={
        "mlkd": UNMASKED,
        "lskd_mlkd": Mutation(  # divisor C instead of C - 1
            "kdbench.methods.mlkd.standardize",
            lambda original: lambda logits: original(logits) * math.sqrt(logits.shape[1] / (logits.shape[1] - 1)),
        ),
    },
)


def test_by_hand() -> None:
    # Two classes, two images. Teacher: logits x = log 3 apart, then equal; student: equal. Masks: one of two images is
    # at most the mean of (3/4, 1/2), and one of two summed probabilities (5/4, 3/4) at most their mean.
    x = log(3)
    flat, teacher = tensor([0.0, 0.0], [0.0, 0.0]), tensor([x, 0.0], [0.0, 0.0])
    batch = batch_of(2)
    view = ViewStep(batch, Output(flat, (), flat), (Output(teacher, (), teacher),))
    step = step_of(Output(flat, (), flat), Output(teacher, (), teacher), batch=batch)
    terms = make_for("mlkd", {"mlkd_weight": 2.0, "ce_weight": 0.3}, step).losses(replace(step, views={"strong": view}))
    divergence, by_class, by_batch = {}, 0.0, 0.0
    for t in (4, 3, 5, 2, 6):
        p = 1 / (1 + math.exp(-x / t))  # of the first class, by the teacher on the first image
        divergence[t] = t**2 * (p * log(2 * p) + (1 - p) * log(2 * (1 - p))) / 2
        # QᵀQ = [[p² + 1/4, pq + 1/4], ...] and QQᵀ = [[p² + q², 1/2], ...] against entries of 1/2.
        q = 1 - p
        by_class += ((p * p - 1 / 4) ** 2 + 2 * (p * q - 1 / 4) ** 2 + (q * q - 1 / 4) ** 2) / 2
        by_batch += (p * p + q * q - 1 / 2) ** 2 / 2
    instance = sum(divergence.values()) / 2 + sum(divergence.values())  # the second: strong at 4, 3, 5, weak at 2, 6
    assert terms["instance"].item() == pytest.approx(2 * instance, rel=1e-12)
    assert terms["class"].item() == pytest.approx(2 * by_class / 2, rel=1e-12)
    assert terms["batch"].item() == pytest.approx(2 * by_batch / 2, rel=1e-12)
    assert terms["strong_ce"].item() == pytest.approx(0.3 * log(2), rel=1e-12)
    # A student that agrees on the strong view is left with the batch, at 2 and 6.
    other = ViewStep(batch, Output(flat, (), flat), (Output(flat, (), flat),))
    again = make_for("mlkd", {"mlkd_weight": 2.0}, step).losses(replace(step, views={"strong": other}))
    expected = sum(divergence.values()) / 2 + divergence[2] + divergence[6]
    assert again["instance"].item() == pytest.approx(2 * expected, rel=1e-12)


def test_share_up_to_median() -> None:
    assert share_up_to_median(torch.tensor([3.0, 1.0, 2.0])).item() == pytest.approx(2 / 3)
    assert share_up_to_median(torch.tensor([3.0, 1.0, 2.0, 4.0])).item() == 1 / 2
    assert share_up_to_median(torch.ones(4)).item() == 1.0
