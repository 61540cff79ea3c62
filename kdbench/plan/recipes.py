"""Training schedules. The published one is `paper`; the others have its shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

from kdbench.core.errors import UserError, unknown_name
from kdbench.core.recipe import OPTIMIZERS, SCHEDULES, Recipe


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
    "paper": _Preset(_PAPER, "the published schedule: 240 epochs, the learning rate drops after 150, 180 and 210"),
    "quick": _Preset(
        replace(_PAPER, name="quick", label="quick", epochs=30, milestones=_milestones(30)),
        "the same shape in 30 epochs",
    ),
    "digits": _Preset(
        replace(_PAPER, name="digits", label="digits", epochs=10, milestones=_milestones(10), size=8, pad=1),
        "the same shape in 10 epochs at 8x8 pixels, for the built-in digits",
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
    own: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    epochs: int | None = None,
    lr: float | None = None,
    size: int | None = None,
    max_grad_norm: float | None = None,
) -> Recipe:
    """A recipe with what the user changed; the label says so. Raises UserError.

    `own` are recipes of a study file, by name: the fields in which each differs from its `base`, a recipe of this list.
    """
    known = {key: preset.recipe for key, preset in _PRESETS.items()}
    known |= {key: _own_recipe(key, table) for key, table in (own or {}).items()}
    if name not in known:
        raise unknown_name("recipe", name, known, "see `python bench.py list recipes`")
    chosen = known[name]
    label = chosen.label
    if epochs is not None and epochs != chosen.epochs:
        if epochs < 1:
            raise UserError(f"--epochs must be at least 1, got {epochs}")
        milestones = _milestones(epochs)
        if chosen.milestones != _milestones(chosen.epochs):  # a recipe with drops of its own
            milestones = tuple(milestone * epochs / chosen.epochs for milestone in chosen.milestones)
        chosen = replace(chosen, epochs=epochs, milestones=milestones)
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


def _own_recipe(name: str, table: Mapping[str, Any]) -> Recipe:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise UserError(f"the recipe name {name!r} must begin with a letter and have letters, digits, _ and - only")
    if name in _PRESETS:
        raise UserError(f"[recipe.{name}]: this name is taken; see `python bench.py list recipes`")
    base = table.get("base", "paper")
    if not isinstance(base, str) or base not in _PRESETS:
        raise unknown_name("recipe", str(base), _PRESETS, f"[recipe.{name}] needs a base of `list recipes`")
    hints = get_type_hints(Recipe)
    for key, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        if table.get(key, choices[0]) not in choices:
            raise unknown_name(key, str(table[key]), choices, f"[recipe.{name}]: there are {', '.join(choices)}")
    changeable = [item.name for item in fields(Recipe) if item.name not in ("name", "label")]
    changes: dict[str, Any] = {}
    for key, value in table.items():
        if key == "base":
            continue
        if key not in changeable:
            raise unknown_name("field", key, changeable, f"[recipe.{name}] may have base, {', '.join(changeable)}")
        changes[key] = _field(f"[recipe.{name}] {key}", hints[key], value)
        if key in _UNUSED.get(str(table.get("optimizer", "")), ()) + _UNUSED.get(str(table.get("schedule", "")), ()):
            raise UserError(f"[recipe.{name}] {key} has no effect under this optimizer or schedule: leave it out")
    chosen = _PRESETS[base].recipe
    if "epochs" in changes and "milestones" not in changes:
        changes["milestones"] = _milestones(changes["epochs"])
    if "lr" in changes and "small_lr" not in changes:
        changes["small_lr"] = changes["lr"]
    if "size" in changes and "pad" not in changes:
        changes["pad"] = changes["size"] // 8
    for key, (low, high) in _LIMITS.items():
        if key in changes and changes[key] is not None and not low < changes[key] < high:
            limit = f"above {low:g}" + ("" if math.isinf(high) else f" and below {high:g}")
            raise UserError(f"[recipe.{name}] {key} must be {limit}, got {changes[key]:g}")
    return replace(chosen, name=name, label=name, **changes)


_LIMITS = {
    "lr": (0, math.inf),
    "small_lr": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "momentum": (-1, 1),
    "size": (7, 1025),
}
"""Field -> what it must lie between, the ends excluded."""

_UNUSED = {"adamw": ("momentum",), "cosine": ("gamma", "milestones")}
"""Optimizer or schedule -> fields that it does not read."""


def _field(where: str, hint: Any, value: Any) -> Any:
    """A recipe's value, checked: numbers are finite and not negative, whole ones but `pad` not 0. Raises UserError."""
    numbers = value if hint == tuple[float, ...] and isinstance(value, list | tuple) else [value]
    if hint is str or type(value) is str:
        if hint is not str or type(value) is not str:
            raise UserError(f"{where}: {value!r} is not {'a text' if hint is str else 'a number'}")
        return value
    for number in numbers:
        if type(number) not in (int, float) or not math.isfinite(number) or number < 0:
            raise UserError(f"{where}: {number!r} is not a number of 0 or more")
    if hint is int and (type(value) is not int or (value < 1 and not where.endswith(" pad"))):
        raise UserError(f"{where}: {value!r} is not a whole number above 0")
    return tuple(map(float, numbers)) if hint == tuple[float, ...] else value if hint is int else float(value)
