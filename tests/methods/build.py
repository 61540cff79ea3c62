"""Distillers and their inputs, built by hand for tests of one method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdbench.core.trial import Value
from kdbench.distill import Batch, Output, Shapes, registry
from kdbench.models import FeatureShapes


def make(
    name: str, settings: Mapping[str, Value], *, student: int, teacher: int, labels: Tensor, dtype: torch.dtype
) -> Any:
    """The distiller that trains, in the given precision."""
    wide = FeatureShapes((), False, student), FeatureShapes((), False, teacher)
    shapes = Shapes(*wide, int(labels.max()) + 1, labels)
    return registry.distiller(name)(registry.hyper_of(name, settings), shapes, torch.Generator()).to(dtype)


def pooled(embedding: Tensor) -> Output:
    return Output(embedding.new_zeros(len(embedding), 2), (), embedding)


def batch_of(size: int, indices: Tensor | None = None, labels: Tensor | None = None) -> Batch:
    rows = torch.arange(size)
    return Batch(torch.empty(size, 0), rows if labels is None else labels, rows if indices is None else indices)
