"""How often checkpoints are written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointInterval:
    """A checkpoint every `epochs` epochs or, if `minutes` is given, once so many have passed since the last."""

    epochs: int = 1
    minutes: float | None = None
