"""Universal self-KD."""

from __future__ import annotations

from math import log

import pytest
import torch
import torch.nn.functional as F

from kdbench.distill import Output, Shapes, registry
from kdbench.models import FeatureShapes
from tests.methods.build import batch_of, make_for, step_of, tensor
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    mutations={
        "uskd": Mutation(  # all images weigh the same
            "kdbench.methods.uskd.target_loss", lambda original: lambda logits, labels: F.cross_entropy(logits, labels)
        )
    },
)


def test_by_hand() -> None:
    # Probabilities (1/2, 1/3, 1/6) twice, with the label first, then last. The weak classifier is undecided, so the
    # classes rank as the logits have them: Zipf's 1, 1/2, 1/3 without the label's are (3/5, 2/5), then (2/3, 1/3).
    logits = tensor([log(3), log(2), 0.0], [log(3), log(2), 0.0])
    maps = tuple(torch.ones(2, channels, 2, 2, dtype=torch.float64) for channels in (2, 3, 4))
    student = Output(logits, maps, logits)
    step = step_of(student, student, batch=batch_of(2, labels=torch.tensor([0, 2])))
    method = make_for("uskd", {"target_weight": 3.0, "non_target_weight": 5.0, "weak_weight": 7.0}, step)
    assert method.fc.in_features == 3  # the last stage but one
    with torch.no_grad():
        method.fc.weight.zero_()
        method.fc.bias.zero_()
    terms = method.losses(step)
    squares = (1 / 4, 1 / 36)  # of the label's probability; an image weighs by how far its own is above the mean
    weights = [1 + square - sum(squares) / 2 for square in squares]
    target = (weights[0] * log(2) + weights[1] * log(6)) / 2
    first = -3 / 5 * log(2 / 3) - 2 / 5 * log(1 / 3)  # softmax over the other classes: (1/3, 1/6) in shares
    second = -2 / 3 * log(3 / 5) - 1 / 3 * log(2 / 5)
    assert terms["target"].item() == pytest.approx(3 * target, rel=1e-12)
    assert terms["non_target"].item() == pytest.approx(5 * (first + second) / 2, rel=1e-12)
    assert terms["weak"].item() == pytest.approx(7 * log(3), rel=1e-12)


def test_a_network_without_stages_has_no_weak_classifier() -> None:
    bare = FeatureShapes((), False, 4)
    reason = registry.incompatibility("uskd", {}, Shapes(bare, (bare,), 3, torch.arange(3)))
    assert reason == "the student has no stage maps"
