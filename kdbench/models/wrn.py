"""Wide residual networks, with batch norm and activation before each convolution.

Source: Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1 (WRN-depth-width, no dropout).
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.blocks import Architectures, conv, init_convs, pool
from kdbench.models.output import Output


class WideBlock(nn.Module):
    """Two pre-activated 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.convShortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the normalized input, which is the pre-activation map of the layers before."""
        normalized = self.bn1(x)
        active = F.relu(normalized)
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        # A projection shortcut reads the activated input, an identity shortcut the raw input.
        return out + (x if self.convShortcut is None else self.convShortcut(active)), normalized


class WideStage(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        later = (WideBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride), *later)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the normalized input."""
        first, *later = self.layer
        x, normalized = first(x)
        for block in later:
            x, _ = block(x)
        return x, normalized


class WideResNet(nn.Module):
    """Feature maps are not activated. A stage's pre-activation map is its feature map after the next batch norm."""

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
        first, _ = self.block1(stem)  # the stem's entry is not normalized, as in the published code
        second, first_normalized = self.block2(first)
        third, second_normalized = self.block3(second)
        third_normalized = self.bn1(third)
        last_map = F.relu(third_normalized)
        embedding = pool(last_map)
        pre_activation_maps = (stem, first_normalized, second_normalized, third_normalized) if pre_activations else None
        return Output(
            self.fc(embedding), (stem, first, second, third), embedding, pre_activation_maps, last_map=last_map
        )

    def get_classifier(self) -> nn.Module:
        return self.fc

    def stage_batch_norms(self) -> tuple[nn.Module, ...]:
        """The batch norm before the last activation of each stage."""
        first, second = (stage.get_submodule("layer.0.bn1") for stage in (self.block2, self.block3))
        return first, second, self.bn1


ARCHITECTURES: Architectures = {
    f"wrn_{depth}_{factor}": partial(WideResNet, depth, factor) for depth in (16, 40) for factor in (1, 2)
}
