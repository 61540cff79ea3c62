"""An entry of the model registry; other packages offer entries through the entry-point group `kdbench.models`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from kdbench.core.catalog import ModelInfo

Construct = Callable[[int, int], nn.Module]
"""(number of classes, image size in pixels) -> model, called as `model(images, pre_activations=False) -> Output`.

A model may also have `get_classifier()`, the linear layer that turns embeddings into logits, and `stage_batch_norms()`,
the batch norm before the last activation of each stage. Methods that need these are `n/a` for models without them.
"""


@dataclass(frozen=True)
class Architecture:
    """Constructors of one architecture, which draw from torch's global generator."""

    info: ModelInfo
    construct: Construct  # with fresh weights; must also work on the meta device
    pretrained: Construct | None = None  # with pretrained weights, from which training then starts
