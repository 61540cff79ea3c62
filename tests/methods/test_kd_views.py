"""KD on two views."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch

from kdbench.distill import Output, ViewStep
from kdbench.distill.objective import objective
from tests.methods.build import batch_of, make_for, step_of, tensor
from tests.methods.by_hand import INDICES, LABELS, mean, softmax
from tests.methods.expectations import Expectations, Prediction


def labels_alone(method: Any, output: Output) -> dict[str, float]:
    rows = zip(output.logits.tolist(), LABELS[INDICES].tolist(), strict=True)
    return {"ce_strong": method.hyper.ce_weight * mean(-log(softmax(row)[y]) for row, y in rows), "kd_strong": 0.0}


EXPECTED = Expectations(predictions=(Prediction(labels_alone),))


def test_by_hand() -> None:
    # On the base batch the student is (1/2, 1/2) and the teachers are (3/4, 1/4) and (1/2, 1/2), all at T=1; on the
    # strong view the student is (1/4, 3/4) and both teachers are (1/2, 1/2). The label is the first class.
    undecided, first, second = tensor([0.0, 0.0]), tensor([log(3), 0.0]), tensor([0.0, log(3)])
    unsure, sure, wrong = (Output(logits, (), logits) for logits in (undecided, first, second))
    batch = batch_of(1, labels=torch.tensor([0]))
    step = replace(
        step_of(unsure, sure, unsure, batch=batch), views={"strong": ViewStep(batch, wrong, (unsure, unsure))}
    )
    method = make_for("kd_views", {"ce_weight": 3.0, "kd_weight": 5.0, "kd_temperature": 1.0}, step)
    assert {name: term.item() for name, term in objective(method, step).items()} == pytest.approx(
        {
            "ce": 3 * log(2),
            "kd": 5 * (3 / 4 * log(3) - log(2)) / 2,
            "ce_strong": 3 * log(4),
            "kd_strong": 5 * (log(2) + log(2 / 3)) / 2,
        },
        rel=1e-12,
    )
