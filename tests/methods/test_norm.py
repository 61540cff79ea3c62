"""N-to-one representation matching."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from kdbench.distill import Context, Output, registry
from kdbench.methods.norm import factor
from kdbench.models import FeatureShapes, build, classifier_of, features
from tests.methods.build import output_with_embedding, step_of, tensor
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    refused=({"expansion": 0}, {"logit_scale": 0.0}),
    mutations={
        "norm": Mutation(  # a mean over the N copies in place of their sum
            "kdbench.methods.norm.n_to_one", lambda loss: lambda expanded, teacher, n: loss(expanded, teacher, n) / n
        )
    },
)


def distiller(student: FeatureShapes, teacher: FeatureShapes, **settings: float) -> Any:
    context = Context(student, (teacher,), 2, torch.arange(2), generator=torch.Generator())
    return registry.distiller("norm")(registry.hyper_of("norm", settings), context).double()


def output(last_map: Tensor, classifier: Tensor) -> Output:
    embedding = last_map.mean(dim=(2, 3))
    return replace(output_with_embedding(embedding), last_map=last_map, classifier=(classifier, None))


def test_by_hand() -> None:
    # In evaluation mode, with fresh statistics, each batch norm divides by √(1 + 1e-5) = 1/d. The student's position 3
    # expands to d · (3, 6), twice one channel; the teacher's 2x2 map has the maximum 5. (1, 1) leads back: d² · 9.
    student = output(tensor([[[3.0]]]), tensor([1.0], [-1.0]))
    teacher = output(tensor([[[1.0, 5.0], [2.0, 0.0]]]), tensor([1.0], [-1.0]))
    shapes = FeatureShapes((), False, 1, last_map=(1, 1, 1)), FeatureShapes((), False, 1, last_map=(1, 2, 2))
    method = distiller(*shapes, norm_weight=3.0, expansion=2, logit_scale=4.0).eval()
    method.transform[0].weight.data = tensor([[[1.0]]], [[[2.0]]])
    nn.init.ones_(method.inverse[0].weight)
    d = (1 + 1e-5) ** -0.5
    loss = method.losses(replace(step_of(student, teacher), epoch=16))["norm"]
    assert loss.item() == pytest.approx(3 * 0.5 * 2 * ((3 * d - 5) ** 2 + (6 * d - 5) ** 2) / 2, rel=1e-12)
    z = 3 + 9 * d**2  # logits z and -z: mean 0, variance z²
    assert method.predict(student).tolist() == [pytest.approx([4 * z / (z**2 + 1e-7) ** 0.5, -4.0], rel=1e-8)]


def test_the_weight_rises_and_falls() -> None:
    epochs = (1, 9.9, 10, 19.9, 20, 179, 180, 209, 210, 240)
    assert [factor(epoch) for epoch in epochs] == [0.1, 0.1, 0.5, 0.5, 1.0, 1.0, 0.5, 0.5, 0.1, 0.1]


def test_batch_norm_sees_a_batch_once() -> None:
    shapes = FeatureShapes((), False, 2, last_map=(2, 2, 2))
    method, maps = distiller(shapes, shapes), torch.randn(3, 2, 2, 2).double()
    step = step_of(output(maps, torch.eye(2).double()), output(maps, torch.eye(2).double()))
    method.predict(step.student)
    method.losses(step)
    method.after_backward(step)
    assert [int(part[1].num_batches_tracked) for part in (method.transform, method.inverse)] == [1, 1]


def test_both_convolutions_are_deployed() -> None:
    student, teacher = features("wrn_16_1", 10, 8), features("resnet20", 10, 8)
    method = distiller(student, teacher).eval()
    network, images = build("wrn_16_1", 10, 8).double().eval(), torch.randn(2, 3, 8, 8).double()
    given = network(images)
    known = replace(given, classifier=classifier_of(network))
    assert_close(method.deploy(network)(images), method.predict(known))
    assert not torch.allclose(method.predict(known), given.logits)


def test_convolutions_begin_as_the_authors_do() -> None:
    """Kaiming's normal deviation of the outputs' number: √(2 / 512), where torch's default has √(1 / (3 · 4))."""
    student, teacher = (
        FeatureShapes((), False, 4, last_map=(4, 2, 2)),
        FeatureShapes((), False, 64, last_map=(64, 2, 2)),
    )
    torch.manual_seed(0)
    method = distiller(student, teacher)
    assert method.transform[0].weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.05)
