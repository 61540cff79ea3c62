"""Channel split and channel shuffle instead of grouped convolutions.

Source: Ma et al. 2018, arXiv:1807.11164, table 5 (width 1), with a 1x1 stem for small images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.blocks import Architectures, conv, forward_stages, pool
from kdbench.models.output import Output

_STEM, _LAST = 24, 1024


class SplitUnit(nn.Module):
    """One half of the channels is passed on unchanged, the other half goes through a bottleneck."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the same before its last activation and its shuffle."""
        identity, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        out = self.bn3(self.conv3(out))
        return _concat_shuffled(identity, F.relu(out)), torch.cat((identity, out), dim=1)


class DownUnit(nn.Module):
    """Two concatenated branches of stride 2, each of which reads all channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = conv(inputs, inputs, 3, stride=2, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = conv(inputs, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(inputs, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the same before its last activation and its shuffle."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return _concat_shuffled(F.relu(left), F.relu(right)), torch.cat((left, right), dim=1)


class ShuffleNetV2(nn.Module):
    """The pre-activation maps are not shuffled, as in the published code: their channels are in another order."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = conv(3, _STEM, 1)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _stage(_STEM, 116, units=4)
        self.layer2 = _stage(116, 232, units=8)
        self.layer3 = _stage(232, 464, units=4)
        self.conv2 = conv(464, _LAST, 1)
        self.bn2 = nn.BatchNorm2d(_LAST)
        self.linear = nn.Linear(_LAST, classes)

    def forward(self, images: Tensor, pre_activations: bool = False) -> Output:
        stem = F.relu(self.bn1(self.conv1(images)))
        feature_maps, pre_activation_maps = forward_stages(stem, (self.layer1, self.layer2, self.layer3))
        last_map = F.relu(self.bn2(self.conv2(feature_maps[-1])))
        embedding = pool(last_map)
        before = pre_activation_maps if pre_activations else None
        return Output(self.linear(embedding), feature_maps, embedding, before, last_map=last_map)

    def get_classifier(self) -> nn.Module:
        return self.linear


def _stage(inputs: int, outputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(DownUnit(inputs, outputs), *(SplitUnit(outputs) for _ in range(units - 1)))


def _concat_shuffled(left: Tensor, right: Tensor) -> Tensor:
    return F.channel_shuffle(torch.cat((left, right), dim=1), 2)


ARCHITECTURES: Architectures = {"ShuffleV2": ShuffleNetV2}
