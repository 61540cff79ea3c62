"""Contrastive representation distillation."""

from __future__ import annotations

import math
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.distill import Batch, Output, Shapes, registry
from kdbench.distill.memory_bank import NegativeSampler
from kdbench.methods.crd import EPS, nce
from kdbench.models import FeatureShapes
from tests.methods.build import make
from tests.methods.by_hand import IMAGES, NEGATIVES, linear, mean, memory_scores, share_embedding, unit
from tests.methods.expectations import Expectations, Mutation, Prediction


def equal_anchors(method: Any, output: Output) -> dict[str, float]:
    # Equal anchors, each against the other side's memory. K/N = 9/12; 1e-7 stands in the logarithms.
    share_embedding(method)
    anchors, noise = unit(linear(method.embed_student, output.embedding.tolist())), NEGATIVES / IMAGES

    def by_definition(memory: Tensor) -> float:
        return mean(
            -math.log(positive / (positive + noise + 1e-7))
            - math.fsum(math.log(noise / (p + noise + 1e-7)) for p in negatives)
            for positive, *negatives in memory_scores(anchors, memory.tolist(), method.hyper.nce_t)
        )

    weight, bank = method.hyper.crd_weight, method.bank
    return {
        "nce_student": weight * by_definition(bank.memory_teacher),
        "nce_teacher": weight * by_definition(bank.memory_student),
    }


EXPECTED = Expectations(
    refused=({"feat_dim": 0}, {"nce_k": 0}, {"nce_t": 0.0}, {"nce_m": 1.0}, {"nce_m": -0.1}),
    effective={"nce_k": 5},  # at most the images of other classes
    predictions=(
        Prediction(
            equal_anchors,
            {"crd_weight": 3.0, "feat_dim": 3, "nce_k": NEGATIVES, "nce_t": 0.4},
            frozenset({"nce_teacher"}),
        ),
    ),
    mutations={
        "crd": Mutation(
            "kdbench.methods.crd.nce", lambda loss: lambda probabilities, images: loss(probabilities, images + 1)
        )
    },
)


def test_by_hand() -> None:
    # One positive of 0.5, two negatives of 0.25 and 0.75, N = 4: noise K/N = 1/2.
    scores = torch.tensor([[0.5, 0.25, 0.75]], dtype=torch.float64)
    expected = -(log(0.5 / (1 + EPS)) + log(0.5 / (0.75 + EPS)) + log(0.5 / (1.25 + EPS)))
    assert nce(scores, 4).item() == pytest.approx(expected, rel=1e-12)
    assert nce(scores.repeat(3, 1), 4).item() == pytest.approx(expected, rel=1e-12)  # a mean over the batch


def test_negatives_are_distinct_images_of_other_classes_in_equal_shares() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    batch = Batch(torch.empty(2, 0), torch.tensor([0, 1]), torch.tensor([0, 3]))
    draw, generator = NegativeSampler(labels, 2), torch.Generator().manual_seed(0)
    counts = torch.zeros(2, 6)
    for _ in range(3000):
        rows = draw(batch, generator)
        assert rows.shape == (2, 2)
        assert (rows[:, 0] != rows[:, 1]).all()
        counts[0] += torch.bincount(rows[0], minlength=6)
        counts[1] += torch.bincount(rows[1], minlength=6)
    assert counts[0, :3].sum() == 0
    assert counts[1, 3:5].sum() == 0
    # 2 of 3 and 2 of 4 rows: each is drawn with probability 2/3 and 1/2; five standard deviations of a count
    for row, pool, share in ((0, [3, 4, 5], 2 / 3), (1, [0, 1, 2, 5], 1 / 2)):
        spread = 5 * (3000 * share * (1 - share)) ** 0.5
        assert (counts[row, pool] - 3000 * share).abs().max() < spread


def test_no_more_negatives_than_other_classes_have() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    method = make("crd", {}, student=3, teacher=4, labels=labels, dtype=torch.float32)
    assert method.extra_info() == {"negatives": 3}  # class 0 has three images, so three are of other classes


def test_one_class_has_no_negatives() -> None:
    shape = FeatureShapes((), False, 4)
    shapes = Shapes(shape, (shape,), 2, torch.zeros(5, dtype=torch.int64))
    reason = registry.distiller("crd").supports(registry.hyper_of("crd", {}), shapes)
    assert reason == "all training images are of one class: there are no negatives"
