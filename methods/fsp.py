"""Flow of solution procedure: before the main training, the student learns how the teacher's maps relate to the next.

Paper:    Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation", CVPR 2017, equations 1 and 2.
Loss:     Pretraining: for each two consecutive feature maps (the stem's included) the matrix of inner products between
          the channels of the one and of the next, averaged over positions; mean squared difference of the student's and
          the teacher's matrix; fsp_weight · the sum over the pairs of maps. Main training: cross-entropy alone.
Defaults: fsp_weight 1: RepDistiller's code. It acts in pretraining only: the beta of the published scripts has no
          effect, since their main training has no term of FSP.
Differs:  the larger of two consecutive maps is average-pooled to the smaller, as in RepDistiller; the paper max-pools.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import (
    Distiller,
    Golden,
    Hyper,
    Pretraining,
    Range,
    Shapes,
    Step,
    lacks_feature_maps,
    match_spatial_size,
    register,
    sum_losses,
)


@dataclass(frozen=True)
class FSPHyper(Hyper):
    fsp_weight: Annotated[float, "multiplies the loss of the pretraining", Range(0.1, 10.0, log=True)] = 1.0


def flow(feature_maps: Sequence[Tensor]) -> list[Tensor]:
    """Inner products between the channels of consecutive feature maps, averaged over positions.

    Args:
        feature_maps: [B, K_i, H_i, W_i] for layer i.

    Returns:
        One matrix [B, K_i, K_(i+1)] for each i but the last.
    """
    matrices = []
    for lower, upper in pairwise(feature_maps):
        lower, upper = match_spatial_size(lower, upper)
        matrices.append(lower.flatten(2) @ upper.flatten(2).transpose(1, 2) / lower[0, 0].numel())
    return matrices


@register("fsp", FSPHyper, paper="CVPR 2017", year=2017, kind="relations", group="paper")
class FSP(Distiller[FSPHyper]):
    """Has no modules of its own, and adds no term to the main training."""

    @classmethod
    def supports(cls, hyper: FSPHyper, shapes: Shapes) -> str | None:
        if reason := lacks_feature_maps(shapes):
            return reason
        student, teacher = (
            [channels for channels, _, _ in side.feature_maps] for side in (shapes.student, shapes.teacher)
        )
        if student != teacher:
            return f"it needs equal channels, and the feature maps have {student} (student) and {teacher} (teacher)"
        return None

    def pretraining(self) -> Pretraining:
        return Pretraining(student=True)

    def pretraining_losses(self, step: Step) -> dict[str, Tensor]:
        pairs = zip(flow(step.student.feature_maps), flow(step.teacher.feature_maps), strict=True)
        return {"flow": self.hyper.fsp_weight * sum_losses(F.mse_loss(student, teacher) for student, teacher in pairs)}


GOLDEN = {"fsp": Golden(student={"feature_maps": "g_s"}, teacher={"feature_maps": "g_t"}, pretraining=True, stem=True)}
