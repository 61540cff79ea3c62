"""Attention transfer: match where the feature maps of student and teacher are large.

Paper:    Zagoruyko, Komodakis, "Paying More Attention to Attention", arXiv:1612.03928, equation 2.
Loss:     For each pair of stages: attention = mean over channels of map², flattened, divided by its L2 norm; mean over
          images and positions of the squared difference; at_weight · the sum over the pairs.
Defaults: at_weight 1000, exponent 2: RepDistiller's scripts.
Differs:  takes the mean over positions where the paper's equation has a norm, as the authors' code does. The larger
          feature map of a pair is average-pooled to the smaller.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from kdbench.distill import (
    Distiller,
    Golden,
    Hyper,
    Range,
    Shapes,
    Step,
    attention,
    lacks_positions,
    match_spatial_size,
    match_stages,
    register,
    sum_losses,
)


@dataclass(frozen=True)
class ATHyper(Hyper):
    at_weight: Annotated[
        float, "multiplies the sum over stages of the mean squared difference", Range(100.0, 10000.0, log=True)
    ] = 1000.0


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the attention of two feature maps.

    Args:
        student, teacher: feature maps [B, K, H, W]; K, H and W may differ.
    """
    student, teacher = match_spatial_size(student, teacher)
    return (attention(student) - attention(teacher)).square().mean()


@register("at", ATHyper, paper="arXiv:1612.03928", year=2017, kind="features", group="paper")
class AT(Distiller[ATHyper]):
    """Has no modules of its own."""

    @classmethod
    def supports(cls, hyper: ATHyper, shapes: Shapes) -> str | None:
        return lacks_positions(shapes)

    def losses(self, step: Step) -> dict[str, Tensor]:
        pairs = match_stages(step.student.feature_maps, step.teacher.feature_maps)
        return {"attention": self.hyper.at_weight * sum_losses(attention_distance(*pair) for pair in pairs)}


GOLDEN = {"at": Golden(student={"feature_maps": "g_s"}, teacher={"feature_maps": "g_t"})}
