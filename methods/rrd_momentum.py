"""Relational representation distillation with a memory bank: match how scores are distributed over its rows.

Paper:    Giakoumoglou, Stathaki, "Relational Representation Distillation", arXiv:2407.12073.
Loss:     As `rrd`, with the two memories, the constants Z and the negatives of CRD (arXiv:1910.10699) instead of a
          queue: rrd_momentum_weight · mean over images of the cross-entropy between softmax(teacher / nce_t_t),
          detached, and softmax(student / nce_t_s). Divided by these temperatures are CRD's scores
          exp(similarity / nce_t) / Z, so that exponentials are taken twice.
Defaults: rrd_momentum_weight 1, feat_dim 128, nce_k 16,384, nce_t_s 0.1, nce_t_t 0.02, nce_t 0.07, nce_m 0.5: the
          authors' scripts of 2025 (giakoumoglou/distillers).
Differs:  in the temperatures, as `rrd`. The teacher's embedding receives no gradient and stays as it was drawn.
          Negatives are drawn anew for each image, at most as many as there are images of other classes.
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
    soft_cross_entropy,
)


@dataclass(frozen=True)
class RRDMomentumHyper(Hyper):
    rrd_momentum_weight: Annotated[float, "multiplies the cross-entropy", Range(0.1, 10.0, log=True)] = 1.0
    feat_dim: Annotated[int, "dimensions of the common embedding"] = 128
    nce_k: Annotated[int, "negatives for each image; at most the images of other classes"] = 16384
    nce_t_s: Annotated[float, "temperature of the student's scores", Range(0.01, 1.0, log=True)] = 0.1
    nce_t_t: Annotated[float, "temperature of the teacher's scores", Range(0.002, 0.2, log=True)] = 0.02
    nce_t: Annotated[float, "temperature of the similarities in the scores", Range(0.007, 0.7, log=True)] = 0.07
    nce_m: Annotated[float, "momentum of the memories, at least 0 and below 1", Range(0.0, 0.99)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("feat_dim", "nce_k", "nce_t_s", "nce_t_t", "nce_t")
        if not 0 <= self.nce_m < 1:
            raise ValueError(f"nce_m must be at least 0 and below 1, got {self.nce_m}")


@register("rrd_momentum", RRDMomentumHyper, paper="arXiv:2407.12073", year=2024, kind="contrastive", group="modern")
class RRDMomentum(Distiller[RRDMomentumHyper]):
    """`bank` holds an embedding of every training image by both networks."""

    def __init__(self, hyper: RRDMomentumHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.embed_student = nn.Linear(context.student.embedding_dim, hyper.feat_dim)
        self.embed_teacher = nn.Linear(context.teacher.embedding_dim, hyper.feat_dim)
        self.bank = MemoryBank(
            context.labels, hyper.feat_dim, negatives=hyper.nce_k, temperature=hyper.nce_t, momentum=hyper.nce_m
        )

    @classmethod
    def supports(cls, hyper: RRDMomentumHyper, shapes: Shapes) -> str | None:
        return lacks_negatives(shapes)

    def losses(self, step: Step) -> dict[str, Tensor]:
        student = F.normalize(self.embed_student(step.student.embedding))  # [B, D]
        with torch.no_grad():
            teacher = F.normalize(self.embed_teacher(step.teacher.embedding))
        student_scores, teacher_scores = self.bank.scores(student, teacher, step.batch, self.generator)  # [B, 1 + K]
        relation = soft_cross_entropy(student_scores / self.hyper.nce_t_s, teacher_scores / self.hyper.nce_t_t)
        return {"relation": self.hyper.rrd_momentum_weight * relation}

    def after_backward(self, step: Step) -> None:
        self.bank.update(step.batch)

    def extra_info(self) -> dict[str, bool | int | float | str]:
        return {"negatives": self.bank.negatives}


GOLDEN = {
    "rrd_momentum": Golden(
        student={"embedding": "f_s"},
        teacher={"embedding": "f_t"},
        settings={
            "feat_dim": "$feat_dim",
            "nce_k": "$nce_k",
            "nce_t": "$nce_t",
            "nce_m": "$nce_m",
            "nce_t_s": "$nce_t_s",
            "nce_t_t": "$nce_t_t",
        },
        indices="idx",
        negatives="contrast_idx",
        images="n_data",
        state_prefix="bank.",
    )
}
