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
from dataclasses import dataclass

import torch
from torch import Tensor

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
