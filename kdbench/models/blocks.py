"""What several families are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from torch import Tensor, nn

Architectures: TypeAlias = Mapping[str, Callable[[int], nn.Module]]
"""The members of a family: name -> constructor from the number of classes."""


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias (a batch norm follows) that keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def through_stages(stem: Tensor, stages: Iterable[nn.Sequential]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The maps after the stem and after each stage, and the same before the last activation.

    The blocks of a stage return both. The stem has no separate pre-activation map: its entry is the map itself.
    """
    out = before = stem
    maps, unactivated = [stem], [stem]
    for stage in stages:
        for block in stage:
            out, before = block(out)
        maps.append(out)
        unactivated.append(before)
    return tuple(maps), tuple(unactivated)


def pool(features: Tensor) -> Tensor:
    """Global average pooling, [B, K, H, W] -> [B, K], over whatever size is left."""
    return features.mean(dim=(2, 3))


def init_convs(model: nn.Module) -> None:
    """Normal weights of variance 2 / (k·k·outputs) for all convolutions; biases, if any, 0.

    Source: He et al. 2015, arXiv:1502.01852, eq. 14.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_linear(linear: nn.Linear) -> None:
    """A classifier that starts near indifference: weights of standard deviation 0.01, bias 0."""
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
