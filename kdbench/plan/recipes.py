"""Training schedules. The published one is `paper`; the others have its shape."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kdbench.core.errors import UserError, unknown_name
from kdbench.core.trial import Recipe


@dataclass(frozen=True)
class _Preset:
    recipe: Recipe
    summary: str


def _milestones(epochs: int) -> tuple[float, ...]:
    """The published drops, after 150, 180 and 210 of 240 epochs, in proportion: real numbers."""
    return tuple(milestone * epochs / 240 for milestone in (150, 180, 210))


# RepDistiller's scripts: SGD, momentum 0.9, weight decay 5e-4, batch 64, 0.05 (0.01 for the light networks).
_PAPER = Recipe(
    name="paper",
    label="paper",
    epochs=240,
    batch_size=64,
    lr=0.05,
    small_lr=0.01,
    momentum=0.9,
    weight_decay=5e-4,
    milestones=_milestones(240),
    gamma=0.1,
    size=32,
    pad=4,
)

_PRESETS = {
    "paper": _Preset(_PAPER, "the published schedule: 240 epochs, the rate drops after 150, 180 and 210"),
    "quick": _Preset(
        replace(_PAPER, name="quick", label="quick", epochs=30, milestones=_milestones(30)),
        "the same shape in 30 epochs",
    ),
    "digits": _Preset(
        replace(_PAPER, name="digits", label="digits", epochs=10, milestones=_milestones(10), size=8, pad=1),
        "the same shape in 10 epochs at 8x8 pixels, for the embedded digits",
    ),
}


def names() -> dict[str, str]:
    """Every recipe with one line about it."""
    return {name: preset.summary for name, preset in _PRESETS.items()}


def default(source: str) -> str:
    """The recipe of a data source when none is asked for."""
    return source if source in _PRESETS else "paper"


def recipe(
    name: str,
    *,
    epochs: int | None = None,
    lr: float | None = None,
    size: int | None = None,
    max_grad_norm: float | None = None,
) -> Recipe:
    """A recipe with what the user changed; the label says so. Raises UserError."""
    if name not in _PRESETS:
        raise unknown_name("recipe", name, _PRESETS, "see `python bench.py list recipes`")
    chosen = _PRESETS[name].recipe
    label = chosen.label
    if epochs is not None and epochs != chosen.epochs:
        if epochs < 1:
            raise UserError(f"--epochs must be at least 1, got {epochs}")
        chosen = replace(chosen, epochs=epochs, milestones=_milestones(epochs))
        label += f"@{epochs}"
    if lr is not None:
        if not (math.isfinite(lr) and lr > 0):
            raise UserError(f"--lr must be a finite number above 0, got {lr}")
        chosen = replace(chosen, lr=lr, small_lr=lr)
        label += f",lr={lr:g}"
    if size is not None and size != chosen.size:
        if not 8 <= size <= 1024:
            raise UserError(f"--size must be between 8 and 1024 pixels, got {size}")
        chosen = replace(chosen, size=size, pad=size // 8)
        label += f",{size}px"
    if max_grad_norm is not None:
        if not (math.isfinite(max_grad_norm) and max_grad_norm > 0):
            raise UserError(f"--max-grad-norm must be a finite number above 0, got {max_grad_norm}")
        chosen = replace(chosen, max_grad_norm=max_grad_norm)
        label += f",clip={max_grad_norm:g}"
    return replace(chosen, label=label)
