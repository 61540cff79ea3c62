"""Weighted soft labels."""

from __future__ import annotations

import math
from math import exp, log
from typing import Any

import pytest
import torch

from kdbench.distill import Output
from tests.methods.build import batch_of, make_for, step_of, tensor
from tests.methods.by_hand import INDICES, LABELS, mean, softmax
from tests.methods.expectations import Expectations, Mutation, Prediction


def equal_fit(method: Any, output: Output) -> dict[str, float]:
    # The ratio of both sides' cross-entropies c is c / (c + 1e-7), and the soft term an entropy.
    temperature, terms = method.hyper.temperature, []
    for row, label in zip(output.logits.tolist(), LABELS[INDICES].tolist(), strict=True):
        hard = -log(softmax(row)[label])
        entropy = -math.fsum(p * log(p) for p in softmax([value / temperature for value in row]))
        terms.append((1 - exp(-hard / (hard + 1e-7))) * entropy)
    return {"wsld": method.hyper.wsld_weight * temperature**2 * mean(terms)}


EXPECTED = Expectations(
    refused=({"temperature": 0.0},),
    predictions=(Prediction(equal_fit, {"wsld_weight": 3.0, "temperature": 1.5}),),
    mutations={
        "wsld": Mutation(  # the two sides swapped
            "kdbench.methods.wsld.image_weights",
            lambda original: lambda student, teacher, labels: original(teacher, student, labels),
        )
    },
)


def test_by_hand() -> None:
    # Teachers (1/2, 1/4, 1/4); students as 1 : 4 : 11, and the teacher's row again. With the first class as the target
    # the cross-entropies are log 16 and log 2, whose ratio is 4; then log 2 twice. At T=2 the teacher's odds are
    # √2 : 1 : 1, the first student's 1 : 2 : √11.
    teacher = tensor([log(2), 0.0, 0.0], [log(2), 0.0, 0.0])
    student = tensor([0.0, log(4), log(11)], [log(2), 0.0, 0.0])
    batch = batch_of(2, labels=torch.tensor([0, 0]))
    step = step_of(Output(student, (), student), Output(teacher, (), teacher), batch=batch)
    loss = make_for("wsld", {"wsld_weight": 5.0, "temperature": 2.0}, step).losses(step)["wsld"]
    root, total, first = 2**0.5, 2**0.5 + 2, 1 + 2 + 11**0.5
    soft = (root * log(first) + log(first / 2) + log(first / 11**0.5)) / total
    same = (root * log(total / root) + 2 * log(total)) / total
    expected = 5 * 4 * ((1 - exp(-4)) * soft + (1 - exp(-1)) * same) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)  # 1e-7 is added to log 2
