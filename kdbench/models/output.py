"""What every model returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Output:
    """One forward pass: logits, and what lies on the way to them."""

    logits: Tensor  # [B, C]
    maps: tuple[Tensor, ...]  # each [B, K, H, W]: the stem's, then one a stage
    embedding: Tensor  # [B, D], what the classifier reads
    preact_maps: tuple[Tensor, ...] | None = None  # like `maps`, before the activation; only where asked for

    def convert(self, change: Callable[[Tensor], Tensor]) -> Output:
        """The same output with every tensor changed: `output.convert(Tensor.float)`."""
        before = None if self.preact_maps is None else tuple(map(change, self.preact_maps))
        return Output(change(self.logits), tuple(map(change, self.maps)), change(self.embedding), before)
