"""SimKD."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.distill import Context, Output, registry
from kdbench.distill.objective import objective
from kdbench.models import FeatureShapes, build, features
from tests.methods.build import batch_of, output_with_embedding, step_of, tensor
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    refused=({"factor": 0},),
    mutations={
        "simkd": Mutation(  # the last ReLU is missing
            "kdbench.methods.simkd.Projector.forward",
            lambda forward: lambda self, last_map: self.transfer[:-1](self.resized(last_map)),
        )
    },
)


def distiller(student: FeatureShapes, teacher: FeatureShapes, weight: Tensor, bias: Tensor | None) -> Any:
    method, generator = registry.distiller("simkd"), torch.Generator()
    labels = torch.arange(len(weight))
    context = Context(student, (teacher,), len(weight), labels, generator=generator, teacher_classifier=(weight, bias))
    return method(registry.hyper_of("simkd", {}), context).double().eval()


def output(last_map: Tensor) -> Output:
    return replace(output_with_embedding(last_map.mean(dim=(2, 3))), last_map=last_map)


def test_by_hand() -> None:
    # The student's 2x2 map of mean 3 is pooled to the teacher's single position. Inside all weights are 1, the last are
    # 1 and -1: after the last ReLU (c, 0) with c = 3 / (1 + 1e-5)^(3/2), by the fresh statistics of three batch norms.
    student, teacher = tensor([[[1.0, 2.0], [4.0, 5.0]]]), tensor([[[1.0]], [[2.0]]])
    shapes = (FeatureShapes((), False, 1, last_map=(1, 2, 2)), FeatureShapes((), False, 2, last_map=(2, 1, 1)))
    method = distiller(*shapes, tensor([10.0, 1.0], [-10.0, 1.0]), tensor(0.5, 0.25))
    nn.init.ones_(method.simkd.transfer[0].weight)
    nn.init.dirac_(method.simkd.transfer[3].weight)
    method.simkd.transfer[6].weight.data = tensor([[[1.0]]], [[[-1.0]]])
    c = 3 / (1 + 1e-5) ** 1.5
    loss = method.losses(step_of(output(student), output(teacher)))["features"]
    assert loss.item() == pytest.approx(((c - 1) ** 2 + 2**2) / 2, rel=1e-12)
    assert method.predict(output(student)).tolist() == [pytest.approx([10 * c + 0.5, -10 * c + 0.25], rel=1e-12)]


@pytest.mark.parametrize("bias", [True, False])
def test_projector_and_teachers_classifier_are_deployed_and_counted(bias: bool) -> None:
    student, teacher = features("wrn_16_1", 10, 8), features("resnet20", 10, 8)
    method = distiller(student, teacher, torch.randn(10, 64), torch.randn(10) if bias else None)
    assert not any(parameter.requires_grad for parameter in method.teacher_classifier.parameters())
    network, images = build("wrn_16_1", 10, 8).double().eval(), torch.randn(2, 3, 8, 8).double()
    deployed = method.deploy(network)
    torch.testing.assert_close(deployed(images), method.predict(network(images)))
    inner = 64 // 2
    projector = 64 * inner + 9 * inner**2 + inner * 64 + 2 * (inner + inner + 64)
    counted = sum(parameter.numel() for parameter in [*deployed.parameters()])
    assert counted == sum(map(Tensor.numel, network.parameters())) + projector + 10 * (64 + bias)
    again = distiller(student, teacher, torch.zeros(10, 64), torch.zeros(10) if bias else None)
    restored = again.deploy(build("wrn_16_1", 10, 8).double().eval())
    restored.load_state_dict(deployed.state_dict())
    torch.testing.assert_close(restored(images), deployed(images))


@pytest.mark.parametrize("settings", [{}, {"ce_weight": 1.0, "kd_weight": 1.0}])
def test_batch_norm_sees_a_batch_once(settings: dict[str, float]) -> None:
    shapes = FeatureShapes((), False, 2, last_map=(2, 2, 2))
    context = Context(
        shapes, (shapes,), 2, torch.arange(2), generator=torch.Generator(), teacher_classifier=(torch.eye(2), None)
    )
    method = registry.distiller("simkd")(registry.hyper_of("simkd", settings), context).double()
    maps = output(torch.randn(3, 2, 2, 2).double())
    step = step_of(maps, maps, batch=batch_of(3, labels=torch.tensor([0, 1, 1])))
    assert len(objective(method, step)) == 1 + len(settings)
    method.after_backward(step)
    seen = [value.item() for name, value in method.named_buffers() if name.endswith("num_batches_tracked")]
    assert seen == [1, 1, 1]
