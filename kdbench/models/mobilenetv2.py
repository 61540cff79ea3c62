"""Inverted residuals with linear bottlenecks, at half width.

Source: Sandler et al. 2018, arXiv:1801.04381, table 2, with two changes for small images: the second stage does not
stride, and activations are plain ReLUs. The first block keeps an expanding convolution though its factor is 1. The last
convolution keeps its 1280 channels, as in the paper's narrow networks.
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
_SHOWN = (1, 2, 4, 6)  # stages whose outputs are maps: the last of each size, and the very last


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; no activation behind the projection."""

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
    """The maps of the stages are linear, so they are their own pre-activation maps."""

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
        shown = [out]
        for number, stage in enumerate(self.blocks):
            out = stage(out)
            if number in _SHOWN:
                shown.append(out)
        embedding = pool(self.conv2(out))
        maps = tuple(shown)
        return Output(self.classifier(embedding), maps, embedding, maps if pre_activations else None)

    def get_classifier(self) -> nn.Module:
        return self.classifier[0]

    def stage_batch_norms(self) -> tuple[nn.Module, ...]:
        """The batch norm before the last activation of each stage."""
        return tuple(self.blocks[number][-1].conv[-1] for number in _SHOWN)


def _conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


ARCHITECTURES: Architectures = {"MobileNetV2": partial(MobileNetV2, 0.5)}
