"""The output of every model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, overload

from torch import Tensor

Classifier: TypeAlias = tuple[Tensor, Tensor | None]
"""Weight [C, D] and bias [C] (or None) of a linear classifier: logits = embedding @ weight.T + bias."""


class LazyTensors(Sequence[Tensor]):
    """Tensors that are converted when first read, so that feature maps no method reads cost nothing."""

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
            return tuple(self[index] for index in position)
        if position not in self._converted:
            self._converted[position] = self._convert(self._tensors[position])
        return self._converted[position]


@dataclass(frozen=True)
class Output:
    """The logits of one forward pass, and the intermediate results that methods distill."""

    logits: Tensor  # [B, C]
    feature_maps: Sequence[Tensor]  # [B, K, H, W] each: the stem's, then one per stage
    embedding: Tensor  # [B, D], the input of the classifier
    pre_activations: Sequence[Tensor] | None = None  # `feature_maps` before their activation; only on request
    classifier: Classifier | None = None  # only on request; detached for the teacher
    last_map: Tensor | None = None  # [B, D, H, W], whose mean over positions is the embedding; only on request

    def convert(self, convert: Callable[[Tensor], Tensor]) -> Output:
        """The same output with all its tensors converted, feature maps when they are read; the classifier is kept."""
        pre_activations = None if self.pre_activations is None else LazyTensors(self.pre_activations, convert)
        return replace(
            self,
            logits=convert(self.logits),
            feature_maps=LazyTensors(self.feature_maps, convert),
            embedding=convert(self.embedding),
            pre_activations=pre_activations,
            last_map=None if self.last_map is None else convert(self.last_map),
        )

    def materialize(self) -> Output:
        """The same output with its feature maps converted now."""
        pre_activations = None if self.pre_activations is None else tuple(self.pre_activations)
        return replace(self, feature_maps=tuple(self.feature_maps), pre_activations=pre_activations)

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the forward pass, without the classifier's."""
        last_map = () if self.last_map is None else (self.last_map,)
        return (self.logits, self.embedding, *self.feature_maps, *(self.pre_activations or ()), *last_map)
