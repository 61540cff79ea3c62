"""Views: the images of a batch again under a named augmentation, for methods that ask for them.

`crop`    a second, independent random crop and flip.
`strong`  a random crop and flip, then `operations` random operations and a cutout of at most the share `cutout` of a
          side, image by image; as MLKD (CVPR 2023) and CRLD (arXiv:2412.16493) train, after RandAugment
          (arXiv:1909.13719) with uniformly drawn strengths.
`mixup`   lam · image + (1 - lam) · partner, lam ~ Beta(alpha, alpha) once a batch; arXiv:1710.09412.
`cutmix`  a rectangle of the share 1 - lam of the image comes from the partner; arXiv:1905.04899.

`mixup` and `cutmix` mix the images of the base batch; labels are never mixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms import InterpolationMode

DEFAULTS: dict[str, dict[str, float]] = {
    "crop": {},
    "strong": {"operations": 2, "cutout": 0.5},
    "mixup": {"alpha": 1.0},
    "cutmix": {"alpha": 1.0},
}
"""The views by name, with their parameters."""

MIXED = frozenset({"mixup", "cutmix"})
"""Views whose images are made of two images of the batch."""


@dataclass(frozen=True, init=False)
class View:
    """A view by name, with its parameters: `View("mixup", alpha=0.2)`. Raises ValueError for unknown ones."""

    name: str
    parameters: tuple[tuple[str, float], ...]

    def __init__(self, name: str, **parameters: float) -> None:
        if name not in DEFAULTS:
            raise ValueError(f"there is no view {name!r}; there are {', '.join(DEFAULTS)}")
        if unknown := parameters.keys() - DEFAULTS[name].keys():
            raise ValueError(f"the view {name!r} has no {', '.join(sorted(unknown))}")
        merged = {key: float(value) for key, value in {**DEFAULTS[name], **parameters}.items()}
        if any(not (math.isfinite(value) and value > 0) for value in merged.values()):
            raise ValueError(f"parameters of the view {name!r} must be finite and above 0, got {parameters}")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "parameters", tuple(merged.items()))

    def __getitem__(self, parameter: str) -> float:
        return dict(self.parameters)[parameter]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value:g}' for key, value in self.parameters)})"


def mixing_coefficients(alpha: float, count: int, seed: int) -> Tensor:
    """`count` draws of Beta(alpha, alpha), float32; torch samples it from its global generator only."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return torch.distributions.Beta(alpha, alpha).sample((count,))


def rectangle(lam: float, height: int, width: int, generator: torch.Generator) -> tuple[slice, slice, float]:
    """Rows and columns of a random rectangle of the share 1 - lam, cut off at the edges, and the lam that is left."""
    share = math.sqrt(1 - lam)
    row, column = (int(torch.randint(size, (), generator=generator)) for size in (height, width))
    half_height, half_width = int(height * share) // 2, int(width * share) // 2
    rows = slice(max(0, row - half_height), min(height, row + half_height))
    columns = slice(max(0, column - half_width), min(width, column + half_width))
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return rows, columns, 1 - area / (height * width)


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
