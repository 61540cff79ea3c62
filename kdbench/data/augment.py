"""Fixed views of images, for classifiers that learn from features computed once."""

from __future__ import annotations

from itertools import product

import torch.nn.functional as F
from torch import Tensor

from kdbench.core.errors import UserError

View = tuple[int, int, bool]  # pixels down, pixels to the right, mirrored


def views(count: int, pad: int, flip: bool) -> list[View]:
    """The image, its mirror image (where that keeps its meaning), then both shifted by half of the random crops' most.

    Raises UserError if there are not so many.
    """
    step = max(1, pad // 2)
    shifts = [(0, 0), *product((-step, step), repeat=2)]
    known = [(down, right, mirrored) for down, right in shifts for mirrored in ((False, True) if flip else (False,))]
    if not 1 <= count <= len(known):
        raise UserError(f"--views must be between 1 and {len(known)} for these images, got {count}")
    return known[:count]


def show(images: Tensor, view: View) -> Tensor:
    """One view of uint8 images [N, H, W, 3]; what comes in from outside is black."""
    down, right, mirrored = view
    moved = F.pad(images, (0, 0, max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
    rows, columns = images.shape[1:3]
    moved = moved[:, max(-down, 0) :][:, :rows, max(-right, 0) :][:, :, :columns]
    return moved.flip(2) if mirrored else moved
