"""Cross-view consistency."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch

from kdbench.distill import Output, ViewStep
from tests.methods.build import batch_of, make_for, step_of, tensor
from tests.methods.by_hand import INDICES, LABELS, mean, softmax
from tests.methods.expectations import Expectations, Mutation, Prediction


def only_labels(method: Any, output: Output) -> dict[str, float]:
    rows = zip(output.logits.tolist(), LABELS[INDICES].tolist(), strict=True)
    cross_entropy = mean(-log(softmax(row)[label]) for row, label in rows)
    return {"within": 0.0, "cross": 0.0, "strong_ce": method.hyper.ce_weight * cross_entropy}


EXPECTED = Expectations(
    refused=(
        *({name: value} for name in ("weak_threshold", "strong_threshold") for value in (-0.1, 1.1)),
        {"temperature": 0.0},
    ),
    effective={"weak_threshold": 0.2, "strong_threshold": 0.95},  # of ten classes with random logits
    without_effect={"within_weight": "no random teacher is as confident as weak_threshold asks"},
    predictions=(Prediction(only_labels, {"weak_threshold": 0.2}),),
    mutations={
        "crld": Mutation(  # without the masks
            "kdbench.methods.crld.confident",
            lambda original: lambda teacher, threshold: torch.ones_like(original(teacher, threshold)),
        )
    },
)


def test_by_hand() -> None:
    # At T=2, logits 2 log 3 apart soften to (3/4, 1/4); at T=1 they are (9/10, 1/10). The student is undecided, so that
    # KL = 3/4 log 3 - log 2 from it to such a teacher, and 0 to an undecided one. The first image is clear on the batch
    # only, the second on the strong view only: confidences (0.9, 0.5) and (0.5, 0.9).
    flat, clear_first = tensor([0.0, 0.0], [0.0, 0.0]), tensor([2 * log(3), 0.0], [0.0, 0.0])
    clear_second, batch = clear_first.flip(0), batch_of(2)
    view = ViewStep(batch, Output(flat, (), flat), (Output(clear_second, (), clear_second),))
    step = step_of(Output(flat, (), flat), Output(clear_first, (), clear_first), batch=batch)
    step, divergence = replace(step, views={"strong": view}), 4 * (3 / 4 * log(3) - log(2))

    def terms(weak: float, strong: float) -> list[float]:
        settings = {"temperature": 2.0, "within_weight": 3.0, "cross_weight": 5.0, "ce_weight": 0.5}
        settings |= {"weak_threshold": weak, "strong_threshold": strong}
        return [term.item() for term in make_for("crld", settings, step).losses(step).values()]

    # Two divergences within and two across, over two images: all of them count, then those of a confident image.
    labels = 0.5 * log(2)
    assert terms(0.4, 0.4) == pytest.approx([3 * 2 * divergence / 2, 5 * 2 * divergence / 2, labels], rel=1e-12)
    assert terms(0.8, 0.8) == pytest.approx([3 * divergence / 2, 5 * divergence / 2, labels], rel=1e-12)
    assert terms(0.8, 0.95) == pytest.approx([3 * divergence / 2, 0.0, labels], rel=1e-12)
