"""Parts of methods that predict by more than the student's network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models import Classifier


class FrozenClassifier(nn.Module):
    """The teacher's classifier as a part of a method that predicts with it; nothing trains it, and it is deployed."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, classifier: Classifier | None) -> None:
        super().__init__()
        assert classifier is not None, "the method's requires() must ask for the classifier"
        for name, value in zip(("weight", "bias"), classifier, strict=True):
            frozen = None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False)
            self.register_parameter(name, frozen)

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits [B, C] of embeddings [B, D] of the teacher's width."""
        return F.linear(embedding, self.weight, self.bias)


class Once:
    """Applies a module in training once to the same input, so that its batch norms see a batch once."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, module: nn.Module, features: Tensor) -> Tensor:
        """The module's output for features of any shape; that of the call before if they are the same tensor."""
        if not module.training:
            output: Tensor = module(features)
            return output
        if self._last is None or self._last[0] is not features:
            self._last = features, module(features)
        return self._last[1]

    def forget(self) -> None:
        """The step has ended."""
        self._last = None
