"""Teacher-free KD by regularization."""

from __future__ import annotations

from math import exp, log
from typing import Any

import pytest
import torch

from kdbench.distill import Output
from tests.methods.build import batch_of, make_for, step_of, tensor
from tests.methods.by_hand import CLASSES, INDICES, LABELS, mean, softmax
from tests.methods.expectations import Expectations, Mutation, Prediction


def made_up_teacher(method: Any, output: Output) -> dict[str, float]:
    temperature = method.hyper.temperature
    label, other = exp(0.99 / temperature), exp(0.01 / (CLASSES - 1) / temperature)
    total = label + (CLASSES - 1) * other
    losses = []
    for row, y in zip(output.logits.tolist(), LABELS[INDICES].tolist(), strict=True):
        target = [(label if c == y else other) / total for c in range(CLASSES)]
        losses += [p * log(p / q) for p, q in zip(target, softmax(row), strict=True)]  # each image, each class
    return {"virtual": method.hyper.tfkd_reg_weight * method.hyper.multiplier * mean(losses)}


EXPECTED = Expectations(
    refused=({"temperature": 0.0}, {"multiplier": 0.0}),
    predictions=(Prediction(made_up_teacher, {"temperature": 0.5, "multiplier": 3.0}),),
    mutations={
        "tfkd_reg": Mutation(  # a mean over images, not over images and classes
            "kdbench.methods.tfkd_reg.kl_by_class",
            lambda original: lambda logits, log_p: original(logits, log_p) * logits.shape[1],
        )
    },
)


def test_by_hand() -> None:
    # 0.99 and 0.01 differ by 0.98; with T = 0.98 / log 3 they soften to (3/4, 1/4), with the label last. The student
    # is undecided at T = 1.
    student = tensor([0.0, 0.0])
    step = step_of(
        Output(student, (), student), Output(student, (), student), batch=batch_of(1, labels=torch.tensor([1]))
    )
    settings = {"tfkd_reg_weight": 0.5, "multiplier": 3.0, "temperature": 0.98 / log(3)}
    term = make_for("tfkd_reg", settings, step).losses(step)["virtual"]
    assert term.item() == pytest.approx(0.5 * 3 * (3 / 4 * log(3 / 2) + 1 / 4 * log(1 / 2)) / 2, rel=1e-12)
