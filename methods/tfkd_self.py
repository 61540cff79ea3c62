"""Teacher-free KD by self-training: the teacher is the same network, trained on the labels before.

Paper:    Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization",
          arXiv:1909.11723 (CVPR 2020), §5. A control: how much a method gains from a teacher that knows no more.
Loss:     ce_weight · CE(labels) + tfkd_self_weight · multiplier · T² · KL(softmax(self/T) ‖ softmax(student/T)), the KL
          averaged over images and classes, so divided by B · C.
Defaults: weights 0.05 and 0.95 (alpha), T = 20, multiplier 1: the authors' for MobileNetV2 and ShuffleNetV2. For
          ResNet-18 they have T = 6 and the multiplier 50, which undoes the division by the number of classes.
Differs:  the earlier network is the student's vanilla trial of seed 0 for all seeds.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Range, Requires, Step, register, soft_kl


@dataclass(frozen=True)
class TFKDSelfHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels"] = 0.05
    tfkd_self_weight: Annotated[float, "weight of the divergence from the earlier network"] = 0.95
    multiplier: Annotated[float, "multiplies the divergence once more", Range(0.1, 1000.0, log=True)] = 1.0
    temperature: Annotated[float, "softens both sides of the divergence", Range(2.0, 40.0, log=True)] = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("multiplier", "temperature")


def kl_by_class(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student), averaged over images and classes, of logits [B, C]."""
    return soft_kl(student, teacher, temperature) / student.shape[1]


@register("tfkd_self", TFKDSelfHyper, paper="arXiv:1909.11723", year=2020, kind="control", group="control")
class TFKDSelf(Distiller[TFKDSelfHyper]):
    """Has no modules of its own."""

    @classmethod
    def requires(cls, hyper: TFKDSelfHyper) -> Requires:
        return Requires(extra_teachers=("self",), min_teachers=0, max_teachers=None)

    def losses(self, step: Step) -> dict[str, Tensor]:
        divergence = kl_by_class(step.student.logits, step.extra["self"].logits, self.hyper.temperature)
        return {"self": self.hyper.tfkd_self_weight * self.hyper.multiplier * divergence}


GOLDEN = {
    "tfkd_self": Golden(
        student={"logits": "y_s"},
        extra={"self": {"logits": "y_t"}},
        settings={"multiplier": "$multiplier", "temperature": "$T"},
    )
}
