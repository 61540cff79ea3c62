"""Curriculum temperature: KD whose temperature is trained to make the divergence ever harder for the student.

Paper:    Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for Knowledge Distillation",
          arXiv:2211.16231 (AAAI 2023), the global form.
Loss:     T = t_start + t_end · sigmoid(g) with a trained scalar g; ctkd_weight · T² · KL(softmax(teacher/T) ‖
          softmax(student/T)), averaged over the batch and differentiated in T everywhere. The gradient of g alone is
          multiplied by lambda, which falls along a half cosine from decay_max before the first epoch to decay_min in
          epoch decay_loops and stays there: being negative, it makes g ascend what the student descends.
Defaults: cross-entropy 0.1, ctkd_weight 0.9, g = 1 at first (T = 15.6), T between 1 and 21, lambda from 0 to -1 within
          10 of 240 epochs: the authors' scripts.
Differs:  in nothing. g is optimized with the student, weight decay and momentum included, as in the authors' code;
          their form with a temperature for each image is left out.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import Context, Distiller, Golden, Hyper, Range, Step, register


@dataclass(frozen=True)
class CTKDHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels", Range(0.01, 1.0, log=True)] = 0.1
    ctkd_weight: Annotated[float, "multiplies the divergence", Range(0.09, 9.0, log=True)] = 0.9
    t_start: Annotated[float, "lowest temperature", Range(0.5, 4.0, log=True)] = 1.0
    t_end: Annotated[float, "how far the temperature may rise above it", Range(2.0, 40.0, log=True)] = 20.0
    decay_max: Annotated[float, "factor of the temperature's gradient before the first epoch"] = 0.0
    decay_min: Annotated[float, "factor of the temperature's gradient at the end; below 0 it ascends"] = -1.0
    decay_loops: Annotated[float, "epochs, of 240, in which the factor goes from the one to the other"] = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("t_start", "t_end", "decay_loops")


class ScaledGradient(torch.autograd.Function):
    """The identity; its gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * gradient, None


def gradient_factor(epoch: float, hyper: CTKDHyper) -> float:
    """lambda in an epoch of 240, counted from 1."""
    share = min(epoch, hyper.decay_loops) / hyper.decay_loops
    return (math.cos(math.pi * share) + 1) / 2 * (hyper.decay_max - hyper.decay_min) + hyper.decay_min


def tempered_kl(student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
    """T² · KL(teacher ‖ student) at T [1], averaged over B, of logits [B, C]; T is differentiated as the student is."""
    log_q = (student / temperature).log_softmax(dim=1)
    log_p = (teacher / temperature).log_softmax(dim=1)
    return (temperature.square() * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)).mean()


@register("ctkd", CTKDHyper, paper="arXiv:2211.16231", year=2023, kind="logits", group="modern")
class CTKD(Distiller[CTKDHyper]):
    """`global_T` is the scalar g."""

    def __init__(self, hyper: CTKDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.global_T = nn.Parameter(torch.ones(1))

    def temperature(self, factor: float) -> Tensor:
        """T [1]; the gradient that reaches g is multiplied by `factor`."""
        scalar: Tensor = ScaledGradient.apply(self.global_T, factor)
        return self.hyper.t_start + self.hyper.t_end * scalar.sigmoid()

    def losses(self, step: Step) -> dict[str, Tensor]:
        temperature = self.temperature(gradient_factor(step.epoch_of(240), self.hyper))
        divergence = tempered_kl(step.student.logits, step.teacher.logits, temperature)
        return {"divergence": self.hyper.ctkd_weight * divergence}

    def extra_info(self) -> dict[str, bool | int | float | str]:
        return {"temperature": self.temperature(1.0).item()}


GOLDEN = {
    "ctkd": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        epoch="epochs",
        settings={
            "t_start": "$t_start",
            "t_end": "$t_end",
            "decay_max": "$decay_max",
            "decay_min": "$decay_min",
            "decay_loops": "$decay_loops",
        },
    )
}
