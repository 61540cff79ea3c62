"""Similarity-preserving distillation: match the similarities between the images of a batch.

Paper:    Tung, Mori, "Similarity-Preserving Knowledge Distillation", arXiv:1907.09682, equations 1 to 4.
Loss:     G = F·Fᵀ with F the last feature map, flattened to [B, K·H·W]; rows of G divided by their L2 norm;
          sp_weight · ‖G_student - G_teacher‖² / B².
Defaults: sp_weight 3000: RepDistiller's scripts.
Differs:  uses the last feature map only, as the authors' experiments do.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Range, Shapes, Step, lacks_feature_maps, register


@dataclass(frozen=True)
class SPHyper(Hyper):
    sp_weight: Annotated[
        float, "multiplies the squared distance, which is small by construction", Range(300.0, 30000.0, log=True)
    ] = 3000.0


def batch_similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared Frobenius distance of the row-normalized Gram matrices, divided by B².

    Args:
        student, teacher: feature maps of the same images, [B, ...]; their shapes may differ beyond B.
    """
    rows = [feature_map.flatten(1) for feature_map in (student, teacher)]
    student_gram, teacher_gram = (F.normalize(row @ row.T) for row in rows)  # [B, B]
    return (student_gram - teacher_gram).square().sum() / len(student) ** 2


@register("sp", SPHyper, paper="arXiv:1907.09682", year=2019, kind="relations", group="paper")
class SP(Distiller[SPHyper]):
    """Has no modules of its own."""

    @classmethod
    def supports(cls, hyper: SPHyper, shapes: Shapes) -> str | None:
        return lacks_feature_maps(shapes)

    def losses(self, step: Step) -> dict[str, Tensor]:
        similarity = batch_similarity(step.student.feature_maps[-1], step.teacher.feature_maps[-1])
        return {"similarity": self.hyper.sp_weight * similarity}


GOLDEN = {"sp": Golden(student={"feature_maps": "g_s"}, teacher={"feature_maps": "g_t"})}
