"""Accuracy over the whole test split."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import nn

from kdbench.core.data import Normalization
from kdbench.data.resident import Batch

EVALUATION_BATCH = 500


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Where networks run: bf16 arithmetic where it is safe, or plain float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def accuracy(
    network: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
    normalization: Normalization | None = None,
) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in per cent, in evaluation mode; with fewer than five classes top-5 counts them all.

    `statistics` are those that the network's images are normalized with; None: the data set's.
    """
    network.eval()
    hits = torch.zeros(2, dtype=torch.int64, device=device)
    seen = 0
    for batch in batches:
        with autocast(device, precision):
            logits = network(batch.images_for(normalization)).logits
        found = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]  # [B, 5]
        hits += torch.stack([found[:, 0].sum(), found.sum()])
        seen += len(batch.labels)
    top1, top5 = (100 * hits.double() / seen).tolist()
    return top1, top5
