"""Plain convolutional networks with batch norm: five blocks with pooling between them, and one linear classifier.

Source: Simonyan and Zisserman 2014, arXiv:1409.1556, table 1 (A, B, D, E; `vgg8` has one convolution per block).
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.blocks import Architectures, init_convs, init_linear, pool
from kdbench.models.output import Output

_WIDTHS = (64, 128, 256, 512, 512)
_DEEP_POOL = 64  # pixels; images of at least this size are also pooled before the last block

SMALLEST = 8  # pixels; three poolings reduce it to 1


class VGG(nn.Module):
    def __init__(self, layers: tuple[int, int, int, int, int], classes: int) -> None:
        """`layers`: number of convolutions in each block."""
        super().__init__()
        self.block0 = _block(3, _WIDTHS[0], layers[0])
        self.block1 = _block(_WIDTHS[0], _WIDTHS[1], layers[1])
        self.block2 = _block(_WIDTHS[1], _WIDTHS[2], layers[2])
        self.block3 = _block(_WIDTHS[2], _WIDTHS[3], layers[3])
        self.block4 = _block(_WIDTHS[3], _WIDTHS[4], layers[4])
        self.classifier = nn.Linear(_WIDTHS[4], classes)
        init_convs(self)
        init_linear(self.classifier)

    def forward(self, images: Tensor, pre_activations: bool = False) -> Output:
        large = min(images.shape[-2:]) >= _DEEP_POOL
        feature_maps: tuple[Tensor, ...] = ()
        pre_activation_maps: tuple[Tensor, ...] = ()
        out = images
        for index, block in enumerate((self.block0, self.block1, self.block2, self.block3, self.block4)):
            if 1 <= index <= 3 or (index == 4 and large):
                out = F.max_pool2d(out, 2)
            pre_activation = block(out)
            out = F.relu(pre_activation)
            feature_maps += (out,)
            pre_activation_maps += (pre_activation if index else out,)  # the first block is the stem
        embedding = pool(out)
        before = pre_activation_maps if pre_activations else None
        return Output(self.classifier(embedding), feature_maps, embedding, before, last_map=out)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def stage_batch_norms(self) -> tuple[nn.Module, ...]:
        """The batch norm before the last activation of each stage."""
        return tuple(block[-1] for block in (self.block1, self.block2, self.block3, self.block4))


def _block(inputs: int, outputs: int, layers: int) -> nn.Sequential:
    """Convolutions with batch norm, with activations between them; the last one is not activated."""
    modules: list[nn.Module] = []
    for layer in range(layers):
        if layer:
            modules.append(nn.ReLU(inplace=True))
        modules += [nn.Conv2d(outputs if layer else inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*modules)


ARCHITECTURES: Architectures = {
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
}
