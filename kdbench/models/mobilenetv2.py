"""Inverted residuals with linear bottlenecks, at half width.

Source: Sandler et al. 2018, arXiv:1801.04381, table 2, with two changes for small images: the second stage has stride
1, and activations are plain ReLUs. The first block has an expanding convolution although its factor is 1. The last
convolution has 1280 channels at every width, as the paper's narrow networks do.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from kdbench.models.blocks import Architectures, conv, init_convs, init_linear, pool
from kdbench.models.output import Output

_STEM, _LAST = 32, 1280
_STAGES = (  # expansion, channels before the width factor, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_MAP_STAGES = (1, 2, 4, 6)  # stages whose outputs are feature maps: the last of each size, and the last of all


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection; no activation follows the projection."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *_conv_bn_relu(inputs, hidden, 1),
            *_conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
            conv(hidden, outputs, 1),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """The outputs of the stages are not activated, so feature maps and pre-activation maps are the same."""

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        channels = int(_STEM * width)
        self.conv1 = _conv_bn_relu(3, channels, 3, stride=2)
        self.blocks = nn.Sequential()
        for expansion, base, blocks, stride in _STAGES:
            outputs = int(base * width)
            later = (InvertedResidual(outputs, outputs, 1, expansion) for _ in range(blocks - 1))
            self.blocks.append(nn.Sequential(InvertedResidual(channels, outputs, stride, expansion), *later))
            channels = outputs
        self.conv2 = _conv_bn_relu(channels, _LAST, 1)
        linear = nn.Linear(_LAST, classes)
        self.classifier = nn.Sequential(linear)
        init_convs(self)
        init_linear(linear)

    def forward(self, images: Tensor, pre_activations: bool = False) -> Output:
        out: Tensor = self.conv1(images)
        feature_maps: tuple[Tensor, ...] = (out,)
        for index, stage in enumerate(self.blocks):
            out = stage(out)
            if index in _MAP_STAGES:
                feature_maps += (out,)
        last_map = self.conv2(out)
        embedding = pool(last_map)
        before = feature_maps if pre_activations else None
        return Output(self.classifier(embedding), feature_maps, embedding, before, last_map=last_map)

    def get_classifier(self) -> nn.Module:
        return self.classifier[0]

    def stage_batch_norms(self) -> tuple[nn.Module, ...]:
        """The last batch norm of each stage that gives a feature map."""
        return tuple(list(self.blocks[index].modules())[-1] for index in _MAP_STAGES)


def _conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


ARCHITECTURES: Architectures = {"MobileNetV2": partial(MobileNetV2, 0.5)}
