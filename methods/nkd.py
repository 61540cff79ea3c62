"""Normalized knowledge distillation: soft targets for the true class, and for the other classes among themselves.

Paper:    Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
          Approach with Normalized Loss and Customized Soft Labels", arXiv:2303.13005, §3.
Loss:     target: -p(y) · log s(y), with the teacher's and the student's probability of the true class at temperature 1;
          non_target: T² · cross-entropy between the softmaxes of logits / T over the other C - 1 classes; both averaged
          over the batch; target_weight · target + non_target_weight · non_target.
Defaults: CE 1, target_weight 1, non_target_weight (gamma) 1.5, T = 1: the authors' own. For ResNet-34 and ResNet-18 on
          CIFAR-100 they have gamma 3.5 and T = 3.
Differs:  in nothing; both terms are cross-entropies, so that a student like its teacher has a loss above 0.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Range, Step, register, soft_cross_entropy, target_cross_entropy


@dataclass(frozen=True)
class NKDHyper(Hyper):
    target_weight: Annotated[float, "multiplies the term of the true class", Range(0.1, 10.0, log=True)] = 1.0
    non_target_weight: Annotated[
        float, "multiplies the term of the other classes; the paper's gamma", Range(0.15, 15.0, log=True)
    ] = 1.5
    temperature: Annotated[float, "softens both sides of the term of the other classes", Range(1.0, 8.0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature")


def without_target(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits [B, C - 1] of all classes but the true one."""
    column = torch.arange(logits.shape[1] - 1, device=labels.device)
    return logits.gather(1, column + (column >= labels[:, None]))


@register("nkd", NKDHyper, paper="arXiv:2303.13005", year=2023, kind="logits", group="modern")
class NKD(Distiller[NKDHyper]):
    """Compares logits; has no modules of its own."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, student, teacher, labels = self.hyper, step.student.logits, step.teacher.logits, step.batch.labels
        others = (without_target(logits, labels) / hyper.temperature for logits in (student, teacher))
        return {
            "target": hyper.target_weight * target_cross_entropy(student, teacher, labels),
            "non_target": hyper.non_target_weight * hyper.temperature**2 * soft_cross_entropy(*others),
        }


GOLDEN = {
    "nkd": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        labels="labels",
        settings={"non_target_weight": "$gamma", "temperature": "$temp"},
        terms={"target": "out.target", "non_target": "out.non_target"},
    )
}
