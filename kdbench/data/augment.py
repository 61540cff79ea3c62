"""Fixed augmentations, for linear probes that learn from features computed once per image."""

from __future__ import annotations

from itertools import product

import torch.nn.functional as F
from torch import Tensor

from kdbench.core.errors import UserError

FixedAugmentation = tuple[int, int, bool]
"""Shift down and to the right, in pixels, and whether the image is then mirrored."""


def views(count: int, pad: int, flip: bool) -> list[FixedAugmentation]:
    """The first `count` of: the image, its mirror image (only with `flip`), and both shifted diagonally by `pad` // 2.

    Raises UserError if there are fewer than `count`.
    """
    step = max(1, pad // 2)
    shifts = [(0, 0), *product((-step, step), repeat=2)]
    available = [(down, right, mirror) for down, right in shifts for mirror in ((False, True) if flip else (False,))]
    if not 1 <= count <= len(available):
        raise UserError(f"--views must be between 1 and {len(available)} for these images, got {count}")
    return available[:count]


def show(images: Tensor, augmentation: FixedAugmentation) -> Tensor:
    """Shift and mirror uint8 images [N, H, W, 3]; pixels from outside the image are black."""
    down, right, mirror = augmentation
    padded = F.pad(images, (0, 0, max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
    height, width = images.shape[1:3]
    shifted = padded[:, max(-down, 0) :][:, :height, max(-right, 0) :][:, :, :width]
    return shifted.flip(2) if mirror else shifted
