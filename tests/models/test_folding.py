"""Networks with batch norms folded into convolutions have the same outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdbench import models
from kdbench.models import Output
from kdbench.models.folding import fold

VGGS = [name for name in models.names() if name.startswith("vgg")]


def network(name: str) -> nn.Module:
    """A network in float64 and evaluation mode, whose batch norms are not the identity."""
    torch.manual_seed(0)
    model = models.build(name, 10, 32).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model


def count_batch_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("name", [name for name in models.names() if name not in VGGS])
@pytest.mark.parametrize("pre_activations", [False, True])
@torch.no_grad()
def test_folded_networks_have_the_same_outputs(name: str, pre_activations: bool) -> None:
    original = network(name)
    state = {key: tensor.clone() for key, tensor in original.state_dict().items()}
    folded = fold(original)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected: Output = original(images, pre_activations=pre_activations)
    output: Output = folded(images, pre_activations=pre_activations)
    assert (output.pre_activations is None) == (not pre_activations)
    torch.testing.assert_close(output.tensors(), expected.tensors(), rtol=1e-10, atol=1e-12)
    assert all(torch.equal(tensor, state[key]) for key, tensor in original.state_dict().items())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize(
    ("name", "remaining"),
    # Every batch norm of a residual network follows a convolution. In a wide residual network, only the second one of
    # each of the 3 x 2 blocks does.
    [("resnet20", 0), ("wrn_16_2", 13 - 6)],
)
def test_batch_norms_that_remain(name: str, remaining: int) -> None:
    original = network(name)
    assert count_batch_norms(original) > 0
    assert count_batch_norms(fold(original).get_submodule("plain")) == remaining


@pytest.mark.parametrize("name", ["vgg8", "timm/resnet18", "timm/vit_tiny_patch16_224"])
def test_networks_that_cannot_be_traced_are_returned_unchanged(name: str) -> None:
    original = models.build(name, 10, 32).eval()
    assert fold(original) is original


def test_a_convolution_with_a_second_reader_is_not_folded() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, images: Tensor, pre_activations: bool = False) -> Output:
            out = self.conv(images)
            normalized = self.norm(out)
            return Output(normalized.mean((2, 3)), (normalized,), out.mean((2, 3)))

    folded = fold(Network().eval())
    assert count_batch_norms(folded) == 2  # one per trace
