"""FitNets: a regressor of one student map should equal the teacher's map, the hint.

Paper:    Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550, equation 3.
Loss:     fitnet_weight · mean over all entries of (ReLU(BN(conv(student map))) - teacher map)².
Defaults: weight 100, hint layer 2 (0 is the stem): RepDistiller's scripts and code.
Differs:  one stage: the hint is matched throughout training together with the labels, not in a first stage of its own.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Context, ConvRegressor, Distiller, Golden, Hyper, Shapes, Step, lacks_feature_maps, register


@dataclass(frozen=True)
class FitNetHyper(Hyper):
    fitnet_weight: Annotated[float, "multiplies the mean squared error"] = 100.0
    hint_layer: Annotated[int, "which map: 0 is the stem, then one a stage"] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hint_layer < 0:
            raise ValueError(f"hint_layer must not be negative, got {self.hint_layer}")


@register("fitnet", FitNetHyper, paper="arXiv:1412.6550", year=2015, kind="features", group="paper")
class FitNet(Distiller[FitNetHyper]):
    """`regressor` is trained with the student."""

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
            return f"there is no map {layer} in both networks"
        return ConvRegressor.incompatibility(shapes.student.feature_maps[layer], shapes.teacher.feature_maps[layer])

    def losses(self, step: Step) -> dict[str, Tensor]:
        layer = self.hyper.hint_layer
        error = F.mse_loss(self.regressor(step.student.feature_maps[layer]), step.teacher.feature_maps[layer])
        return {"hint": self.hyper.fitnet_weight * error}


GOLDEN = {
    "fitnet": Golden(student={"feature_maps": "f_s"}, teacher={"feature_maps": "f_t"}, settings={"hint_layer": 1})
}
