"""KD++."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch

from kdbench.distill import Context, Output, registry
from kdbench.models import FeatureShapes
from tests.methods.build import batch_of, step_of, tensor
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    refused=({"temperature": 0.0}, {"warmup_epochs": 0}),
    effective={"warmup_epochs": 200},  # of the epochs 1, 120 and 240
    mutations={
        "kdpp": Mutation(  # the teacher's norm in place of the larger one
            "kdbench.methods.kdpp.torch.where", lambda original: lambda condition, student, teacher: teacher
        )
    },
)


def test_by_hand() -> None:
    # Class means (0, 2) and (3, 4) point to (0, 1) and (3/5, 4/5). The first student, (3, 4) of length 5, is of class 0
    # and its teacher shorter: 1 - 4/5. The second, (1, 0) of class 1, has a teacher of length 2: 1 - (3/5) / 2.
    # At T=2 the first teacher softens to (3/4, 1/4) and the students to (1/2, 1/2); half of the warm-up is over after
    # ten epochs, in the eleventh.
    student, teacher = tensor([3.0, 4.0], [1.0, 0.0]), tensor([0.0, 1.0], [2.0, 0.0])
    logits, batch = tensor([2 * log(3), 0.0], [0.0, 0.0]), batch_of(2, labels=torch.tensor([0, 1]))
    step = step_of(Output(torch.zeros_like(logits), (), student), Output(logits, (), teacher), batch=batch)
    shape, means = FeatureShapes((), False, 2), tensor([0.0, 2.0], [3.0, 4.0])
    context = Context(shape, (shape,), 2, batch.labels, generator=torch.Generator(), teacher_class_means=means)
    hyper = registry.hyper_of("kdpp", {"kdpp_weight": 3.0, "kl_weight": 5.0, "temperature": 2.0})
    method: Any = registry.distiller("kdpp")(hyper, context)
    divergence = 4 * (3 / 4 * log(3) - log(2)) / 2
    for epoch, epochs, share in ((1, 240, 0.0), (11, 240, 1 / 2), (21, 240, 1.0), (240, 240, 1.0), (2, 60, 1 / 5)):
        terms = method.losses(replace(step, epoch=epoch, epochs=epochs))
        assert terms["nd"].item() == pytest.approx(3 * (1 / 5 + 7 / 10) / 2, rel=1e-12)
        assert terms["kl"].item() == pytest.approx(5 * share * divergence, rel=1e-12)


def test_dropout_draws_from_the_methods_generator() -> None:
    shapes, means = (FeatureShapes((), False, 64), FeatureShapes((), False, 3)), torch.ones(2, 3)
    generator = torch.Generator().manual_seed(0)
    context = Context(shapes[0], (shapes[1],), 2, torch.arange(2), generator=generator, teacher_class_means=means)
    method: Any = registry.distiller("kdpp")(registry.hyper_of("kdpp", {}), context)
    embedding = torch.randn(4, 64)
    first = method.embed(embedding, generator)
    assert not first.equal(method.embed(embedding, generator))
    assert first.equal(method.embed(embedding, generator.manual_seed(0)))
    kept = method.embed.bn(embedding) * (torch.rand(4, 64, generator=generator.manual_seed(0)) >= 0.5) * 2
    torch.testing.assert_close(first, method.embed.linear(kept))
