"""What every model returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, overload

from torch import Tensor

Classifier: TypeAlias = tuple[Tensor, Tensor | None]
"""Weight [C, D] and bias [C] (or None) of a linear classifier: logits = embedding @ weight.T + bias."""


class LazyTensors(Sequence[Tensor]):
    """Tensors that are converted when they are first read: feature maps that no method reads cost nothing."""

    def __init__(self, tensors: Sequence[Tensor], convert: Callable[[Tensor], Tensor]) -> None:
        self._tensors, self._convert = tensors, convert
        self._converted: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._tensors)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Tensor, ...]: ...
    def __getitem__(self, index: int | slice) -> Tensor | tuple[Tensor, ...]:
        position = range(len(self._tensors))[index]
        if isinstance(position, range):
            return tuple(self[each] for each in position)
        if position not in self._converted:
            self._converted[position] = self._convert(self._tensors[position])
        return self._converted[position]


@dataclass(frozen=True)
class Output:
    """One forward pass: logits, and the intermediate results that methods distill."""

    logits: Tensor  # [B, C]
    feature_maps: Sequence[Tensor]  # each [B, K, H, W]: the stem's, then one a stage
    embedding: Tensor  # [B, D], the input of the classifier
    pre_activations: Sequence[Tensor] | None = None  # like `feature_maps`, before the activation; only on request
    classifier: Classifier | None = None  # only on request: live for the student, detached for the teacher

    def convert(self, convert: Callable[[Tensor], Tensor]) -> Output:
        """The same output with every tensor but the classifier's converted, feature maps when they are read."""
        before = None if self.pre_activations is None else LazyTensors(self.pre_activations, convert)
        maps = LazyTensors(self.feature_maps, convert)
        return replace(
            self,
            logits=convert(self.logits),
            feature_maps=maps,
            embedding=convert(self.embedding),
            pre_activations=before,
        )

    def read_all(self) -> Output:
        """The same output with every feature map converted now."""
        before = None if self.pre_activations is None else tuple(self.pre_activations)
        return replace(self, feature_maps=tuple(self.feature_maps), pre_activations=before)

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the forward pass, the classifier's left out."""
        return (self.logits, self.embedding, *self.feature_maps, *(self.pre_activations or ()))
