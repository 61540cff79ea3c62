"""Comparative knowledge distillation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.distill import Output
from kdbench.methods.ckd import differences
from tests.methods.build import batch_of, make_for, step_of, tensor
from tests.methods.by_hand import CLASSES, INDICES, LABELS, mean
from tests.methods.expectations import Expectations, Mutation, Prediction


def only_labels(method: Any, output: Output) -> dict[str, float]:
    # Five images: two pairs, and one that is left over.
    rows, labels = output.logits.tolist(), LABELS[INDICES].tolist()
    errors = [
        (rows[i][c] - rows[i + 1][c] - ((labels[i] == c) - (labels[i + 1] == c))) ** 2
        for i in (0, 2)
        for c in range(CLASSES)
    ]
    return {"label": method.hyper.label_weight * mean(errors), "comparative": 0.0}


EXPECTED = Expectations(
    refused=({"positives": 0}, {"negatives": 0}),
    effective={"positives": 2, "negatives": 2},
    predictions=(Prediction(only_labels, {"label_weight": 3.0}),),
    mutations={
        "ckd": Mutation(  # a sum in place of a difference
            "kdbench.methods.ckd.differences",
            lambda original: (
                lambda rows, positives, negatives: (
                    original(rows, positives, negatives)
                    + 2 * rows.unflatten(0, (-1, positives + negatives))[:, positives:].mean(dim=1)
                )
            ),
        )
    },
)


def test_by_hand() -> None:
    # One group of two and one: the students' (1, 5) and (3, 5) have the mean (2, 5), minus (0, 4): (2, 1). Teachers:
    # (4, 0) - (1, 1) = (3, -1). Labels 0 and 1, then 1: (1/2, 1/2) - (0, 1) = (1/2, -1/2). The last image is left over.
    student = tensor([1.0, 5.0], [3.0, 5.0], [0.0, 4.0], [99.0, 9.0])
    teacher = tensor([4.0, 0.0], [4.0, 0.0], [1.0, 1.0], [-99.0, 9.0])
    batch = batch_of(4, labels=torch.tensor([0, 1, 1, 0]))
    step = step_of(Output(student, (), student), Output(teacher, (), teacher), batch=batch)
    method = make_for("ckd", {"label_weight": 3.0, "ckd_weight": 5.0, "positives": 2}, step)
    terms = method.losses(step)
    assert terms["label"].item() == pytest.approx(3 * ((2 - 1 / 2) ** 2 + (1 + 1 / 2) ** 2) / 2, rel=1e-12)
    assert terms["comparative"].item() == pytest.approx(5 * ((2 - 3) ** 2 + (1 + 1) ** 2) / 2, rel=1e-12)


def test_a_batch_without_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match="a group takes 3 images, and the batch has 2"):
        differences(torch.zeros(2, 5), 2, 1)
