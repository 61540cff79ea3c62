"""How networks are optimized: the learning rate as a pure function of the epoch, and the optimizer that it drives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from kdbench.core.recipe import Recipe


def learning_rate(recipe: Recipe, initial: float, epoch: int) -> float:
    """The learning rate during `epoch`, from 1; before the first (pretraining) the initial one."""
    return initial * SCHEDULES[recipe.schedule](recipe, max(epoch, 1))


def build_optimizer(recipe: Recipe, parameters: Iterable[torch.Tensor], lr: float) -> torch.optim.Optimizer:
    """The recipe's optimizer. Its learning rate is a tensor, from which recorded steps read what `set_learning_rate`
    wrote: on CUDA of float32, which its kernels require, elsewhere of float64, in which Python counts. Raises
    ValueError if there is nothing to train.
    """
    parameters = list(parameters)
    if not parameters:
        raise ValueError("there are no parameters to train")
    device = parameters[0].device
    rate = torch.tensor(lr, device=device, dtype=torch.float32 if device.type == "cuda" else torch.float64)
    return OPTIMIZERS[recipe.optimizer](recipe, parameters, rate)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """In place, for all parameters."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state that may come from another device or version: whether steps can be recorded is the device's own, and
    so is the tensor of the learning rate, which keeps its value.
    """
    kept = [{key: group[key] for key in _OWN if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, kept, strict=True):
        group.update(own)


def _step(recipe: Recipe, epoch: int) -> float:
    """One drop for each milestone that earlier epochs have reached: with the published 150, epoch 151 is the first at
    the lower rate (RepDistiller)."""
    return recipe.gamma ** sum(epoch - 1 >= milestone for milestone in recipe.milestones)


def _cosine(recipe: Recipe, epoch: int) -> float:
    """Half a cosine over all epochs (arXiv:1608.03983 without restarts)."""
    return (1 + math.cos(math.pi * (epoch - 1) / recipe.epochs)) / 2


def _sgd(recipe: Recipe, parameters: list[torch.Tensor], lr: torch.Tensor) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True)


def _adamw(recipe: Recipe, parameters: list[torch.Tensor], lr: torch.Tensor) -> torch.optim.Optimizer:
    capturable = parameters[0].is_cuda  # else it refuses to be recorded in a CUDA graph
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=recipe.weight_decay, fused=True, capturable=capturable)


_OWN: tuple[str, ...] = ("capturable", "lr")

SCHEDULES: Mapping[str, Callable[[Recipe, int], float]] = {"step": _step, "cosine": _cosine}
"""Name -> the factor of the initial learning rate in an epoch."""

OPTIMIZERS: Mapping[str, Callable[[Recipe, list[torch.Tensor], torch.Tensor], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}
