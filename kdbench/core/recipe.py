"""Training recipes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

OPTIMIZERS = ("sgd", "adamw")
"""`sgd`: classical momentum, weight decay on every parameter. `adamw`: decoupled weight decay, betas 0.9 and 0.999."""

SCHEDULES = ("step", "cosine")
"""`step`: times `gamma` after each milestone. `cosine`: from the initial learning rate towards 0 in the last epoch."""


@dataclass(frozen=True)
class Recipe:
    """Optimizer, schedule and augmentation, the same for every method."""

    name: str
    label: str  # `paper`, or what was changed: `paper@6` has 6 epochs, so a shortened study never looks like a full one
    epochs: int
    batch_size: int
    lr: float  # initial learning rate
    small_lr: float  # for MobileNetV2, ShuffleNets and token models, which diverge at `lr`; see `ModelInfo.small_lr`
    momentum: float
    weight_decay: float
    milestones: tuple[float, ...]  # epochs after which the learning rate drops; may be fractional
    gamma: float  # factor of each drop
    size: int  # pixels per side
    pad: int  # black pixels added on each side before a random crop
    max_grad_norm: float | None = None  # gradient clipping by norm; None: off
    optimizer: str = "sgd"  # one of OPTIMIZERS
    schedule: str = "step"  # one of SCHEDULES

    @property
    def pretraining_epochs(self) -> int:
        """Epochs of the stage before training that some methods have: 30 per 240 epochs, as published."""
        return max(1, round(30 * self.epochs / 240))

    @property
    def key(self) -> dict[str, Any]:
        """The fields that decide a result, as they enter fingerprints. The learning rate in force is `Trial.lr`."""
        excluded = {"name", "label", "lr", "small_lr"}
        defaults = {item.name: item.default for item in fields(self)}
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in excluded and value != defaults[name]  # a new field leaves older fingerprints valid
        }

    def published(self) -> bool:
        """Whether results are comparable to published ones."""
        return self.label == "paper"
