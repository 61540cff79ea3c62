"""FitNets: a regressor of one of the student's feature maps is fitted to the teacher's, the hint.

Paper:    Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550, equation 3.
Loss:     fitnet_weight · mean over all entries of (ReLU(BN(conv(student's map))) - teacher's map)².
Defaults: fitnet_weight 100, hint_layer 2 (0 is the stem): RepDistiller's scripts and code.
Differs:  the hint is matched throughout training, together with the labels; the paper does so in a pretraining.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import (
    Context,
    ConvRegressor,
    Distiller,
    Golden,
    Hyper,
    Range,
    Shapes,
    Step,
    lacks_feature_maps,
    register,
)


@dataclass(frozen=True)
class FitNetHyper(Hyper):
    fitnet_weight: Annotated[float, "multiplies the mean squared error", Range(10.0, 1000.0, log=True)] = 100.0
    hint_layer: Annotated[int, "index of the feature map: 0 is the stem's, i that of stage i", Range(1, 3)] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hint_layer < 0:
            raise ValueError(f"hint_layer must not be negative, got {self.hint_layer}")


@register("fitnet", FitNetHyper, paper="arXiv:1412.6550", year=2015, kind="features", group="paper")
class FitNet(Distiller[FitNetHyper]):
    """Trains `regressor` with the student."""

    def __init__(self, hyper: FitNetHyper, context: Context) -> None:
        super().__init__(hyper, context)
        layer = hyper.hint_layer
        self.regressor = ConvRegressor(
            context.student.feature_maps[layer], context.teacher.feature_maps[layer], relu=True
        )

    @classmethod
    def supports(cls, hyper: FitNetHyper, shapes: Shapes) -> str | None:
        if reason := lacks_feature_maps(shapes):
            return reason
        layer = hyper.hint_layer
        if layer >= min(len(shapes.student.feature_maps), len(shapes.teacher.feature_maps)):
            return f"one of the networks has no feature map {layer}"
        return ConvRegressor.incompatibility(shapes.student.feature_maps[layer], shapes.teacher.feature_maps[layer])

    def losses(self, step: Step) -> dict[str, Tensor]:
        layer = self.hyper.hint_layer
        error = F.mse_loss(self.regressor(step.student.feature_maps[layer]), step.teacher.feature_maps[layer])
        return {"hint": self.hyper.fitnet_weight * error}


GOLDEN = {
    "fitnet": Golden(student={"feature_maps": "f_s"}, teacher={"feature_maps": "f_t"}, settings={"hint_layer": 1})
}
