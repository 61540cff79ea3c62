"""Neuron selectivity transfer: match the distributions of channel activation patterns by maximum mean discrepancy.

Paper:    Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv:1707.01219,
          equation 6 with the polynomial kernel of equation 8 (degree 2, offset 0).
Loss:     For each pair of stages, with every channel of a feature map flattened and divided by its L2 norm:
          mean k(t, t') + mean k(s, s') - 2 mean k(s, t), k(a, b) = (a·b)²; nst_weight · the sum over the pairs.
Defaults: nst_weight 50: RepDistiller's scripts.
Differs:  the larger map of a pair is average-pooled to the smaller; all stages are used, as in RepDistiller.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import (
    Distiller,
    Golden,
    Hyper,
    Range,
    Shapes,
    Step,
    lacks_feature_maps,
    match_spatial_size,
    match_stages,
    register,
    sum_losses,
)


@dataclass(frozen=True)
class NSTHyper(Hyper):
    nst_weight: Annotated[
        float, "multiplies the sum over stages of the squared discrepancy", Range(5.0, 500.0, log=True)
    ] = 50.0


def squared_discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    """MMD² between the channels of two feature maps, averaged over images.

    Each kernel mean is over all pairs of channels, a channel with itself included.

    Args:
        student, teacher: feature maps [B, K, H, W]; K, H and W may differ. Gradients reach `student` only.
    """
    student, teacher = match_spatial_size(student, teacher)
    student, teacher = (F.normalize(side.flatten(2), dim=2) for side in (student, teacher.detach()))  # [B, K, H·W]
    return _mean_kernel(teacher, teacher) + _mean_kernel(student, student) - 2 * _mean_kernel(student, teacher)


def _mean_kernel(left: Tensor, right: Tensor) -> Tensor:
    """Mean of (a·b)² over the channels a of [B, K, N] and b of [B, L, N]."""
    return (left @ right.transpose(1, 2)).square().mean()


@register("nst", NSTHyper, paper="arXiv:1707.01219", year=2017, kind="features", group="paper")
class NST(Distiller[NSTHyper]):
    """Has no modules of its own."""

    @classmethod
    def supports(cls, hyper: NSTHyper, shapes: Shapes) -> str | None:
        return lacks_feature_maps(shapes)

    def losses(self, step: Step) -> dict[str, Tensor]:
        pairs = match_stages(step.student.feature_maps, step.teacher.feature_maps)
        return {"discrepancy": self.hyper.nst_weight * sum_losses(squared_discrepancy(*pair) for pair in pairs)}


GOLDEN = {"nst": Golden(student={"feature_maps": "g_s"}, teacher={"feature_maps": "g_t"})}
