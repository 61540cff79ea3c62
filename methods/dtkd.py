"""Dynamic temperature distillation: each image's temperatures bring the largest logits of both sides together.

Paper:    Wei, Bai, "Dynamic Temperature Knowledge Distillation", arXiv:2404.12711, §3.
Loss:     With an image's largest logits a (student) and b (teacher), T_s = 2a / (a + b) · T and T_t = 2b / (a + b) · T;
          dynamic = T_s · T_t · KL(softmax(teacher / T_t) ‖ softmax(student / T_s)), fixed = T² · KL at T, both averaged
          over the batch; min(epoch / warmup_epochs, 1) · (dynamic_weight · dynamic + fixed_weight · fixed), epochs from
          1 on the scale of 240. The gradient runs through a in both temperatures.
Defaults: CE 1, dynamic_weight (alpha) 3, fixed_weight (beta) 1, T = 4, 20 epochs of warm-up: the authors' own.
Differs:  the authors assume that a and b are positive; where one is not, both temperatures are T here. They call
          formulas 4 and 5 of the paper wrong: the temperatures are those of their code.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Published, Range, Step, register, soft_kl


@dataclass(frozen=True)
class DTKDHyper(Hyper):
    dynamic_weight: Annotated[
        float, "multiplies the divergence at the images' temperatures; the paper's alpha", Range(0.3, 30.0, log=True)
    ] = 3.0
    fixed_weight: Annotated[
        float, "multiplies the divergence at the fixed temperature; the paper's beta", Range(0.1, 10.0, log=True)
    ] = 1.0
    temperature: Annotated[float, "fixed temperature, and the mean of an image's two", Range(1.0, 8.0)] = 4.0
    warmup_epochs: Annotated[int, "epochs of 240 in which the factor of both terms grows to 1"] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature", "warmup_epochs")


def temperatures(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's temperature [B, 1] for each image of logits [B, C]."""
    a, b = student.amax(dim=1, keepdim=True), teacher.amax(dim=1, keepdim=True)
    undefined = (a <= 0) | (b <= 0)
    a, b = a.masked_fill(undefined, 1.0), b.masked_fill(undefined, 1.0)
    return 2 * temperature * a / (a + b), 2 * temperature * b / (a + b)


def dynamic_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over B of T_s · T_t · KL of logits [B, C], each row softened by its own temperature."""
    student_temperature, teacher_temperature = temperatures(student, teacher, temperature)
    log_q = (student / student_temperature).log_softmax(dim=1)
    log_p = (teacher / teacher_temperature).log_softmax(dim=1)
    return (
        (student_temperature * teacher_temperature * F.kl_div(log_q, log_p, reduction="none", log_target=True))
        .sum(dim=1)
        .mean()
    )


@register("dtkd", DTKDHyper, paper="arXiv:2404.12711", year=2024, kind="logits", group="modern")
class DTKD(Distiller[DTKDHyper]):
    """Compares logits; has no modules of its own."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, logits = self.hyper, (step.student.logits, step.teacher.logits)
        factor = step.warm_up(hyper.warmup_epochs)
        return {
            "dynamic": factor * hyper.dynamic_weight * dynamic_kl(*logits, hyper.temperature),
            "fixed": factor * hyper.fixed_weight * soft_kl(*logits, hyper.temperature),
        }


GOLDEN = {
    "dtkd": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        settings={
            "dynamic_weight": "$alpha",
            "fixed_weight": "$beta",
            "temperature": "$T",
            "warmup_epochs": "$warmup",
        },
        terms={"dynamic": "out.dynamic/dynamic_weight", "fixed": "out.kd/fixed_weight"},
    )
}

PUBLISHED = (
    Published(
        source="DTKD's configs/cifar100/dtkd",
        pairs={
            "resnet56:resnet20": {"dynamic_weight": 1.0, "fixed_weight": 0.5},
            "resnet110:resnet32": {"dynamic_weight": 1.0, "fixed_weight": 0.5},
            "resnet32x4:resnet8x4": {"dynamic_weight": 3.0, "fixed_weight": 1.0},
            "wrn_40_2:wrn_16_2": {"dynamic_weight": 3.0, "fixed_weight": 1.0},
            "wrn_40_2:wrn_40_1": {"dynamic_weight": 1.0, "fixed_weight": 0.5},
            "vgg13:vgg8": {"dynamic_weight": 3.0, "fixed_weight": 1.0},
            "vgg13:MobileNetV2": {"dynamic_weight": 3.0, "fixed_weight": 1.0},
            "ResNet50:MobileNetV2": {"dynamic_weight": 3.0, "fixed_weight": 2.0},
            "resnet32x4:ShuffleV1": {"dynamic_weight": 3.0, "fixed_weight": 1.0},
            "resnet32x4:ShuffleV2": {"dynamic_weight": 3.0, "fixed_weight": 1.0},
            "wrn_40_2:ShuffleV1": {"dynamic_weight": 2.0, "fixed_weight": 0.5},
        },
    ),
)
