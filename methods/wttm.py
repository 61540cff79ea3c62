"""Weighted transformed teacher matching: TTM in which an image counts the more, the flatter the teacher's output is.

Paper:    Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv:2402.11148, §4.
Loss:     u = the teacher's probabilities to the power `exponent`, U = their sum over the classes, q = u / U;
          wttm_weight · U · KL(q ‖ softmax(student)), averaged over the batch. No T².
Defaults: CE 1, exponent 0.1 and wttm_weight 3: the authors' setting for resnet32x4:resnet8x4.
Differs:  in nothing; the weights U are not normalized over the batch.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Published, Range, Step, register


@dataclass(frozen=True)
class WTTMHyper(Hyper):
    wttm_weight: Annotated[float, "multiplies the divergence; the paper's beta", Range(0.5, 20.0, log=True)] = 3.0
    exponent: Annotated[
        float, "power of the teacher's probabilities; the paper's gamma = 1 / T", Range(0.05, 1.0, log=True)
    ] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("exponent")


def weighted_kl(student: Tensor, teacher: Tensor, exponent: float) -> Tensor:
    """Mean over B of U · KL(q ‖ softmax(student)), of logits [B, C]."""
    log_power = exponent * teacher.log_softmax(dim=1)  # of u
    log_sum = log_power.logsumexp(dim=1, keepdim=True)  # of U, [B, 1]
    log_q = log_power - log_sum
    return (log_power.exp() * (log_q - student.log_softmax(dim=1))).sum(dim=1).mean()  # u = U · q


@register("wttm", WTTMHyper, paper="arXiv:2402.11148", year=2024, kind="logits", group="modern")
class WTTM(Distiller[WTTMHyper]):
    """Compares logits; has no modules of its own."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        divergence = weighted_kl(step.student.logits, step.teacher.logits, self.hyper.exponent)
        return {"wttm": self.hyper.wttm_weight * divergence}


GOLDEN = {"wttm": Golden(student={"logits": "y_s"}, teacher={"logits": "y_t"}, settings={"exponent": "$l"})}

PUBLISHED = (
    Published(
        source="arXiv:2402.11148, appendix A.4",
        pairs={
            "wrn_40_2:wrn_16_2": {"exponent": 0.1, "wttm_weight": 4.0},
            "wrn_40_2:wrn_40_1": {"exponent": 0.1, "wttm_weight": 3.0},
            "resnet56:resnet20": {"exponent": 0.3, "wttm_weight": 1.5},
            "resnet110:resnet20": {"exponent": 0.2, "wttm_weight": 2.0},
            "resnet110:resnet32": {"exponent": 0.1, "wttm_weight": 1.5},
            "resnet32x4:resnet8x4": {"exponent": 0.1, "wttm_weight": 3.0},
            "vgg13:vgg8": {"exponent": 0.1, "wttm_weight": 2.25},
            "vgg13:MobileNetV2": {"exponent": 0.2, "wttm_weight": 3.0},
            "ResNet50:MobileNetV2": {"exponent": 0.2, "wttm_weight": 5.0},
            "ResNet50:vgg8": {"exponent": 0.1, "wttm_weight": 2.0},
            "resnet32x4:ShuffleV1": {"exponent": 0.2, "wttm_weight": 1.4},
            "resnet32x4:ShuffleV2": {"exponent": 0.4, "wttm_weight": 16.0},
            "wrn_40_2:ShuffleV1": {"exponent": 0.3, "wttm_weight": 3.0},
        },
    ),
)
