"""A memory bank: embeddings of every training image by both networks, for contrastive methods.

Source: Wu, Xiong, Yu, Lin, arXiv:1805.01978, as contrastive representation distillation (arXiv:1910.10699) uses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.dataset import Batch
from kdbench.distill.step import Shapes


def lacks_negatives(shapes: Shapes) -> str | None:
    """For `supports`: that there is nothing to contrast with."""
    return None if smallest_pool(shapes.labels) > 0 else "all training images are of one class: there are no negatives"


def smallest_pool(labels: Tensor) -> int:
    """Images of other classes, for the most frequent class: so many negatives can be drawn for every image."""
    return len(labels) - int(labels.bincount().max())


class NegativeSampler:
    """Draws, for each image of a batch, `k` training images of other classes without replacement."""

    def __init__(self, labels: Tensor, k: int) -> None:
        self.labels, self.k = labels, k

    def __call__(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Rows of the training split, int64 [B, k]."""
        if self.labels.device != batch.labels.device:
            self.labels = self.labels.to(batch.labels.device)
        keys = torch.rand(len(batch.labels), len(self.labels), generator=generator, device=generator.device)  # [B, N]
        keys.masked_fill_(self.labels == batch.labels[:, None], -1.0)
        return keys.topk(self.k, dim=1, sorted=False).indices  # the k largest of iid keys: a uniform subset


class MemoryBank(nn.Module):
    """Two memories [N, D] with an embedding of every training image, by the student and by the teacher.

    `Z_student` and `Z_teacher` divide the scores of the student's and the teacher's anchors; 0 means not yet set, and
    the first batch sets them.
    """

    memory_student: Tensor
    memory_teacher: Tensor
    Z_student: Tensor
    Z_teacher: Tensor

    def __init__(self, labels: Tensor, dimensions: int, *, negatives: int, temperature: float, momentum: float) -> None:
        """`negatives` an image are at most the images of other classes. Draws from torch's global generator."""
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.negatives = min(negatives, smallest_pool(labels))
        self.sample_negatives: Callable[[Batch, torch.Generator], Tensor] = NegativeSampler(labels, self.negatives)
        for name in ("memory_student", "memory_teacher"):
            self.register_buffer(name, initial_memory(len(labels), dimensions))
        for name in ("Z_student", "Z_teacher"):
            self.register_buffer(name, torch.zeros(()))
        self._fresh: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def scores(
        self, student: Tensor, teacher: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Scores of each side's embeddings [B, D] (rows of length 1) against the other side's memory: both [B, 1 + K].

        Column 0 is the image itself, the others are negatives.
        """
        rows = torch.cat([batch.indices[:, None], self.sample_negatives(batch, generator)], dim=1)  # [B, 1 + K]
        of_student, z_student = nce_scores(student, self.memory_teacher, rows, self.Z_student, self.temperature)
        of_teacher, z_teacher = nce_scores(teacher, self.memory_student, rows, self.Z_teacher, self.temperature)
        self._fresh = (student.detach(), teacher.detach(), z_student, z_teacher)
        return of_student, of_teacher

    def update(self, batch: Batch) -> None:
        """Mix the batch's embeddings of the last `scores` into both memories. Raises RuntimeError if there are none."""
        if self._fresh is None:
            raise RuntimeError("the memory is updated before any scores were computed")
        student, teacher, z_student, z_teacher = self._fresh
        self._fresh = None
        self.Z_student.copy_(z_student)
        self.Z_teacher.copy_(z_teacher)
        momentum_update(self.memory_student, batch.indices, student, self.momentum)
        momentum_update(self.memory_teacher, batch.indices, teacher, self.momentum)


def initial_memory(rows: int, dimensions: int) -> Tensor:
    """[rows, dimensions], uniform with rows of length 1 on average; draws from torch's global generator."""
    bound = 1 / math.sqrt(dimensions / 3)
    return torch.empty(rows, dimensions).uniform_(-bound, bound)


def nce_scores(anchor: Tensor, memory: Tensor, rows: Tensor, z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """P(row | anchor) = exp(anchor·row / T) / Z, and the Z that was used.

    Args:
        anchor: [B, D], rows of length 1.
        memory: [N, D].
        rows: rows of the memory, int64 [B, 1 + K].
        z: scalar; 0 means not yet known: then N times the mean of this batch's exponentials, without gradient.

    Returns:
        [B, 1 + K] and a scalar.
    """
    raw = torch.exp((anchor @ memory.T).gather(1, rows) / temperature)
    z = torch.where(z > 0, z, raw.detach().mean() * len(memory))
    return raw / z, z


def momentum_update(memory: Tensor, indices: Tensor, fresh: Tensor, momentum: float) -> None:
    """Rows `indices` of the memory become normalize(momentum · old + (1 - momentum) · fresh), in place."""
    memory[indices] = F.normalize(momentum * memory[indices] + (1 - momentum) * fresh)
