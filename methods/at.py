"""Attention transfer: look where the teacher looks.

Paper:    Zagoruyko, Komodakis, "Paying More Attention to Attention", arXiv:1612.03928, equation 2.
Loss:     For each pair of stages: attention = mean over channels of map², flattened, divided by its L2 norm; mean over
          images and positions of the squared difference; at_weight · the sum over the pairs.
Defaults: weight 1000: RepDistiller's scripts. The exponent is 2.
Differs:  from the paper's equation in taking the mean over positions instead of a norm, as the authors' code does.
          The larger map of a pair is average-pooled to the smaller.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from kdbench.distill import (
    Batch,
    Distiller,
    Hyper,
    Output,
    Shapes,
    attention,
    no_positions,
    pool_alike,
    register,
    stages,
    sum_of,
)


@dataclass(frozen=True)
class ATHyper(Hyper):
    at_weight: Annotated[float, "multiplies the sum over stages of the mean squared difference"] = 1000.0


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two attention maps.

    Args:
        student, teacher: maps [B, K, H, W]; K and size may differ.
    """
    student, teacher = pool_alike(student, teacher)
    return (attention(student) - attention(teacher)).square().mean()


@register("at", ATHyper, paper="arXiv:1612.03928", core=True)
class AT(Distiller[ATHyper]):
    """No helper modules."""

    @classmethod
    def serves(cls, hyper: ATHyper, shapes: Shapes) -> str | None:
        return no_positions(shapes)

    def losses(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        pairs = stages(student.maps, teacher.maps)
        return {"attention": self.hyper.at_weight * sum_of(attention_distance(*pair) for pair in pairs)}
