"""Decoupled knowledge distillation: weigh the target class's part of the KL divergence apart from the other classes'.

Paper:    Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", arXiv:2203.08679, §3.
Loss:     With all logits divided by T: TCKD = T² · KL between the two-class distributions (target, all others);
          NCKD = T² · KL between the softmaxes over the other classes; both from teacher to student, averaged over the
          batch. min(epoch / warmup_epochs, 1) · (tckd_weight · TCKD + nckd_weight · NCKD), epochs from 1 on the
          scale of 240.
Defaults: tckd_weight (alpha) 1, nckd_weight (beta) 8, T = 4, 20 epochs of warm-up, CE 1: mdistiller's own, and its
          settings for resnet32x4:resnet8x4.
Differs:  the target is removed from NCKD exactly; mdistiller subtracts 1000 from its logit, with the same result.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Published, Range, Step, decoupled_kl, register


@dataclass(frozen=True)
class DKDHyper(Hyper):
    tckd_weight: Annotated[float, "multiplies the target-class term; the paper's alpha", Range(0.1, 10.0, log=True)] = (
        1.0
    )
    nckd_weight: Annotated[float, "multiplies the non-target term; the paper's beta", Range(0.5, 16.0, log=True)] = 8.0
    temperature: Annotated[float, "softens both sides of both terms", Range(1.0, 8.0)] = 4.0
    warmup_epochs: Annotated[int, "epochs of 240 in which the factor of both terms grows to 1"] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature", "warmup_epochs")


@register("dkd", DKDHyper, paper="arXiv:2203.08679", year=2022, kind="logits", group="modern")
class DKD(Distiller[DKDHyper]):
    """Compares logits; has no modules of its own."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, labels = self.hyper, step.batch.labels
        student, teacher = step.student.logits / hyper.temperature, step.teacher.logits / hyper.temperature
        factor = step.warm_up(hyper.warmup_epochs) * hyper.temperature**2
        tckd, nckd = decoupled_kl(student, teacher, labels)
        return {"tckd": factor * hyper.tckd_weight * tckd.mean(), "nckd": factor * hyper.nckd_weight * nckd.mean()}


GOLDEN = {
    "dkd": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        labels="labels",
        settings={"tckd_weight": "$alpha", "nckd_weight": "$beta", "temperature": "$T", "warmup_epochs": "$warmup"},
        terms={"tckd": "out.tckd/tckd_weight", "nckd": "out.nckd/nckd_weight"},
    )
}

PUBLISHED = (
    Published(
        source="mdistiller's configs/cifar100/dkd",
        pairs={
            "resnet56:resnet20": {"nckd_weight": 2.0},
            "resnet110:resnet32": {"nckd_weight": 2.0},
            "resnet32x4:resnet8x4": {"nckd_weight": 8.0},
            "wrn_40_2:wrn_16_2": {"nckd_weight": 6.0},
            "wrn_40_2:wrn_40_1": {"nckd_weight": 6.0},
            "vgg13:vgg8": {"nckd_weight": 6.0},
            "vgg13:MobileNetV2": {"nckd_weight": 6.0},
            "ResNet50:MobileNetV2": {"nckd_weight": 8.0},
            "resnet32x4:ShuffleV1": {"nckd_weight": 8.0},
            "resnet32x4:ShuffleV2": {"nckd_weight": 8.0},
            "wrn_40_2:ShuffleV1": {"nckd_weight": 8.0},
        },
    ),
)
