"""How networks are optimized: the learning rate as a pure function of the epoch, and what it drives."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from kdbench.core.trial import Recipe


def learning_rate(recipe: Recipe, initial: float, epoch: int) -> float:
    """The learning rate during `epoch` (from 1): it has dropped once for each milestone reached by earlier epochs.

    With the published milestone of 150, epoch 151 is the first at the lower rate (RepDistiller).
    """
    return initial * recipe.gamma ** sum(epoch - 1 >= milestone for milestone in recipe.milestones)


def sgd(recipe: Recipe, parameters: Iterable[torch.Tensor], rate: float) -> torch.optim.SGD:
    """The optimizer of every recipe."""
    return torch.optim.SGD(
        list(parameters), lr=rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )
