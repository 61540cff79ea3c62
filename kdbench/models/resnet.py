"""Residual networks for small images: three stages of basic blocks.

Source: He et al. 2015, arXiv:1512.03385, §4.2 (depth 6n + 2), with a projection shortcut where the shape changes.
The `x4` members have stages of four times the width and a stem of twice the width.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.blocks import Architectures, conv, forward_stages, init_convs, pool
from kdbench.models.output import Output


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the same before its last activation."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut
        return F.relu(out), out


class ResNet(nn.Module):
    def __init__(self, depth: int, widths: tuple[int, int, int, int], classes: int) -> None:
        """`widths`: channels of the stem and of the three stages."""
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = conv(3, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], classes)
        init_convs(self)

    def forward(self, images: Tensor, pre_activations: bool = False) -> Output:
        stem = F.relu(self.bn1(self.conv1(images)))
        feature_maps, pre_activation_maps = forward_stages(stem, (self.layer1, self.layer2, self.layer3))
        embedding = pool(feature_maps[-1])
        before = pre_activation_maps if pre_activations else None
        return Output(self.fc(embedding), feature_maps, embedding, before, last_map=feature_maps[-1])

    def get_classifier(self) -> nn.Module:
        return self.fc

    def stage_batch_norms(self) -> tuple[nn.Module, ...]:
        """The batch norm before the last activation of each stage."""
        return tuple(stage[-1].get_submodule("bn2") for stage in (self.layer1, self.layer2, self.layer3))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    later = (BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *later)


ARCHITECTURES: Architectures = {
    **{f"resnet{depth}": partial(ResNet, depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth, (32, 64, 128, 256)) for depth in (8, 32)},
}
