"""Contrastive representation distillation: tell a pair of views of one image from thousands of others, by NCE.

Paper:    Tian, Krishnan, Isola, "Contrastive Representation Distillation", arXiv:1910.10699, §3.
Loss:     Embeddings are linear and L2-normalized. A student anchor v scores memory rows m of the teacher by
          P(m|v) = exp(v·m / T) / Z; with K negatives of other classes and noise probability 1/N,
          -[ log P(own)/(P(own) + K/N) + Σ_neg log (K/N)/(P(neg) + K/N) ], averaged over the batch;
          the same with the teacher as anchor and the student's memory; crd_weight · (both).
          Z = N · mean score of the first batch, then constant. After each step the batch's rows of both memories
          become normalize(momentum · old + (1 - momentum) · new).
Defaults: weight 0.8, embedding 128, K = 16,384, T = 0.07, momentum 0.5: RepDistiller's scripts.
Differs:  K is at most the images of other classes, so that negatives are drawn without replacement as published.
          They are drawn anew for each image on the training device, and scored by one product with the whole memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import (
    Batch,
    Distiller,
    Hyper,
    NegativeSampler,
    Output,
    Shapes,
    initial_memory,
    mix,
    no_negatives,
    register,
    scores,
    smallest_pool,
)

EPS = 1e-7  # inside the logarithms, as in the authors' code


@dataclass(frozen=True)
class CRDHyper(Hyper):
    crd_weight: Annotated[float, "multiplies the sum of both NCE terms"] = 0.8
    feat_dim: Annotated[int, "dimensions of the common embedding"] = 128
    nce_k: Annotated[int, "negatives an image; at most the images of other classes"] = 16384
    nce_t: Annotated[float, "temperature of the scores"] = 0.07
    nce_m: Annotated[float, "momentum of the memories, 0 to 1"] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("feat_dim", "nce_k", "nce_t")
        if not 0 <= self.nce_m < 1:
            raise ValueError(f"nce_m must be at least 0 and below 1, got {self.nce_m}")


def nce(probabilities: Tensor, images: int) -> Tensor:
    """Noise-contrastive estimation with uniform noise.

    Args:
        probabilities: P(memory row | anchor), [B, 1 + K]; column 0 is the positive.
        images: N, the rows of the memory; the noise probability is 1/N.

    Returns:
        scalar in nats, summed over the columns and averaged over B.
    """
    noise = (probabilities.shape[1] - 1) / images
    positive, negative = probabilities[:, 0], probabilities[:, 1:]
    own = torch.log(positive / (positive + noise + EPS))  # [B]
    others = torch.log(noise / (negative + noise + EPS)).sum(dim=1)  # [B]
    return -(own + others).mean()


@register("crd", CRDHyper, paper="arXiv:1910.10699", core=True)
class CRD(Distiller[CRDHyper]):
    """`memory_student` and `memory_teacher` hold an embedding of every training image, [N, D].

    `Z_student` belongs to the term with the student as anchor, `Z_teacher` to the other; 0 means not yet set.
    """

    memory_student: Tensor
    memory_teacher: Tensor
    Z_student: Tensor
    Z_teacher: Tensor

    def __init__(self, hyper: CRDHyper, shapes: Shapes, generator: torch.Generator) -> None:
        super().__init__(hyper, shapes, generator)
        self.embed_student = nn.Linear(shapes.student.embedding, hyper.feat_dim)
        self.embed_teacher = nn.Linear(shapes.teacher.embedding, hyper.feat_dim)
        self.register_buffer("memory_student", initial_memory(len(shapes.labels), hyper.feat_dim))
        self.register_buffer("memory_teacher", initial_memory(len(shapes.labels), hyper.feat_dim))
        self.register_buffer("Z_student", torch.zeros(()))
        self.register_buffer("Z_teacher", torch.zeros(()))
        self.negatives: Callable[[Batch, torch.Generator], Tensor] = NegativeSampler(
            shapes.labels, min(hyper.nce_k, smallest_pool(shapes))
        )
        self._fresh: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @classmethod
    def supports(cls, hyper: CRDHyper, shapes: Shapes) -> str | None:
        return no_negatives(shapes)

    def losses(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        anchor_s = F.normalize(self.embed_student(student.embedding))  # [B, D]
        anchor_t = F.normalize(self.embed_teacher(teacher.embedding))
        rows = torch.cat([batch.indices[:, None], self.negatives(batch, self.generator)], dim=1)  # [B, 1 + K]
        scores_s, z_student = scores(anchor_s, self.memory_teacher, rows, self.Z_student, self.hyper.nce_t)
        scores_t, z_teacher = scores(anchor_t, self.memory_student, rows, self.Z_teacher, self.hyper.nce_t)
        self._fresh = (anchor_s.detach(), anchor_t.detach(), z_student, z_teacher)
        weight, images = self.hyper.crd_weight, len(self.memory_student)
        return {"nce_student": weight * nce(scores_s, images), "nce_teacher": weight * nce(scores_t, images)}

    def after_backward(self, batch: Batch) -> None:
        if self._fresh is None:
            raise RuntimeError("after_backward before losses")
        fresh_s, fresh_t, z_student, z_teacher = self._fresh
        self._fresh = None
        self.Z_student.copy_(z_student)
        self.Z_teacher.copy_(z_teacher)
        mix(self.memory_student, batch.indices, fresh_s, self.hyper.nce_m)
        mix(self.memory_teacher, batch.indices, fresh_t, self.hyper.nce_m)

    def extra_info(self) -> dict[str, bool | int | float | str]:
        return {"negatives": self.negatives.k} if isinstance(self.negatives, NegativeSampler) else {}
