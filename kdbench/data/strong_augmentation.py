"""The view `strong`: random operations and a cutout, image by image.

A module of its own, since torchvision takes a while to import and few methods need it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms import InterpolationMode

from kdbench.data.views import View

_CUTOUT_COLOR = (125, 123, 114)  # the mean of ImageNet, as the authors' code fills


def strong_augmentation(pixels: Tensor, view: View, generator: torch.Generator) -> Tensor:
    """One image, uint8 [H, W, 3], under random operations and a cutout."""
    image = Image.fromarray(pixels.numpy())
    for _ in range(int(view["operations"])):
        operation = _OPERATIONS[int(torch.randint(len(_OPERATIONS), (), generator=generator))]
        image = operation(image, float(torch.rand((), generator=generator)))
    width, height = image.size
    side, x, y = (float(value) for value in torch.rand(3, generator=generator))
    half = side * view["cutout"] * min(width, height) / 2
    if half >= 0.5:
        left, top = round(x * width - half), round(y * height - half)
        square = (left, top, left + round(2 * half) - 1, top + round(2 * half) - 1)
        ImageDraw.Draw(image).rectangle(square, fill=_CUTOUT_COLOR)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 3)


def _affine(
    image: Image.Image, *, x: float = 0.0, y: float = 0.0, shear: tuple[float, float] = (0.0, 0.0)
) -> Image.Image:
    shift = [round(x * image.width), round(y * image.height)]
    moved: Image.Image = F.affine(image, 0.0, shift, 1.0, list(shear), InterpolationMode.NEAREST, center=[0, 0])
    return moved


def _signed(strength: float, largest: float) -> float:
    return (2 * strength - 1) * largest


_SHEAR = math.degrees(math.atan(0.3))

# Each takes an image and a strength in [0, 1); ranges as in FixMatch (arXiv:2001.07685, table 12).
_OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, s: image,
    lambda image, s: F.autocontrast(image),
    lambda image, s: F.equalize(image),
    lambda image, s: F.adjust_brightness(image, 0.05 + 0.9 * s),
    lambda image, s: F.adjust_saturation(image, 0.05 + 0.9 * s),
    lambda image, s: F.adjust_contrast(image, 0.05 + 0.9 * s),
    lambda image, s: F.adjust_sharpness(image, 0.05 + 0.9 * s),
    lambda image, s: F.posterize(image, 4 + int(5 * s)),
    lambda image, s: F.solarize(image, 256 * s),
    lambda image, s: F.rotate(image, _signed(s, 30.0)),
    lambda image, s: _affine(image, shear=(_signed(s, _SHEAR), 0.0)),
    lambda image, s: _affine(image, shear=(0.0, _signed(s, _SHEAR))),
    lambda image, s: _affine(image, x=_signed(s, 0.3)),
    lambda image, s: _affine(image, y=_signed(s, 0.3)),
)
