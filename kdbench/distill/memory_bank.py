"""What methods with a memory of all training images share: initial rows, negatives, normalized scores, the update.

Source: Wu, Xiong, Yu, Lin, arXiv:1805.01978, as contrastive representation distillation (arXiv:1910.10699) uses it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.resident import Batch
from kdbench.distill.distiller import Shapes


def initial_memory(rows: int, dimensions: int) -> Tensor:
    """[rows, dimensions], uniform with rows of length 1 on average; draws from torch's global generator."""
    bound = 1 / math.sqrt(dimensions / 3)
    return torch.empty(rows, dimensions).uniform_(-bound, bound)


def smallest_pool(shapes: Shapes) -> int:
    """Images of other classes, for the most frequent class: so many negatives can be drawn for every image."""
    return len(shapes.labels) - int(shapes.labels.bincount().max())


def no_negatives(shapes: Shapes) -> str | None:
    """For `supports`: that there is nothing to contrast with."""
    return None if smallest_pool(shapes) > 0 else "all training images are of one class: there are no negatives"


class NegativeSampler:
    """Draws, for each image of a batch, `k` training images of other classes without replacement."""

    def __init__(self, labels: Tensor, k: int) -> None:
        self.labels, self.k = labels, k

    def __call__(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Rows of the training split, [B, k] int64."""
        if self.labels.device != batch.labels.device:
            self.labels = self.labels.to(batch.labels.device)
        keys = torch.rand(len(batch.labels), len(self.labels), generator=generator, device=generator.device)  # [B, N]
        keys.masked_fill_(self.labels == batch.labels[:, None], -1.0)
        return keys.topk(self.k, dim=1, sorted=False).indices  # the k largest of equal-law keys: a uniform subset


def scores(anchor: Tensor, memory: Tensor, rows: Tensor, z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """P(row | anchor) = exp(anchor·row / T) / Z, and the Z that it used.

    Args:
        anchor: [B, D], rows of length 1.
        memory: [N, D].
        rows: rows of the memory, [B, 1 + K].
        z: scalar; 0 means not yet known: then N times the mean of this batch's exponentials, without gradient.

    Returns:
        [B, 1 + K] and a scalar.
    """
    raw = torch.exp((anchor @ memory.T).gather(1, rows) / temperature)
    z = torch.where(z > 0, z, raw.detach().mean() * len(memory))
    return raw / z, z


def mix(memory: Tensor, indices: Tensor, fresh: Tensor, momentum: float) -> None:
    """Rows `indices` of the memory become normalize(momentum · old + (1 - momentum) · fresh), in place."""
    memory[indices] = F.normalize(momentum * memory[indices] + (1 - momentum) * fresh)
