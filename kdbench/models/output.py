"""What every model returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

from torch import Tensor


class Maps(Sequence[Tensor]):
    """A tuple of maps, each changed when it is first looked at: maps that no method reads cost nothing."""

    def __init__(self, maps: Sequence[Tensor], change: Callable[[Tensor], Tensor]) -> None:
        self._maps, self._change = maps, change
        self._changed: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._maps)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Tensor, ...]: ...
    def __getitem__(self, index: int | slice) -> Tensor | tuple[Tensor, ...]:
        places = range(len(self._maps))[index]
        if isinstance(places, range):
            return tuple(self[place] for place in places)
        if places not in self._changed:
            self._changed[places] = self._change(self._maps[places])
        return self._changed[places]


@dataclass(frozen=True)
class Output:
    """One forward pass: logits, and what lies on the way to them."""

    logits: Tensor  # [B, C]
    feature_maps: Sequence[Tensor]  # each [B, K, H, W]: the stem's, then one a stage
    embedding: Tensor  # [B, D], what the classifier reads
    pre_activations: Sequence[Tensor] | None = None  # like `maps`, before the activation; only where asked for

    def convert(self, change: Callable[[Tensor], Tensor]) -> Output:
        """The same output with every tensor changed, maps when they are read: `output.convert(Tensor.float)`."""
        before = None if self.pre_activations is None else Maps(self.pre_activations, change)
        return Output(change(self.logits), Maps(self.feature_maps, change), change(self.embedding), before)

    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds, in an order of its own."""
        return (self.logits, self.embedding, *self.feature_maps, *(self.pre_activations or ()))
