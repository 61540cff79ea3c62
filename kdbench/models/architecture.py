"""What the zoo holds of each architecture; packages of models offer these through the entry points `kdbench.models`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from kdbench.core.catalog import ModelInfo

Construct = Callable[[int, int], nn.Module]
"""(classes, pixels a side) -> a model that is called as `model(images, pre_activations=False) -> Output`."""


@dataclass(frozen=True)
class Architecture:
    """A way to make models. Both constructors draw from torch's global generator."""

    info: ModelInfo
    construct: Construct  # with fresh weights; must also work on the meta device
    pretrained: Construct | None = None  # with the weights that training starts from, if these are not fresh
