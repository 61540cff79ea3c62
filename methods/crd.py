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

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import Context, Distiller, Golden, Hyper, MemoryBank, Shapes, Step, lacks_negatives, register

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
        of_student, of_teacher = self.bank.scores(student, teacher, step.batch, self.generator)  # [B, 1 + K]
        weight, images = self.hyper.crd_weight, len(self.bank.memory_student)
        return {"nce_student": weight * nce(of_student, images), "nce_teacher": weight * nce(of_teacher, images)}

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
