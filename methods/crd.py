"""Contrastive representation distillation: tell an image's pair of embeddings from those with other images, by NCE.

Paper:    Tian, Krishnan, Isola, "Contrastive Representation Distillation", arXiv:1910.10699, §3.
Loss:     Embeddings are linear and L2-normalized. A student anchor v scores memory rows m of the teacher by
          P(m|v) = exp(v·m / T) / Z; with K negatives of other classes and noise probability 1/N,
          -[ log P(pos)/(P(pos) + K/N) + Σ_neg log (K/N)/(P(neg) + K/N) ], averaged over the batch, pos being the row
          of the image itself; the same with the teacher as anchor and the student's memory;
          crd_weight · the sum of both. Z = N · mean of exp(v·m / T) in the first batch, then constant. After each step
          the batch's rows of both memories become normalize(momentum · old + (1 - momentum) · new).
Defaults: crd_weight 0.8, feat_dim 128, K = nce_k = 16,384, T = nce_t = 0.07, momentum nce_m = 0.5: RepDistiller's
          scripts.
Differs:  K is at most the number of images of other classes, so that negatives are drawn without replacement, as
          published. They are drawn anew for each image on the training device, and scored by one product with the
          memory.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import (
    Context,
    Distiller,
    Golden,
    Hyper,
    MemoryBank,
    Range,
    Shapes,
    Step,
    lacks_negatives,
    register,
)

EPS = 1e-7  # inside the logarithms, as in the authors' code


@dataclass(frozen=True)
class CRDHyper(Hyper):
    crd_weight: Annotated[float, "multiplies the sum of both NCE terms", Range(0.08, 8.0, log=True)] = 0.8
    feat_dim: Annotated[int, "dimensions of the common embedding"] = 128
    nce_k: Annotated[int, "negatives for each image; at most the images of other classes"] = 16384
    nce_t: Annotated[float, "temperature of the scores", Range(0.007, 0.7, log=True)] = 0.07
    nce_m: Annotated[float, "momentum of the memories, at least 0 and below 1", Range(0.0, 0.99)] = 0.5

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
        Scalar in nats, summed over the columns and averaged over B.
    """
    noise = (probabilities.shape[1] - 1) / images
    positive, negative = probabilities[:, 0], probabilities[:, 1:]
    log_positive = torch.log(positive / (positive + noise + EPS))  # [B]
    log_negatives = torch.log(noise / (negative + noise + EPS)).sum(dim=1)  # [B]
    return -(log_positive + log_negatives).mean()


@register("crd", CRDHyper, paper="arXiv:1910.10699", year=2020, kind="contrastive", group="paper")
class CRD(Distiller[CRDHyper]):
    """`bank` holds an embedding of every training image by both networks."""

    def __init__(self, hyper: CRDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.embed_student = nn.Linear(context.student.embedding_dim, hyper.feat_dim)
        self.embed_teacher = nn.Linear(context.teacher.embedding_dim, hyper.feat_dim)
        self.bank = MemoryBank(
            context.labels, hyper.feat_dim, negatives=hyper.nce_k, temperature=hyper.nce_t, momentum=hyper.nce_m
        )

    @classmethod
    def supports(cls, hyper: CRDHyper, shapes: Shapes) -> str | None:
        return lacks_negatives(shapes)

    def losses(self, step: Step) -> dict[str, Tensor]:
        student = F.normalize(self.embed_student(step.student.embedding))  # [B, D]
        teacher = F.normalize(self.embed_teacher(step.teacher.embedding))
        student_scores, teacher_scores = self.bank.scores(student, teacher, step.batch, self.generator)  # [B, 1 + K]
        weight, images = self.hyper.crd_weight, len(self.bank.memory_student)
        return {
            "nce_student": weight * nce(student_scores, images),
            "nce_teacher": weight * nce(teacher_scores, images),
        }

    def after_backward(self, step: Step) -> None:
        self.bank.update(step.batch)

    def extra_info(self) -> dict[str, bool | int | float | str]:
        return {"negatives": self.bank.negatives}


GOLDEN = {
    "crd": Golden(
        student={"embedding": "f_s"},
        teacher={"embedding": "f_t"},
        settings={"feat_dim": "$feat_dim", "nce_k": "$nce_k", "nce_t": "$nce_t", "nce_m": "$nce_m"},
        indices="idx",
        negatives="contrast_idx",
        images="n_data",
        state_prefix="bank.",
        terms={"nce_student": "student_term", "nce_teacher": "teacher_term"},
    )
}
