"""Flow of solution procedure: before training, the student learns how the teacher's maps relate from layer to layer.

Paper:    Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation", CVPR 2017, equations 1 and 2.
Loss:     In a stage of its own: for consecutive maps (the stem included) the matrix of inner products between the
          channels of one and of the next, averaged over positions; mean squared difference of student's and teacher's
          matrix; fsp_weight · the sum over the pairs of maps. Then cross-entropy alone.
Defaults: weight 1: RepDistiller's code. The weight acts in the first stage only: the published scripts' beta has no
          effect, as their main stage has no term of FSP.
Differs:  the larger of two consecutive maps is average-pooled (the paper: max-pooled) to the smaller: RepDistiller.
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
    Shapes,
    Step,
    lacks_feature_maps,
    match_spatial_size,
    register,
    sum_losses,
)


@dataclass(frozen=True)
class FSPHyper(Hyper):
    fsp_weight: Annotated[float, "multiplies the loss of the first stage"] = 1.0


def flow(maps: Sequence[Tensor]) -> list[Tensor]:
    """Matrices [B, K of a map, K of the next] of maps [B, K, H, W]: inner products averaged over positions."""
    found = []
    for bottom, top in pairwise(maps):
        bottom, top = match_spatial_size(bottom, top)
        found.append(bottom.flatten(2) @ top.flatten(2).transpose(1, 2) / bottom[0, 0].numel())
    return found


@register("fsp", FSPHyper, paper="CVPR 2017", year=2017, kind="relations", group="paper")
class FSP(Distiller[FSPHyper]):
    """Has no helper modules, and no term in the main stage."""

    @classmethod
    def supports(cls, hyper: FSPHyper, shapes: Shapes) -> str | None:
        if reason := lacks_feature_maps(shapes):
            return reason
        own, target = ([shape[0] for shape in side.feature_maps] for side in (shapes.student, shapes.teacher))
        if own != target:
            return f"it needs equal channels, and the maps have {own} (student) and {target} (teacher)"
        return None

    def pretraining(self) -> Pretraining:
        return Pretraining(student=True)

    def pretraining_losses(self, step: Step) -> dict[str, Tensor]:
        pairs = zip(flow(step.student.feature_maps), flow(step.teacher.feature_maps), strict=True)
        return {"flow": self.hyper.fsp_weight * sum_losses(F.mse_loss(own, target) for own, target in pairs)}


GOLDEN = {"fsp": Golden(student={"feature_maps": "g_s"}, teacher={"feature_maps": "g_t"}, pretraining=True, stem=True)}
