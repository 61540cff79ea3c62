"""NormKD: soften each image's logits in proportion to their own spread.

Paper:    Chi, Zheng, Li, Yang, Wu, Lin, Cai, "NormKD: Normalized Logits for Knowledge Distillation", arXiv:2308.00520.
Loss:     T = temperature · standard deviation of an image's logits over the classes (divisor C - 1), for each side;
          normkd_weight · (the teacher's T)² · KL(softmax(teacher / its T) ‖ softmax(student / its T)), averaged over
          the batch. The gradient runs through the student's T.
Defaults: CE 0.1, normkd_weight 0.9, temperature 2: the authors' own, for all pairs.
Differs:  the deviation of equal logits, 0, counts as 1; the authors divide by it.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Range, Step, register


@dataclass(frozen=True)
class NormKDHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels", Range(0.01, 1.0, log=True)] = 0.1
    normkd_weight: Annotated[float, "multiplies the divergence", Range(0.09, 9.0, log=True)] = 0.9
    temperature: Annotated[float, "temperature of logits with standard deviation 1", Range(0.5, 8.0, log=True)] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature")


def deviation(logits: Tensor) -> Tensor:
    """The standard deviation [B, 1] of each image's logits [B, C]; 1 where it is 0."""
    spread = logits.std(dim=1, keepdim=True)
    return spread.masked_fill(spread == 0, 1.0)


def normalized_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over B of (teacher's temperature)² · KL of logits [B, C], each row softened by its own temperature."""
    student_temperature, teacher_temperature = (temperature * deviation(logits) for logits in (student, teacher))
    log_q = (student / student_temperature).log_softmax(dim=1)
    log_p = (teacher / teacher_temperature).log_softmax(dim=1)
    return (teacher_temperature.square() * F.kl_div(log_q, log_p, reduction="none", log_target=True)).sum(dim=1).mean()


@register("normkd", NormKDHyper, paper="arXiv:2308.00520", year=2023, kind="logits", group="modern")
class NormKD(Distiller[NormKDHyper]):
    """Compares logits; has no modules of its own."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        divergence = normalized_kl(step.student.logits, step.teacher.logits, self.hyper.temperature)
        return {"normkd": self.hyper.normkd_weight * divergence}


GOLDEN = {"normkd": Golden(student={"logits": "y_s"}, teacher={"logits": "y_t"}, settings={"temperature": "$t_norm"})}
