"""Activation boundaries: before training, the student learns where the teacher's neurons are active.

Paper:    Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
          arXiv:1811.03233, equation 7.
Loss:     In a stage of its own, on maps before the activation: s = connector(student) (convolution and batch norm, or
          nothing where the shapes agree); (s + margin)² where s > -margin and the teacher is off, (s - margin)² where
          s <= margin and it is on; summed over everything, over B, times 2^(i - n + 1) for stage i of n, times 3/1000.
          Then cross-entropy alone.
Defaults: margin 1: RepDistiller's code. The weight acts in the first stage only: the published scripts' beta has no
          effect, as their main stage has no term of AB.
Differs:  trains the student's feature modules and the connectors in the first stage, not the classifier, with the
          student's own rate, as RepDistiller does.
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
    ab_weight: Annotated[float, "multiplies the loss of the first stage"] = 1.0
    margin: Annotated[float, "how far beyond the boundary is far enough"] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("margin")


def boundary_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Squared distance to the margin of the neurons on the wrong side of it, summed over everything, divided by B.

    Args:
        student, teacher: maps before the activation, both [B, K, H, W].
    """
    active = teacher > 0
    off = (student + margin).square() * ((student > -margin) & ~active)
    on = (student - margin).square() * ((student <= margin) & active)
    return (off + on).sum() / len(student)


class Connectors(nn.Module):
    """One a pair of stages."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        pairs = match_stages(shapes.student.feature_maps, shapes.teacher.feature_maps)
        self.connectors = nn.ModuleList(
            nn.Identity() if student[:2] == teacher[:2] else ConvRegressor(student, teacher, relu=False)
            for student, teacher in pairs
        )


@register("ab", ABHyper, paper="arXiv:1811.03233", year=2019, kind="features", group="paper")
class AB(Distiller[ABHyper]):
    """Has no term in the main stage."""

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
            2.0 ** (number - last) * boundary_loss(connect(own), target, self.hyper.margin)
            for number, (connect, (own, target)) in enumerate(zip(self.connector.connectors, pairs, strict=True))
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
