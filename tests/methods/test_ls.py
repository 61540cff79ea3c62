"""Label smoothing."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.distill import Output
from tests.methods.build import batch_of, make_for, step_of, tensor
from tests.methods.by_hand import CLASSES, INDICES, LABELS, mean, softmax
from tests.methods.expectations import Expectations, Prediction

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses"


def smoothed(method: Any, output: Output) -> dict[str, float]:
    share, rows = method.hyper.smoothing, zip(output.logits.tolist(), LABELS[INDICES].tolist(), strict=True)
    loss = mean(
        -sum((share / CLASSES + (1 - share) * (c == label)) * log(q) for c, q in enumerate(softmax(row)))
        for row, label in rows
    )
    return {"ls": method.hyper.ls_weight * loss}


EXPECTED = Expectations(
    refused=({"smoothing": 1.0}, {"smoothing": -0.1}, {"convention": "none"}),
    effective={"convention": "tfkd"},
    predictions=(Prediction(smoothed, {"smoothing": 0.3, "ls_weight": 2.0}),),
)


def loss_of(logits: torch.Tensor, labels: torch.Tensor, **settings: Any) -> float:
    step = step_of(Output(logits, (), logits), batch=batch_of(len(labels), labels=labels))
    step = step_of(step.student, step.student, batch=step.batch)
    return float(make_for("ls", settings, step).losses(step)["ls"])


def test_by_hand() -> None:
    # Probabilities (1/2, 1/4, 1/4) with the label first, then second; 0.3 to smooth: (0.8, 0.1, 0.1) of torch,
    # (0.7, 0.15, 0.15) of TF-KD.
    logits, labels = tensor([log(2), 0.0, 0.0], [log(2), 0.0, 0.0]), torch.tensor([0, 1])
    half, quarter = log(2), log(4)
    expected = (0.8 * half + 0.2 * quarter + 0.1 * half + 0.9 * quarter) / 2
    assert loss_of(logits, labels, smoothing=0.3) == pytest.approx(expected, rel=1e-12)
    expected = (0.7 * half + 0.3 * quarter + 0.15 * half + 0.85 * quarter) / 2
    assert loss_of(logits, labels, smoothing=0.3, convention="tfkd") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("case", ["p1", "p2"])
def test_both_conventions_are_those_of_their_code(case: str) -> None:
    with np.load(GOLDEN / f"tfkd_reg_{case}.npz") as arrays:
        logits, labels = torch.from_numpy(arrays["in.y_s"]).double(), torch.from_numpy(arrays["in.labels"])
        stored = float(arrays["out.label_smoothing"])
    assert loss_of(logits, labels, convention="tfkd") == pytest.approx(stored, rel=1e-8)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1).item()
    assert loss_of(logits, labels) == pytest.approx(expected, rel=1e-12)
