"""Invariant consistency distillation: contrast students with teachers in the batch, in both directions alike.

Paper:    Giakoumoglou, Stathaki, "Invariant Consistency for Knowledge Distillation", arXiv:2407.11802v1.
Loss:     With s_i, t_j the L2-normalized linear embeddings of student and teacher in a batch of B images,
          logits l_ij = min(exp(tau), max_tau) · s_i·t_j + b, tau and b learnable:
          contrastive = mean_i CE(softmax_j(l_ij), i);
          invariance = (1/B) Σ_i KL(q_i ‖ p_i), p_i = softmax_j(l_ij): student i over teachers,
          q_i = softmax_k(l_ki): teacher i over students;
          icd_weight · (contrastive + alpha · invariance).
Defaults: icd_weight 1, feat_dim 128, alpha 0.5, tau 1, b 0, max_tau 10: the authors' code (giakoumoglou/distillers).
Differs:  from the paper as the authors' code does: tau is the logarithm of the scale, which so starts at e; nothing is
          detached in the KL term, so that gradients reach q and the teacher's embedding. b cancels in every softmax:
          only weight decay moves it.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import Context, Distiller, Golden, Hyper, Range, Step, register


@dataclass(frozen=True)
class ICDHyper(Hyper):
    icd_weight: Annotated[float, "multiplies contrastive + alpha · invariance", Range(0.1, 10.0, log=True)] = 1.0
    alpha: Annotated[float, "weight of the invariance term", Range(0.0, 2.0)] = 0.5
    feat_dim: Annotated[int, "dimensions of the common embedding"] = 128
    init_tau: Annotated[float, "initial logarithm of the scale", Range(0.0, 2.0)] = 1.0
    init_b: Annotated[float, "initial bias of the logits"] = 0.0
    max_tau: Annotated[float, "upper bound of the scale exp(tau)", Range(1.0, 100.0, log=True)] = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("feat_dim", "max_tau")
        if self.alpha < 0:
            raise ValueError(f"alpha must not be negative, got {self.alpha}")


def contrastive_and_invariance(student: Tensor, teacher: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms of the loss, unweighted.

    Args:
        student, teacher: embeddings of the same images in the same order, [B, D], rows of length 1.
        scale, bias: scalars; logits are scale · cosine + bias.

    Returns:
        Contrastive and invariance term: scalars in nats, averaged over B.
    """
    logits = student @ teacher.T * scale + bias  # [B, B], rows: students, columns: teachers
    contrastive = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
    log_p = logits.log_softmax(dim=1)  # each student over the teachers
    log_q = logits.log_softmax(dim=0).T  # each teacher over the students
    return contrastive, (log_q.exp() * (log_q - log_p)).sum(dim=1).mean()


@register("icd", ICDHyper, paper="arXiv:2407.11802", year=2024, kind="contrastive", group="paper")
class ICD(Distiller[ICDHyper]):
    """Parameters carry the names of the authors' code: two embeddings, `log_temperature_tau`, `bias_b`."""

    def __init__(self, hyper: ICDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.embed_student = nn.Linear(context.student.embedding_dim, hyper.feat_dim)
        self.embed_teacher = nn.Linear(context.teacher.embedding_dim, hyper.feat_dim)
        self.log_temperature_tau = nn.Parameter(torch.tensor(hyper.init_tau))
        self.bias_b = nn.Parameter(torch.tensor(hyper.init_b))

    def losses(self, step: Step) -> dict[str, Tensor]:
        contrastive, invariance = contrastive_and_invariance(
            F.normalize(self.embed_student(step.student.embedding)),
            F.normalize(self.embed_teacher(step.teacher.embedding)),
            self.log_temperature_tau.exp().clamp(max=self.hyper.max_tau),
            self.bias_b,
        )
        weight = self.hyper.icd_weight
        return {"contrastive": weight * contrastive, "invariance": weight * self.hyper.alpha * invariance}


GOLDEN = {
    "icd": Golden(
        student={"embedding": "f_s"},
        teacher={"embedding": "f_t"},
        settings={"feat_dim": "$feat_dim", "alpha": "$alpha", "max_tau": "$max_tau"},
        terms={"contrastive": "out.contrastive", "invariance": "out.invariance/alpha"},
    )
}
