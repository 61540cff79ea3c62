"""Distillation from several teachers: the mean of their KD terms, or KD to the mean of their probabilities.

Paper:    You, Xu, Xu, Tao, "Learning from Multiple Teacher Networks", KDD 2017, doi:10.1145/3097983.3098135, its logit
          term.
Loss:     form=terms: mkd_weight · the mean over the teachers of T² · KL(softmax(teacher/T) ‖ softmax(student/T));
          form=probabilities: mkd_weight · T² · KL(the mean of softmax(teacher/T) over the teachers ‖
          softmax(student/T)), as in the paper; averaged over the batch.
Defaults: cross-entropy 0.1, mkd_weight 0.9, T = 4, as `kd`; form=terms.
Differs:  the paper's triplets of intermediate features are left out. The two forms differ by a number that does not
          depend on the student, so that their gradients are the same: they train the same student.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Hyper, Range, Requires, Step, register

FORMS = ("terms", "probabilities")


@dataclass(frozen=True)
class MKDHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels", Range(0.01, 1.0, log=True)] = 0.1
    mkd_weight: Annotated[float, "multiplies the divergence", Range(0.09, 9.0, log=True)] = 0.9
    temperature: Annotated[float, "softens both sides of the divergence", Range(1.0, 16.0, log=True)] = 4.0
    form: Annotated[str, "what is averaged over the teachers: terms or probabilities"] = "terms"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature")
        self.require_choice("form", FORMS)


def divergence(student: Tensor, log_p: Tensor, temperature: float) -> Tensor:
    """T² · KL(p ‖ softmax(student / T)) for each row, of logits and log p, [..., B, C]: [..., B]."""
    log_q = (student / temperature).log_softmax(dim=-1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)


@register("mkd", MKDHyper, paper="doi:10.1145/3097983.3098135", year=2017, kind="logits", group="modern")
class MKD(Distiller[MKDHyper]):
    """Has no modules of its own."""

    @classmethod
    def requires(cls, hyper: MKDHyper) -> Requires:
        return Requires(min_teachers=2, max_teachers=None)

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, count = self.hyper, len(step.teachers)
        teachers = torch.stack([teacher.logits for teacher in step.teachers])  # [teachers, B, C]
        log_p = (teachers / hyper.temperature).log_softmax(dim=-1)
        if hyper.form == "probabilities":
            log_p = log_p.logsumexp(dim=0) - math.log(count)
        return {"mean": hyper.mkd_weight * divergence(step.student.logits, log_p, hyper.temperature).mean()}
