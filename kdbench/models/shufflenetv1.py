"""Grouped 1x1 convolutions with a channel shuffle between them.

Source: Zhang et al. 2017, arXiv:1707.01083, table 1 (three groups, width 1), with a 1x1 stem for small images.
Unlike in the paper, an activation follows the depthwise convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.blocks import Architectures, conv, forward_stages, pool
from kdbench.models.output import Output

_STEM = 24
_GROUPS = 3


class ShuffleUnit(nn.Module):
    """A grouped bottleneck whose result is added to the input or, at stride 2, concatenated with the pooled input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        hidden = outputs // 4
        self.groups = 1 if inputs == _STEM else _GROUPS  # the stem has too few channels for groups
        self.conv1 = conv(inputs, hidden, 1, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = conv(hidden, hidden, 3, stride, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv(hidden, outputs, 1, groups=_GROUPS)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the same before its last activation."""
        out = F.channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = out + x if self.stride == 1 else torch.cat((out, F.avg_pool2d(x, 3, stride=2, padding=1)), dim=1)
        return F.relu(out), out


class ShuffleNetV1(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = conv(3, _STEM, 1)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _stage(_STEM, 240, units=4)
        self.layer2 = _stage(240, 480, units=8)
        self.layer3 = _stage(480, 960, units=4)
        self.linear = nn.Linear(960, classes)

    def forward(self, images: Tensor, pre_activations: bool = False) -> Output:
        stem = F.relu(self.bn1(self.conv1(images)))
        feature_maps, pre_activation_maps = forward_stages(stem, (self.layer1, self.layer2, self.layer3))
        embedding = pool(feature_maps[-1])
        before = pre_activation_maps if pre_activations else None
        return Output(self.linear(embedding), feature_maps, embedding, before, last_map=feature_maps[-1])

    def get_classifier(self) -> nn.Module:
        return self.linear


def _stage(inputs: int, outputs: int, units: int) -> nn.Sequential:
    later = (ShuffleUnit(outputs, outputs, stride=1) for _ in range(units - 1))
    return nn.Sequential(ShuffleUnit(inputs, outputs - inputs, stride=2), *later)


ARCHITECTURES: Architectures = {"ShuffleV1": ShuffleNetV1}
