"""ResNet-50 with a stem for small images: one 3x3 convolution and no pooling.

Source: He et al. 2015, arXiv:1512.03385, table 1 (50 layers); the stride is in the 3x3 convolution of a block, as is
usual today, and not in its first 1x1 convolution.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.blocks import Architectures, conv, forward_stages, init_convs, pool
from kdbench.models.output import Output

_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the output has four times the inner width."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * _EXPANSION
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the same before its last activation."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + shortcut
        return F.relu(out), out


class BottleneckResNet(nn.Module):
    def __init__(self, blocks: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        self.conv1 = conv(3, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, blocks[0], stride=1)
        self.layer2 = _stage(256, 128, blocks[1], stride=2)
        self.layer3 = _stage(512, 256, blocks[2], stride=2)
        self.layer4 = _stage(1024, 512, blocks[3], stride=2)
        self.linear = nn.Linear(2048, classes)
        init_convs(self)

    def forward(self, images: Tensor, pre_activations: bool = False) -> Output:
        stem = F.relu(self.bn1(self.conv1(images)))
        feature_maps, pre_activation_maps = forward_stages(stem, (self.layer1, self.layer2, self.layer3, self.layer4))
        embedding = pool(feature_maps[-1])
        before = pre_activation_maps if pre_activations else None
        return Output(self.linear(embedding), feature_maps, embedding, before, last_map=feature_maps[-1])

    def get_classifier(self) -> nn.Module:
        return self.linear

    def stage_batch_norms(self) -> tuple[nn.Module, ...]:
        """The batch norm before the last activation of each stage."""
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return tuple(stage[-1].get_submodule("bn3") for stage in stages)


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    later = (Bottleneck(width * _EXPANSION, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(inputs, width, stride), *later)


ARCHITECTURES: Architectures = {"ResNet50": partial(BottleneckResNet, (3, 4, 6, 3))}
