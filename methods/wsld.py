"""Weighted soft labels: an image's soft label counts the less, the better the student already fits its hard label.

Paper:    Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang, "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance
          Tradeoff Perspective", arXiv:2102.00650, §4.
Loss:     w = 1 - exp(-CE(student, label) / CE(teacher, label)), without gradient; wsld_weight · T² · w ·
          cross-entropy between softmax(teacher / T) and softmax(student / T), averaged over the batch.
Defaults: CE 1, wsld_weight (alpha) 2.25, T = 4: the authors' for CIFAR-100 (§5); 2.5 and 2 are theirs for ImageNet.
Differs:  1e-7 is added to the teacher's cross-entropy, as in the authors' code. The soft term is a cross-entropy, so
          that a student like its teacher has a loss above 0.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Range, Step, register

EPS = 1e-7  # added to the teacher's cross-entropy


@dataclass(frozen=True)
class WSLDHyper(Hyper):
    wsld_weight: Annotated[
        float, "multiplies the weighted soft term; the paper's alpha", Range(0.25, 25.0, log=True)
    ] = 2.25
    temperature: Annotated[float, "softens both sides", Range(1.0, 8.0)] = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature")


def image_weights(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """How much the soft label of each image counts, [B] in [0, 1], of logits [B, C]; without gradient."""
    student_ce, teacher_ce = (F.cross_entropy(side.detach(), labels, reduction="none") for side in (student, teacher))
    return -torch.expm1(-student_ce / (teacher_ce + EPS))


@register("wsld", WSLDHyper, paper="arXiv:2102.00650", year=2021, kind="logits", group="modern")
class WSLD(Distiller[WSLDHyper]):
    """Compares logits; has no modules of its own."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, student, teacher = self.hyper, step.student.logits, step.teacher.logits
        soft_labels = (teacher / hyper.temperature).softmax(dim=1)
        soft = -(soft_labels * (student / hyper.temperature).log_softmax(dim=1)).sum(dim=1)  # [B]
        weighted = image_weights(student, teacher, step.batch.labels) * soft
        return {"wsld": hyper.wsld_weight * hyper.temperature**2 * weighted.mean()}


GOLDEN = {
    "wsld": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        labels="labels",
        settings={"ce_weight": 1.0, "wsld_weight": "$alpha", "temperature": "$T"},
        terms={"ce": "out.hard", "wsld": "out.soft/wsld_weight"},
    )
}
