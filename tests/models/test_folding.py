"""Batch norms folded into convolutions: the same function."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdbench import models
from kdbench.models import Output
from kdbench.models.folding import fold

VGGS = [name for name in models.names() if name.startswith("vgg")]


def network(name: str) -> nn.Module:
    """In float64 and evaluation mode, with statistics that are no identity."""
    torch.manual_seed(0)
    found = models.build(name, 10, 32).double().eval()
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return found


def norms(module: nn.Module) -> int:
    return sum(isinstance(each, nn.BatchNorm2d) for each in module.modules())


@pytest.mark.parametrize("name", [name for name in models.names() if name not in VGGS])
@pytest.mark.parametrize("pre_activations", [False, True])
@torch.no_grad()
def test_it_computes_the_same(name: str, pre_activations: bool) -> None:
    plain = network(name)
    before = {key: tensor.clone() for key, tensor in plain.state_dict().items()}
    folded = fold(plain)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    wanted: Output = plain(images, pre_activations=pre_activations)
    found: Output = folded(images, pre_activations=pre_activations)
    assert (found.pre_activations is None) == (not pre_activations)
    torch.testing.assert_close(found.tensors(), wanted.tensors(), rtol=1e-10, atol=1e-12)
    assert all(torch.equal(tensor, before[key]) for key, tensor in plain.state_dict().items())
    assert not any(each.requires_grad for each in folded.parameters())


@pytest.mark.parametrize(
    ("name", "left"),
    # Every batch norm of a residual network follows a convolution; of a wide one's, which come first in their blocks,
    # only the second of each of the 3 x 2 blocks does.
    [("resnet20", 0), ("wrn_16_2", 13 - 6)],
)
def test_how_many_are_left(name: str, left: int) -> None:
    plain = network(name)
    assert norms(plain) > 0
    assert norms(fold(plain).get_submodule("plain")) == left


@pytest.mark.parametrize("name", ["vgg8", "timm/resnet18", "timm/vit_tiny_patch16_224"])
def test_what_cannot_be_traced_stays(name: str) -> None:
    plain = models.build(name, 10, 32).eval()
    assert fold(plain) is plain


def test_a_layer_that_others_read_too_is_not_folded() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, images: Tensor, pre_activations: bool = False) -> Output:
            before = self.conv(images)
            after = self.norm(before)
            return Output(after.mean((2, 3)), (after,), before.mean((2, 3)))

    folded = fold(Two().eval())
    assert norms(folded) == 2  # one a trace
