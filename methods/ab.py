"""Activation boundaries: before the main training, the student learns where the teacher's neurons are active.

Paper:    Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
          arXiv:1811.03233, equation 7.
Loss:     Pretraining, on feature maps before the activation: s = connector(student) (convolution and batch norm; the
          identity where the shapes agree); (s + margin)² where s > -margin and the teacher's neuron is off,
          (s - margin)² where s <= margin and it is on; their sum over images, channels and positions, divided by B,
          times 2^(i - n + 1) for stage i = 0 ... n - 1 of n; ab_weight · 3/1000 · the sum over the stages.
          Main training: cross-entropy alone.
Defaults: margin 1: RepDistiller's code. ab_weight 1 acts in pretraining only: the beta of the published scripts has no
          effect, since their main training has no term of AB.
Differs:  pretraining trains the student's backbone and the connectors, not the classifier, at the student's learning
          rate, as RepDistiller does.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from kdbench.distill import (
    Context,
    ConvRegressor,
    Distiller,
    Golden,
    Hyper,
    Pretraining,
    Range,
    Requires,
    Shapes,
    Step,
    lacks_feature_maps,
    match_stages,
    register,
    sum_losses,
)


@dataclass(frozen=True)
class ABHyper(Hyper):
    ab_weight: Annotated[float, "multiplies the loss of the pretraining", Range(0.1, 10.0, log=True)] = 1.0
    margin: Annotated[
        float, "distance from the boundary beyond which a neuron costs nothing", Range(0.1, 10.0, log=True)
    ] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("margin")


def boundary_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Sum of the squared distances to the margin of the neurons that are on its wrong side, divided by B.

    Args:
        student, teacher: feature maps before the activation, both [B, K, H, W].
    """
    active = teacher > 0
    off = (student + margin).square() * ((student > -margin) & ~active)
    on = (student - margin).square() * ((student <= margin) & active)
    return (off + on).sum() / len(student)


class Connectors(nn.Module):
    """One connector for each pair of stages."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        pairs = match_stages(shapes.student.feature_maps, shapes.teacher.feature_maps)
        self.connectors = nn.ModuleList(
            nn.Identity() if student[:2] == teacher[:2] else ConvRegressor(student, teacher, relu=False)
            for student, teacher in pairs
        )


@register("ab", ABHyper, paper="arXiv:1811.03233", year=2019, kind="features", group="paper")
class AB(Distiller[ABHyper]):
    """Adds no term to the main training."""

    def __init__(self, hyper: ABHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.connector = Connectors(context)

    @classmethod
    def requires(cls, hyper: ABHyper) -> Requires:
        return Requires(pre_activations=True)

    @classmethod
    def supports(cls, hyper: ABHyper, shapes: Shapes) -> str | None:
        if reason := lacks_feature_maps(shapes):
            return reason
        reasons = (
            ConvRegressor.incompatibility(*pair)
            for pair in match_stages(shapes.student.feature_maps, shapes.teacher.feature_maps)
        )
        return next((reason for reason in reasons if reason), None)

    def pretraining(self) -> Pretraining:
        return Pretraining(student=True, modules=(self.connector,))

    def pretraining_losses(self, step: Step) -> dict[str, Tensor]:
        assert step.student.pre_activations is not None
        assert step.teacher.pre_activations is not None
        pairs = match_stages(step.student.pre_activations, step.teacher.pre_activations)
        last = len(pairs) - 1
        terms = (
            2.0 ** (stage - last) * boundary_loss(connector(student), teacher, self.hyper.margin)
            for stage, (connector, (student, teacher)) in enumerate(zip(self.connector.connectors, pairs, strict=True))
        )
        return {"boundary": self.hyper.ab_weight * 3 / 1000 * sum_losses(terms)}


GOLDEN = {
    "ab": Golden(
        student={"pre_activations": "g_s"},
        teacher={"pre_activations": "g_t"},
        settings={"margin": "$margin"},
        pretraining=True,
    )
}
