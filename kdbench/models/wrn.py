"""Wide residual networks: batch norm and activation come before each convolution.

Source: Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1 (WRN-depth-width, no dropout).
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.blocks import Architectures, conv, init_convs, pool
from kdbench.models.output import Output


class WideBlock(nn.Module):
    """Two pre-activated 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.convShortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the normalized input: the pre-activation map of what came before."""
        normed = self.bn1(x)
        active = F.relu(normed)
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        # A projecting shortcut reads the activated input, an identity shortcut the raw one.
        return out + (x if self.convShortcut is None else self.convShortcut(active)), normed


class WideStage(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        later = (WideBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride), *later)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the stage's normalized input."""
        first, *later = self.layer
        x, normed = first(x)
        for block in later:
            x, _ = block(x)
        return x, normed


class WideResNet(nn.Module):
    """Maps are raw sums; the pre-activation map of a stage is what the next batch norm makes of it."""

    def __init__(self, depth: int, factor: int, classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = conv(3, 16, 3)
        self.block1 = WideStage(16, 16 * factor, blocks, stride=1)
        self.block2 = WideStage(16 * factor, 32 * factor, blocks, stride=2)
        self.block3 = WideStage(32 * factor, 64 * factor, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * factor)
        self.fc = nn.Linear(64 * factor, classes)
        init_convs(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor, pre_activations: bool = False) -> Output:
        stem = self.conv1(images)
        first, _ = self.block1(stem)  # the stem's entry stays raw, as published
        second, first_normed = self.block2(first)
        third, second_normed = self.block3(second)
        third_normed = self.bn1(third)
        embedding = pool(F.relu(third_normed))
        unactivated = (stem, first_normed, second_normed, third_normed) if pre_activations else None
        return Output(self.fc(embedding), (stem, first, second, third), embedding, unactivated)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def stage_batch_norms(self) -> tuple[nn.Module, ...]:
        """The batch norm before the last activation of each stage."""
        return (self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1)


ARCHITECTURES: Architectures = {
    f"wrn_{depth}_{factor}": partial(WideResNet, depth, factor) for depth in (16, 40) for factor in (1, 2)
}
