"""Accuracy of many networks in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from kdbench.data.dataset import Batch

K = TypeVar("K")

EVALUATION_BATCH = 500


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Where networks run: bf16 arithmetic where it is safe, or plain float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@dataclass(frozen=True)
class Accuracy:
    """In per cent; with fewer than five classes top-5 counts them all."""

    top1: float
    top5: float


@torch.no_grad()
def evaluate(
    networks: Mapping[K, Callable[[Batch], Tensor]],
    batches: Iterable[Batch],
    device: torch.device,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[K, Accuracy | Exception]:
    """The accuracy of each network over all batches, or what it raised; one failure leaves the others.

    `networks` return logits [B, C] and must be in evaluation mode. `after_batch` is called after every batch.
    """
    hits = {key: torch.zeros(2, dtype=torch.int64, device=device) for key in networks}
    errors: dict[K, Exception] = {}
    count = 0
    for batch in batches:
        for key, predict in networks.items():
            if key in errors:
                continue
            try:
                logits = predict(batch)
                ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]  # [B, 5]
                hits[key] += torch.stack([ranked[:, 0].sum(), ranked.sum()])
            except Exception as error:
                errors[key] = error
        count += len(batch.labels)
        after_batch()
    return {key: errors.get(key) or Accuracy(*(100 * hits[key].double() / count).tolist()) for key in networks}
