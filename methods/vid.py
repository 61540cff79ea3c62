"""Variational information distillation: the student's feature maps predict the teacher's, with learned variances.

Paper:    Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer",
          arXiv:1904.05835, equations 4 to 6.
Loss:     For each pair of stages: mu = three 1x1 convolutions of the student's feature map, with ReLU between them;
          each channel's variance = softplus(log_scale) + eps; mean over all entries of
          ½ ((mu - teacher)² / variance + log variance); vid_weight · the sum over the pairs.
Defaults: vid_weight 1, initial variance 5, eps 1e-5: RepDistiller's scripts and code.
Differs:  the regressors have no batch normalization, and the teacher's channels in between, as in RepDistiller.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import (
    Context,
    Distiller,
    Golden,
    Hyper,
    Range,
    Shapes,
    Step,
    lacks_feature_maps,
    match_spatial_size,
    match_stages,
    register,
    sum_losses,
)


@dataclass(frozen=True)
class VIDHyper(Hyper):
    vid_weight: Annotated[
        float, "multiplies the sum over stages of the negative log-likelihood", Range(0.1, 10.0, log=True)
    ] = 1.0
    init_pred_var: Annotated[float, "initial variance", Range(0.5, 50.0, log=True)] = 5.0
    eps: Annotated[float, "lower bound of the variance"] = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("eps")
        if self.init_pred_var <= self.eps:
            raise ValueError(f"init_pred_var must be above eps, got {self.init_pred_var} and {self.eps}")


class Predictor(nn.Module):
    """Predicts a teacher's feature map from the student's, with a variance for each channel."""

    def __init__(self, student_channels: int, teacher_channels: int, hyper: VIDHyper) -> None:
        super().__init__()
        self.eps = hyper.eps
        self.regressor = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        initial = hyper.init_pred_var - hyper.eps  # softplus inverted: log(exp(initial) - 1)
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), initial + math.log(-math.expm1(-initial))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Negative log-likelihood per entry, a scalar, of feature maps [B, K, H, W]; K, H and W may differ."""
        student, teacher = match_spatial_size(student, teacher)
        variance = (F.softplus(self.log_scale) + self.eps)[:, None, None]  # [K, 1, 1]
        squared_error = (self.regressor(student) - teacher).square()
        return gaussian_nll(squared_error, variance)


def gaussian_nll(squared_error: Tensor, variance: Tensor) -> Tensor:
    """Mean negative log-likelihood of a Gaussian, its constant left out.

    Args:
        squared_error: [B, K, H, W].
        variance: [K, 1, 1].
    """
    return (squared_error / variance + variance.log()).mean() / 2


@register("vid", VIDHyper, paper="arXiv:1904.05835", year=2019, kind="features", group="paper")
class VID(Distiller[VIDHyper]):
    """Trains a predictor `vid.i` for the i-th pair of stages."""

    def __init__(self, hyper: VIDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        pairs = match_stages(context.student.feature_maps, context.teacher.feature_maps)
        self.vid = nn.ModuleList(Predictor(student[0], teacher[0], hyper) for student, teacher in pairs)

    @classmethod
    def supports(cls, hyper: VIDHyper, shapes: Shapes) -> str | None:
        return lacks_feature_maps(shapes)

    def losses(self, step: Step) -> dict[str, Tensor]:
        pairs = match_stages(step.student.feature_maps, step.teacher.feature_maps)
        terms = (predictor(*pair) for predictor, pair in zip(self.vid, pairs, strict=True))
        return {"likelihood": self.hyper.vid_weight * sum_losses(terms)}


GOLDEN = {
    "vid": Golden(
        student={"feature_maps": "g_s"},
        teacher={"feature_maps": "g_t"},
        settings={"init_pred_var": "$init_pred_var", "eps": "$eps"},
    )
}
