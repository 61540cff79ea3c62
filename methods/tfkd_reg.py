"""Teacher-free KD by regularization: the teacher is a made-up distribution that is right about every label.

Paper:    Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization",
          arXiv:1909.11723 (CVPR 2020), §5. A control without any teacher.
Loss:     u is 0.99 at the label and 0.01 / (C - 1) at each other class; ce_weight · CE(labels) + tfkd_reg_weight ·
          multiplier · KL(softmax(u / T) ‖ softmax(student)), the KL averaged over images and classes, so divided by
          B · C.
Defaults: weights 0.05 and 0.95 (alpha), T = 40, multiplier 1: the authors' for MobileNetV2.
Differs:  in nothing. T softens probabilities, not logits, and there is no T², as in the authors' code: at T = 40 the
          target is nearly uniform.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Published, Range, Requires, Step, register

CORRECT = 0.99  # share of the label before softening


@dataclass(frozen=True)
class TFKDRegHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels"] = 0.05
    tfkd_reg_weight: Annotated[float, "weight of the divergence from the made-up distribution"] = 0.95
    multiplier: Annotated[float, "multiplies the divergence once more", Range(0.1, 1000.0, log=True)] = 1.0
    temperature: Annotated[float, "softens the made-up distribution", Range(0.1, 100.0, log=True)] = 40.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("multiplier", "temperature")


def virtual_teacher(labels: Tensor, like: Tensor, temperature: float) -> Tensor:
    """Log probabilities of the made-up distribution, of the shape and type of the logits `like`, [B, C]."""
    shares = torch.full_like(like, (1 - CORRECT) / (like.shape[1] - 1)).scatter(1, labels[:, None], CORRECT)
    return (shares / temperature).log_softmax(dim=1)


def kl_by_class(logits: Tensor, log_p: Tensor) -> Tensor:
    """KL(p ‖ softmax(logits)), averaged over images and classes, of logits and log p, [B, C]."""
    return F.kl_div(logits.log_softmax(dim=1), log_p, reduction="none", log_target=True).mean()


@register("tfkd_reg", TFKDRegHyper, paper="arXiv:1909.11723", year=2020, kind="control", group="control")
class TFKDReg(Distiller[TFKDRegHyper]):
    """Has no modules of its own."""

    @classmethod
    def requires(cls, hyper: TFKDRegHyper) -> Requires:
        return Requires(min_teachers=0, max_teachers=None)

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, logits = self.hyper, step.student.logits
        divergence = kl_by_class(logits, virtual_teacher(step.batch.labels, logits.detach(), hyper.temperature))
        return {"virtual": hyper.tfkd_reg_weight * hyper.multiplier * divergence}


GOLDEN = {
    "tfkd_reg": Golden(
        student={"logits": "y_s"},
        labels="labels",
        settings={"multiplier": "$multiplier", "temperature": "$T"},
    )
}

PUBLISHED = (
    Published(
        source="Teacher-free-Knowledge-Distillation's experiments/base_experiments, by student",
        pairs={
            "vgg13:MobileNetV2": {"temperature": 40.0},
            "ResNet50:MobileNetV2": {"temperature": 40.0},
            "resnet32x4:ShuffleV2": {"temperature": 10.0},
        },
    ),
)
