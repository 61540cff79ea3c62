"""Layers, forward passes and initializers that several families share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from torch import Tensor, nn

Architectures: TypeAlias = Mapping[str, Callable[[int], nn.Module]]
"""The members of a family: name -> constructor that takes the number of classes."""


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, since a batch norm follows; at stride 1 it keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def forward_stages(stem: Tensor, stages: Iterable[nn.Sequential]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The feature maps of the stem and of each stage, and the same before the last activation.

    Every block returns its output and its pre-activation. The stem's entry is its feature map in both tuples.
    """
    out = pre_activation = stem
    feature_maps, pre_activations = [stem], [stem]
    for stage in stages:
        for block in stage:
            out, pre_activation = block(out)
        feature_maps.append(out)
        pre_activations.append(pre_activation)
    return tuple(feature_maps), tuple(pre_activations)


def pool(feature_map: Tensor) -> Tensor:
    """Global average pooling, [B, K, H, W] -> [B, K]."""
    return feature_map.mean(dim=(2, 3))


def init_convs(model: nn.Module) -> None:
    """Draw normal weights of variance 2 / (kernel² · outputs) for all convolutions; set their biases, if any, to 0.

    Source: He et al. 2015, arXiv:1502.01852, eq. 14.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_linear(linear: nn.Linear) -> None:
    """Draw normal weights of standard deviation 0.01 and set the bias to 0: all classes start about equally likely."""
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
