"""Confidence-aware multi-teacher distillation: for each image, trust the teachers that are right about its label.

Paper:    Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", arXiv:2201.00007 (ICASSP 2022),
          its logit term.
Loss:     With K teachers, teacher k has the weight (1 - exp(CE_k) / Σ_j exp(CE_j)) / (K - 1) for an image, CE_k being
          its cross-entropy with the label. camkd_weight · the mean over images and teachers of weight · T² ·
          KL(softmax(teacher/T) ‖ softmax(student/T)).
Defaults: cross-entropy 1, camkd_weight 1, T = 4: the authors' script.
Differs:  the term of intermediate features (weight 50 there) is left out. The weights sum to 1 for each image; the
          authors' code divides the sum over the teachers by K once more, and so does this.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Hyper, Range, Requires, Step, register


@dataclass(frozen=True)
class CAMKDHyper(Hyper):
    camkd_weight: Annotated[float, "multiplies the weighted divergences", Range(0.1, 10.0, log=True)] = 1.0
    temperature: Annotated[float, "softens both sides of the divergences", Range(1.0, 16.0, log=True)] = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature")


def confidence_weights(teachers: Tensor, labels: Tensor) -> Tensor:
    """Weight of each teacher for each image [K, B], summing to 1 over K, of logits [K, B, C] and labels [B]."""
    errors = torch.stack([F.cross_entropy(logits, labels, reduction="none") for logits in teachers])
    return (1 - errors.softmax(dim=0)) / (len(teachers) - 1)


def divergences(student: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) for each teacher and image [K, B], of logits [B, C] and [K, B, C]."""
    log_q = (student / temperature).log_softmax(dim=-1)
    log_p = (teachers / temperature).log_softmax(dim=-1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)


@register("camkd", CAMKDHyper, paper="arXiv:2201.00007", year=2022, kind="logits", group="modern")
class CAMKD(Distiller[CAMKDHyper]):
    """Has no modules of its own."""

    @classmethod
    def requires(cls, hyper: CAMKDHyper) -> Requires:
        return Requires(min_teachers=2, max_teachers=None)

    def losses(self, step: Step) -> dict[str, Tensor]:
        teachers = torch.stack([teacher.logits for teacher in step.teachers])  # [K, B, C]
        weights = confidence_weights(teachers, step.batch.labels)
        terms = divergences(step.student.logits, teachers, self.hyper.temperature)
        return {"weighted": self.hyper.camkd_weight * (weights * terms).mean()}
