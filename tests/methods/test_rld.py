"""Refined logit distillation."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log
from typing import Any

import pytest
import torch

from kdbench.distill import Output
from tests.methods.build import batch_of, make_for, step_of, tensor
from tests.methods.by_hand import INDICES, LABELS, mean, scaled, softmax
from tests.methods.expectations import Expectations, Mutation, Prediction


def binary_kl(p: float, q: float) -> float:
    return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))


def confidence_of_the_label(method: Any, output: Output) -> dict[str, float]:
    # The teacher's highest probability against the student's of the label; in epoch 1 of 20.
    temperature = method.hyper.scd_temperature
    rows = [softmax(row) for row in scaled(output.logits.tolist(), 1 / temperature)]
    labels = LABELS[INDICES].tolist()
    confidence = mean(binary_kl(max(row), row[label]) for row, label in zip(rows, labels, strict=True))
    return {"scd": method.hyper.scd_weight * temperature**2 * confidence / 20, "mcd": 0.0}


EXPECTED = Expectations(
    refused=({"temperature": 0.0}, {"scd_temperature": 0.0}, {"warmup_epochs": 0}),
    predictions=(Prediction(confidence_of_the_label, {"scd_weight": 3.0, "scd_temperature": 2.0}),),
    mutations={
        "rld": Mutation(  # the student's confidence in the teacher's class, not in the label
            "kdbench.methods.rld.sample_confidence",
            lambda original: (
                lambda student, teacher, labels, temperature: original(
                    student, teacher, teacher.argmax(dim=1), temperature
                )
            ),
        )
    },
)


def test_by_hand() -> None:
    # At T=2 the first teacher softens to (1/2, 1/4, 1/4) and its student to (1/4, 1/2, 1/4), with the label first:
    # (1/2, 1/2) against (1/4, 3/4), and below the label (1/2, 1/2) against (2/3, 1/3). The second teacher ranks its
    # label last, so that nothing is below it; its highest probability meets the student's, equal to the lowest one.
    teacher, student = tensor([2 * log(2), 0.0, 0.0], [0.0, 2.0, 4.0]), tensor([0.0, 2 * log(2), 0.0], [0.0, 2.0, 4.0])
    step = step_of(
        Output(student, (), student), Output(teacher, (), teacher), batch=batch_of(2, labels=torch.tensor([0, 0]))
    )
    settings = {"scd_weight": 3.0, "mcd_weight": 5.0, "scd_temperature": 2.0, "temperature": 2.0}
    method = make_for("rld", settings, step)
    total = 1 + exp(1) + exp(2)
    confidence = binary_kl(1 / 2, 1 / 4) + binary_kl(exp(2) / total, 1 / total)
    correlation = (log(3 / 4) + log(3 / 2)) / 2
    for epoch, factor in ((5, 1 / 4), (20, 1.0), (21, 1.0)):
        terms = method.losses(replace(step, epoch=epoch))
        assert terms["scd"].item() == pytest.approx(factor * 3 * 4 * confidence / 2, rel=1e-12)  # weight · T² / B
        assert terms["mcd"].item() == pytest.approx(factor * 5 * 4 * correlation / 2, rel=1e-12)
