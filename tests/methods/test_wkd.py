"""Wasserstein knowledge distillation."""

from __future__ import annotations

import math
from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from kdbench.distill import Context, Output, cell_statistics, class_distances, registry
from kdbench.methods.wkd import WKDHyper, statistics_loss, transport_cost
from kdbench.models import FeatureShapes
from tests.methods.build import batch_of, step_of, tensor
from tests.methods.expectations import Expectations, Mutation

WHY = "form=logits does not have it"

EXPECTED = Expectations(
    refused=(
        *({name: 0.0} for name in ("temperature", "regularization", "sharpen", "decay_epoch")),
        {"iterations": 0},
        {"grid": 0},
        {"form": "kd"},
    ),
    effective={"form": "both", "decay_epoch": 100.0},  # of 240, where the tests see epochs 1, 120 and 240
    without_effect=dict.fromkeys(("feature_weight", "mean_weight", "grid"), WHY),
    mutations={
        "wkd_logit": Mutation(  # the label's class takes part
            "kdbench.methods.wkd.transport_cost",
            lambda loss: (
                lambda student, teacher, labels, *rest: loss(student, teacher, torch.full_like(labels, -1), *rest)
            ),
        ),
        "wkd_feat": Mutation(  # means and deviations change places
            "kdbench.methods.wkd.statistics_loss", lambda loss: lambda *arguments: loss(*arguments)[::-1]
        ),
    },
)


def context_of(embeddings: Tensor, labels: Tensor, classes: int) -> Context:
    shape = FeatureShapes((), False, 1)
    return Context(shape, (shape,), classes, labels, generator=torch.Generator(), teacher_embeddings=embeddings)


def test_transport_by_hand() -> None:
    # Beside the label's class two are left, with shares (1, 0) of the student and (0, 1) of the teacher but for e^-50:
    # all must move from the first to the second, at the cost 0.3 plus 1e-8. An equal teacher moves nothing.
    student, other = tensor([50.0, 0.0, 9.0]), tensor([0.0, 50.0, 9.0])
    cost = tensor([0.0, 0.3, 0.9], [0.3, 0.0, 0.9], [0.9, 0.9, 0.0])
    labels = torch.tensor([2])
    for teacher, expected in ((other, 0.3), (student, 0.0)):
        moved = transport_cost(student, teacher, labels, cost, WKDHyper(temperature=1.0))
        # Each iteration misses a share of about 1e-8 / kernel, 4e-6 for the cost 0.3.
        assert moved.item() == pytest.approx(expected, abs=1e-5)


def test_class_distances_by_hand() -> None:
    # Centered embeddings of one dimension: (1, -1, 0), (2, -2, 0) and (1, 0, -1). Gram matrices vvᵀ and wwᵀ have the
    # cosine (v·w)² / (‖v‖² ‖w‖²): 1 between the first two, and 1/4 between them and the third. Images are interleaved.
    embeddings = tensor([5.0], [8.0], [1.0], [3.0], [4.0], [0.0], [4.0], [6.0], [-1.0])
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    expected = tensor([0.0, 0.0, 3 / 4], [0.0, 0.0, 3 / 4], [3 / 4, 3 / 4, 0.0])
    assert_close(class_distances(context_of(embeddings, labels, classes=3)), expected)
    # Without its third image the last class repeats its first: (1, 0, 1), centered (1, -2, 1) / 3. Products with
    # (1, -1, 0) are 3/3, lengths √2 and √6 / 3: a cosine of (1 / √(4/3))² = 3/4. An empty class is at distance 1.
    expected = tensor([0.0, 0.0, 1 / 4, 1.0], [0.0, 0.0, 1 / 4, 1.0], [1 / 4, 1 / 4, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0])
    assert_close(class_distances(context_of(embeddings[:8], labels[:8], classes=4)), expected)


def test_statistics_by_hand() -> None:
    # Cells of a 3x3 map at grid 2 overlap in the middle, as in adaptive pooling. Against zeros, the map with 1 in its
    # center has in each cell of four the mean 1/4 and the unbiased variance (3 · 1/16 + 9/16) / 3 = 1/4.
    center = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    center[:, :, 1, 1] = 1.0
    assert all(mean.flatten().tolist() == [1 / 4] * 2 for mean in cell_statistics(center, 2)[0])
    mean, deviation = statistics_loss(center, torch.zeros_like(center), 2)
    assert mean.item() == pytest.approx(1 / 16, rel=1e-12)  # 4 cells, 2 images, over 2² · 2
    assert deviation.item() == pytest.approx((math.sqrt(1 / 4 + 1e-5) - math.sqrt(1e-5)) ** 2, rel=1e-12)


def test_target_and_decay_by_hand() -> None:
    # At temperature 1 the teacher gives the label the probability 1/2, the student 1/3.
    student, teacher = tensor([0.0, 0.0, 0.0]), tensor([log(2), 0.0, 0.0])
    step = step_of(Output(student, (), student), Output(teacher, (), teacher), batch=batch_of(1))
    embeddings = tensor([1.0], [1.0], [1.0], [2.0], [2.0], [2.0])
    context = context_of(embeddings, torch.arange(6) % 3, classes=3)
    method: Any = registry.distiller("wkd")(registry.hyper_of("wkd", {}), context).double()
    assert method.losses(step)["target"].item() == pytest.approx(1 / 2 * log(3), rel=1e-12)
    method.cost.copy_(0.3 * (1 - torch.eye(3)))
    far = replace(step, teachers=(Output(tensor([0.0, 400.0, 0.0]), (), student),))
    full = [method.losses(replace(far, epoch=epoch))["wasserstein"].item() for epoch in (1, 150)]
    assert full == pytest.approx([full[0]] * 2)
    assert full[0] == pytest.approx(600 * 0.3 / 2, rel=1e-4)  # half of what the student gives to others moves
    shares = {195: 1 / 2, 240: 0.0, 165: (1 + math.cos(math.pi / 6)) / 2}
    for epoch, share in shares.items():
        decayed = method.losses(replace(far, epoch=epoch))["wasserstein"].item()
        assert decayed == pytest.approx(share * full[0], rel=1e-6, abs=1e-9)
