"""EmbedDistill for classifiers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from kdbench.distill import Context, registry
from kdbench.models import FeatureShapes, build
from tests.methods.build import output_with_embedding, step_of, tensor
from tests.methods.by_hand import set_identity
from tests.methods.expectations import Expectations

EXPECTED = Expectations()


def distiller(student: int, teacher: int, weight: Tensor, bias: Tensor | None, **settings: float) -> Any:
    shapes = FeatureShapes((), False, student), (FeatureShapes((), False, teacher),)
    labels, generator = torch.arange(len(weight)), torch.Generator()
    context = Context(*shapes, len(weight), labels, generator=generator, teacher_classifier=(weight, bias))
    return registry.distiller("embed")(registry.hyper_of("embed", settings), context).double()


def test_by_hand() -> None:
    # Distances of (3, 4) and (1, 0) from (0, 0) and (1, 2): 5 and 2, not squared. The teacher's classifier answers.
    student, teacher = tensor([3.0, 4.0], [1.0, 0.0]), tensor([0.0, 0.0], [1.0, 2.0])
    step = step_of(output_with_embedding(student), output_with_embedding(teacher))
    method = distiller(2, 2, tensor([1.0, 0.0], [2.0, -1.0]), tensor(0.5, 0.0), embed_weight=3.0)
    assert method.losses(step)["embed"].item() == pytest.approx(3 * (5 + 2) / 2, rel=1e-12)
    assert method.predict(step.student).tolist() == [[3.5, 2.0], [1.5, 2.0]]


def test_other_widths_are_projected() -> None:
    method = distiller(1, 2, tensor([1.0, 1.0], [1.0, -1.0]), None)
    set_identity(method.projection)  # (1, 0)ᵀ
    assert method.predict(output_with_embedding(tensor([7.0]))).tolist() == [[7.0, 7.0]]


def test_projection_and_classifier_are_deployed() -> None:
    method = distiller(64, 5, torch.randn(10, 5), torch.randn(10)).eval()
    network, images = build("resnet20", 10, 8).double().eval(), torch.randn(2, 3, 8, 8).double()
    deployed = method.deploy(network)
    assert_close(deployed(images), method.predict(network(images)))
    names = {"deploy.teacher_classifier.weight", "deploy.teacher_classifier.bias", "deploy.projection.weight"}
    assert names <= deployed.state_dict().keys()
    own = sum(parameter.numel() for parameter in deployed.parameters()) - sum(map(Tensor.numel, network.parameters()))
    assert own == 65 * 5 + 6 * 10  # the projection and the teacher's classifier
