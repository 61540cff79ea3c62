"""Transformed teacher matching: the student at temperature 1 imitates a power of the teacher's class probabilities.

Paper:    Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv:2402.11148, §3.
Loss:     q = the teacher's probabilities to the power `exponent`, renormalized (its softmax at temperature
          1 / exponent); ttm_weight · KL(q ‖ softmax(student)), averaged over the batch. No T².
Defaults: CE 1, exponent 0.1 and ttm_weight 100: the authors' setting for resnet32x4:resnet8x4.
Differs:  in nothing.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Published, Range, Step, register, soft_kl


@dataclass(frozen=True)
class TTMHyper(Hyper):
    ttm_weight: Annotated[float, "multiplies the divergence; the paper's beta", Range(5.0, 200.0, log=True)] = 100.0
    exponent: Annotated[
        float, "power of the teacher's probabilities; the paper's gamma = 1 / T", Range(0.05, 1.0, log=True)
    ] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("exponent")


@register("ttm", TTMHyper, paper="arXiv:2402.11148", year=2024, kind="logits", group="modern")
class TTM(Distiller[TTMHyper]):
    """Compares logits; has no modules of its own."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        transformed = self.hyper.exponent * step.teacher.logits  # logits of q
        return {"ttm": self.hyper.ttm_weight * soft_kl(step.student.logits, transformed, temperature=1.0)}


GOLDEN = {"ttm": Golden(student={"logits": "y_s"}, teacher={"logits": "y_t"}, settings={"exponent": "$l"})}

PUBLISHED = (
    Published(
        source="arXiv:2402.11148, appendix A.4",
        pairs={
            "wrn_40_2:wrn_16_2": {"exponent": 0.1, "ttm_weight": 101.0},
            "wrn_40_2:wrn_40_1": {"exponent": 0.1, "ttm_weight": 76.0},
            "resnet56:resnet20": {"exponent": 0.3, "ttm_weight": 7.0},
            "resnet110:resnet20": {"exponent": 0.2, "ttm_weight": 8.0},
            "resnet110:resnet32": {"exponent": 0.1, "ttm_weight": 33.0},
            "resnet32x4:resnet8x4": {"exponent": 0.1, "ttm_weight": 100.0},
            "vgg13:vgg8": {"exponent": 0.1, "ttm_weight": 45.0},
            "vgg13:MobileNetV2": {"exponent": 0.2, "ttm_weight": 16.0},
            "ResNet50:MobileNetV2": {"exponent": 0.2, "ttm_weight": 20.0},
            "ResNet50:vgg8": {"exponent": 0.1, "ttm_weight": 70.0},
            "resnet32x4:ShuffleV1": {"exponent": 0.2, "ttm_weight": 12.0},
            "resnet32x4:ShuffleV2": {"exponent": 0.4, "ttm_weight": 40.0},
            "wrn_40_2:ShuffleV1": {"exponent": 0.3, "ttm_weight": 8.0},
        },
    ),
)
